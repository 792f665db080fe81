"""The demonstration: `python -m tests.demo`, as root, from the checkout."""

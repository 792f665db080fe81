"""The demonstration: `python -m tests.support.demo`, as root, from the checkout."""

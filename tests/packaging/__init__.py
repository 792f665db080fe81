"""The package, the installation and the files that go with them."""

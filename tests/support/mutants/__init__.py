"""Mutation testing of what decides: base and core, one changed place at a time.

`python -m tests.support.mutants` runs it (see `__main__`). Not a test itself: `make test` has none of it.
"""

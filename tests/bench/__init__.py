"""Benchmarks: the daemon against swanctl and bare VICI clients, in one run on one kind of charon.

Law: times are shown, never asserted; a machine may be busy. What must hold on every
machine are counts (what was written to charon, which files were opened), and those end the
run with exit code 1 when they are not what they should be.
"""

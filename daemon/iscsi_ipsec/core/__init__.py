"""Decides without side effects: takes texts of files, gives desired state and plans.

Law: no I/O, no clock, no log, no foreign library. Everything here can be read
and tested without strongSwan, a kernel or a file system.
"""

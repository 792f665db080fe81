"""Decides without touching anything: text of files in, desired state and plans out.

Law: no I/O, no clock, no log, no foreign library. Everything here can be read
and tested without strongSwan, a kernel or a file system.
"""

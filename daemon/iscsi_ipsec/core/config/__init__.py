"""Parses the admin's files into values or a list of all their problems, and writes values as files.

Law: what a file says, never what follows from it: that is ``core.decide``'s.
"""

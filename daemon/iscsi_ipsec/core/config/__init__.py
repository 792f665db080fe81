"""Parses the admin's files into values or a list of all their problems, and writes values as files.

Law: this package reads what a file says; ``core.decide`` decides what follows from it.
"""

"""Parses open-iscsi's records."""

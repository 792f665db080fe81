"""Turns desired connections into VICI messages, and charon's answers into what to do next.

Law: only this package knows charon's syntax, names and log lines. It decides nothing about portals or keys.
"""

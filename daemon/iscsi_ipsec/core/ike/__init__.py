"""Turns desired connections into VICI messages, and charon's answers into what to do next.

Law: charon's spelling, names and log lines are known here only. No decision about portals or keys.
"""

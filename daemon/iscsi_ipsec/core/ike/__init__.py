"""From what must be in charon to messages, and from what charon says to what to do about it.

Law: charon's spelling, names and log lines are known here only. No decision about portals or keys.
"""

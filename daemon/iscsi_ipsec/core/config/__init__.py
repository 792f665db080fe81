"""Text of the admin's files in, values or all their problems out; and the way back.

Law: what a file says, never what follows from it: that is ``core.decide``'s.
"""

"""Chaos: random faults and edits in a row, against real charons and the real daemon.

`texts` are contents of files, `shelf` knows which of them are in force, `oracle` says what must
follow from that. None of the three uses a line of the daemon's: they are a second opinion,
written from the manual. `faults` are what goes wrong, as values that can be printed and
replayed; they reach the machine through a `hand`, and so can be done to another kind of machine.
`stage` is the lab, `checks` compares what is with what must be, `run` does it all in a row.
"""

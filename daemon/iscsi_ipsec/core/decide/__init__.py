"""Decides what must be in charon and nftables, from files, routes, names and records.

Law: every precedence (which policy, which key, which flags, which setting wins) is decided
here and nowhere else.
"""

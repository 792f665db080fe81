"""From files, routes, names and records to what must be in charon and nftables.

Law: every precedence (which policy, which key, which flags, which setting wins) is decided
here and nowhere else.
"""

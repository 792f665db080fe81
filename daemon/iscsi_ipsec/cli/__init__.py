"""The command ``iscsi-ipsec``: it reads what the daemon reports, and writes files that the daemon reads."""

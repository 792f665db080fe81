"""iscsi-ipsec: keeps open-iscsi sessions inside IPsec.

The folders are the architecture, and imports go down only:
``cli`` (the command) > ``service`` (the daemon) > ``adapters`` (one foreign library each) >
``core`` (pure decisions) > ``base`` (types).
"""

__version__ = "0.2.0"

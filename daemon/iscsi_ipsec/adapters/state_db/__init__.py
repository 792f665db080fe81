"""Stores what must outlive the daemon: last good files, managed portals, addresses of names, reqids.

Law: an SQLite file and a digest key, root only, nothing else. The store decides nothing: its caller decides
what to keep and when a portal is released.
"""

from __future__ import annotations

from iscsi_ipsec.adapters.state_db.database import UNREADABLE_VERSION
from iscsi_ipsec.adapters.state_db.store import LastGood, ManagedRecord, Store

__all__ = ["UNREADABLE_VERSION", "LastGood", "ManagedRecord", "Store"]

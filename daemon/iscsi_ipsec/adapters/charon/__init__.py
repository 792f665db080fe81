"""Talks to charon through its VICI socket.

Law: this package is the only place that knows :mod:`vici` and the field names
of charon's answers. ``wire`` frames and times out, ``answers`` takes the answer to each
request, ``state`` turns it into values, ``commands`` is the command session, ``events`` the session for events:
two sockets, because an event between two answers would break the order, which is all that links an answer to
its request in VICI.
"""

from iscsi_ipsec.adapters.charon.commands import OWN_PREFIX, Charon
from iscsi_ipsec.adapters.charon.events import EVENTS, CharonEvents
from iscsi_ipsec.adapters.charon.wire import default_socket
from iscsi_ipsec.base.charon_sa import CharonState, ChildSa, IkeSa

__all__ = [
    "EVENTS",
    "OWN_PREFIX",
    "Charon",
    "CharonEvents",
    "CharonState",
    "ChildSa",
    "IkeSa",
    "default_socket",
]

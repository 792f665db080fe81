"""Strategies: identities of every type, from texts of which not all can be one."""

from __future__ import annotations

from hypothesis import strategies as st

from iscsi_ipsec.base.addresses import is_of_one_host
from iscsi_ipsec.base.identity import IdType, IkeId

HOST_ADDRESSES = st.ip_addresses().filter(is_of_one_host)


def _identity(type: IdType, text: str) -> IkeId | None:
    try:
        return IkeId.parse(type, text)
    except ValueError:
        return None


def named(texts: st.SearchStrategy[str], type: IdType = IdType.ID_FQDN) -> st.SearchStrategy[IkeId]:
    """The identities that these texts make as this type; texts that make none are drawn again."""
    return texts.map(lambda text: _identity(type, text)).filter(bool).map(_certain)


def _certain(identity: IkeId | None) -> IkeId:
    assert identity is not None
    return identity

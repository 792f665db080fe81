"""Parses charon's answers about SAs into values of ``base.charon_sa``.

Law: pure. The field names are those of strongSwan 5.9.8,
src/libcharon/plugins/vici/vici_query.c (``list_ike``, ``list_child``). A field
that is absent has a neutral value; a number that is none is a
:class:`ValueError`, because a wrong id would terminate someone else's SA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iscsi_ipsec.adapters.charon.wire import number, subsection, text, texts
from iscsi_ipsec.base.charon_sa import ChildSa, IkeSa


def parse_ike_sa(conn: str, section: Mapping[str, Any]) -> IkeSa:
    """One section of a ``list-sa`` event; :class:`ValueError` names a number that is none."""
    children = subsection(section, "child-sas")
    return IkeSa(
        conn=conn,
        unique_id=number(section, "uniqueid") or 0,
        version=number(section, "version") or 0,
        state=text(section, "state"),
        initiator=text(section, "initiator") == "yes",
        local_host=text(section, "local-host"),
        remote_host=text(section, "remote-host"),
        local_id=text(section, "local-id"),
        remote_id=text(section, "remote-id"),
        encr=text(section, "encr-alg"),
        encr_keysize=number(section, "encr-keysize") or 0,
        integ=text(section, "integ-alg"),
        prf=text(section, "prf-alg"),
        dh_group=text(section, "dh-group"),
        age=number(section, "established") or 0,
        rekey_in=number(section, "rekey-time"),
        children=tuple(_parse_child_sa(conn, subsection(children, name)) for name in children),
        initiator_spi=text(section, "initiator-spi"),
    )


def _parse_child_sa(conn: str, section: Mapping[str, Any]) -> ChildSa:
    return ChildSa(
        conn=conn,
        child_name=text(section, "name"),
        unique_id=number(section, "uniqueid") or 0,
        state=text(section, "state"),
        mode=text(section, "mode"),
        reqid=number(section, "reqid") or 0,
        spi_in=text(section, "spi-in"),
        spi_out=text(section, "spi-out"),
        encr=text(section, "encr-alg"),
        encr_keysize=number(section, "encr-keysize") or 0,
        integ=text(section, "integ-alg"),
        dh_group=text(section, "dh-group"),
        bytes_in=number(section, "bytes-in") or 0,
        bytes_out=number(section, "bytes-out") or 0,
        packets_in=number(section, "packets-in") or 0,
        packets_out=number(section, "packets-out") or 0,
        age=number(section, "install-time") or 0,
        rekey_in=number(section, "rekey-time"),
        life_in=number(section, "life-time"),
        local_ts=texts(section, "local-ts"),
        remote_ts=texts(section, "remote-ts"),
    )

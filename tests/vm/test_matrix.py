"""Every identity type in every mode: 48 sessions, judged at the far end.

4 identity types x {IKEv2, IKEv1 main, IKEv1 aggressive} x {transport, tunnel} x {PFS, none}.
A session takes about 25 s on an emulated CPU, so by default 12 of them run, in which every two
settings meet once; VM_FULL=1 runs all 48.

Address identities run over portals of their own IP version, names over both. The target pins
the identity with its type, so that a session that comes up proves what was sent; the rest is
read from its list of SAs and from its log.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest

from tests.vm import farend
from tests.vm.combination import (
    ID_TYPES,
    IKES,
    KEY,
    MODES,
    TARGET_ID,
    Combination,
    log_out,
    play,
    rekey,
)
from tests.vm.full import FULL
from tests.vm.machine import Machine
from tests.vm.wire import Wire

LOG_OF = {
    "IKEv2": "is initiating an IKE_SA",
    "IKEv1 main": "is initiating a Main Mode IKE_SA",
    "IKEv1 aggressive": "is initiating a Aggressive Mode IKE_SA",
}

EVERYTHING = [Combination(*cell) for cell in itertools.product(ID_TYPES, IKES, MODES, (True, False))]
SELECTION = [
    Combination(id_type, ike, MODES[(row + column) % 2], bool((row // 2 + column) % 2))
    for row, id_type in enumerate(ID_TYPES)
    for column, ike in enumerate(IKES)
]
MATRIX = EVERYTHING if FULL else SELECTION


def test_in_the_selection_every_two_settings_meet() -> None:
    def pairs(cells: list[Combination]) -> set[tuple[object, object]]:
        return {
            pair
            for cell in cells
            for pair in itertools.combinations((cell.id_type, cell.ike, cell.mode, cell.pfs), 2)
        }

    assert pairs(SELECTION) == pairs(EVERYTHING)
    assert len(SELECTION) == 12


FAR_CONF = """
connections {{
    far {{
        version = {version}
        aggressive = {aggressive}
        local_addrs = {local}
        remote_addrs = {remote}
        proposals = {ike}
        local {{
            auth = psk
            id = fqdn:{target_id}
        }}
        remote {{
            auth = psk
            id = {peer}
        }}
        children {{
            iscsi {{
                mode = {mode}
                local_ts = dynamic[6/3260]
                remote_ts = dynamic[6]
                esp_proposals = {esp}
            }}
        }}
    }}
}}
secrets {{
    ike-far {{
        id = {peer}
        secret = "{key}"
    }}
}}
"""


@pytest.fixture(scope="module")
def far_end(target: Machine) -> Iterator[Machine]:
    """The target, allowing aggressive mode with a key, and insisting on IPsec itself."""
    target.write(
        "/etc/strongswan.d/zz-aggressive.conf",
        "charon {\n    i_dont_care_about_security_and_use_aggressive_mode_psk = yes\n}\n",
    )
    target.run("systemctl restart strongswan", timeout=90, check=True)
    farend.guard(target)
    yield target
    farend.unguard(target)
    target.run("rm /etc/strongswan.d/zz-aggressive.conf")


@pytest.fixture(scope="module")
def table(tables: dict[str, list[str]]) -> list[str]:
    """Rows of the table that ends the run."""
    return tables.setdefault(f"sessions of {len(MATRIX)} combinations, as the target saw them", [])


@pytest.mark.parametrize("wanted", MATRIX, ids=str)
def test_each_identity_in_each_mode_carries_a_session_as_asked(
    wanted: Combination, ready: Machine, far_end: Machine, wire: Wire, table: list[str]
) -> None:
    near_ip, far_ip = (ready.ip6, far_end.ip6) if wanted.over_ipv6 else (ready.ip, far_end.ip)
    conf = FAR_CONF.format(
        version=2 if wanted.ike == "IKEv2" else 1,
        aggressive="yes" if wanted.ike == "IKEv1 aggressive" else "no",
        local=far_ip,
        remote=near_ip,
        ike=farend.IKE_PROPOSALS,
        esp=farend.ESP_PROPOSALS,
        target_id=TARGET_ID,
        peer=wanted.pinned(ready),
        mode=wanted.mode,
        key=KEY,
    )
    farend.configure_charon(far_end, conf)
    since = far_end.run("date +%s").out.strip()
    mark = wire.mark()

    try:
        row = play(ready, wanted, far_ip)
        if wanted.ike == "IKEv2":
            rekey(ready, row)
        raw = far_end.run("swanctl --list-sas --raw", timeout=30, check=True).out
        log = far_end.run(f"journalctl -u strongswan --since @{since} --no-pager -o cat", timeout=30).out
    except AssertionError as error:
        error.add_note(farend.dump(far_end))
        raise
    finally:
        log_out(ready, far_ip)

    assert row["protected"] is True
    assert (row["ike"], row["mode"], row["pfs"]) == (wanted.ike, wanted.mode, wanted.pfs)
    assert (row["identity"], row["identity_type"]) == (wanted.identity(ready), wanted.id_type)
    seen = responder_view(raw)
    assert seen["version"] == ("2" if wanted.ike == "IKEv2" else "1"), raw
    assert seen["remote-id"] == wanted.identity(ready), raw
    assert seen["mode"] == wanted.mode.upper(), raw
    assert bool(seen["child-dh"]) is wanted.pfs, raw
    assert LOG_OF[wanted.ike] in log
    clear = wire.tcp(3260, mark)
    assert not clear, f"{len(clear)} clear frames, first {clear[0]}"
    assert {near_ip, far_ip} <= {frame.source for frame in wire.esp(mark)}
    table.append(
        f"  {wanted.id_type:<13} {wanted.ike:<17} {wanted.mode:<10} "
        f"PFS {seen['child-dh'] or 'none':<11} {seen['child-encr']:<12} {'IPv6' if wanted.over_ipv6 else 'IPv4'}"
    )


def responder_view(raw: str) -> dict[str, str]:
    """The responder's only IKE SA and its newest child, from ``swanctl --list-sas --raw``."""
    ike, _, children = raw.partition("child-sas")
    newest = children.rpartition("state=INSTALLED")
    last = newest[0].rpartition("{")[2] + newest[2].partition("}")[0]

    def value(text: str, name: str) -> str:
        found = re.search(rf"(?:^|[ {{]){name}=([^ }}]*)", text)
        return found[1] if found else ""

    return {
        "version": value(ike, "version"),
        "remote-id": value(ike, "remote-id"),
        "mode": value(last, "mode"),
        "child-dh": value(last, "dh-group"),
        "child-encr": f"{value(last, 'encr-alg')}-{value(last, 'encr-keysize')}",
    }

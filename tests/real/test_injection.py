"""An id, a name or a path cannot inject anything into charon, nftables, a file or a terminal.

Ids come from files, but are often copied from elsewhere; targets choose their own names, which
open-iscsi writes into paths; and whoever can make a file in a folder chooses its name.
"""

from __future__ import annotations

import json
import os

import pytest

from iscsi_ipsec.base.identity import IdType, IkeId
from iscsi_ipsec.core.ike.vici_messages import encode_id
from tests.support.admin import CONNECTION, PORTAL, PREFIX, ROW, our_secrets, portal_file, wait_for_connection
from tests.support.ike import KEY_A, KEY_B, TARGET, Ike, connection
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.pair import Pair

FOREIGN_TABLE = 'table inet others { chain c { counter comment "not ours"; }; }\n'

# printable ASCII that names may hold, each with a meaning somewhere: charon, nft, printf, shell, SQL, paths
HOSTILE_IDS = (
    "a%s%n%x", "$(reboot)", "`id`", "a;flush_ruleset", "a&b|c", "<x>", "../../etc/passwd",
    "[1]", "10.0.0.5", "127.0.0.1", "fd00::5", "10.0.0.256/24", "fqdn.x", "CN.O", "~", "-", "!a", "(b)", "a^b", "a" * 255,
)  # fmt: skip
REFUSED_IDS = (
    "", "*", "*.lab", "a?b", "a b", 'a"b', "a'b", "a\\b", "a\nb", "a\0b", "a\x1b[2Jb", "a{b}", "a#b", "C=DE, O=x", "a" * 256,
    "аdmin.lab",  # the first letter is Cyrillic
    "a\u202eb", "\u2028", "ｄｂ１", "dé.lab",
    "%any", "%any6", "%defaultroute", "fqdn:x", "keyid:x", "dns:x",
)  # fmt: skip
REFUSED_HOSTS = ("10.0.0.1/24", "0.0.0.0", "::", "x.lab.")  # noqa: S104  # what must be refused


def foreign_table_of(daemon: Daemon) -> str:
    return daemon.node.run(["nft", "list", "table", "inet", "others"]).out


def key_of(ident: str, *, key: bytes = KEY_A, kind: IdType = IdType.ID_FQDN) -> str:
    return f'id_type = "{kind.name}"\nid = {json.dumps(ident)}\nkey = "{key.decode()}"\n'


def far_end_for(pair: Pair, ident: str) -> None:
    """A far end, configured by hand, that knows exactly this name and nobody else."""
    ours = pair.lab.node("initiator").at.v4
    pair.target.load_conn(
        "far", connection(Ike.V2, local=PORTAL, remote=ours, local_id=TARGET, remote_id=ident)
    )
    pair.target.load_psk("far", KEY_A, [ident])


@pytest.mark.parametrize("ident", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_an_id_that_means_something_elsewhere_is_sent_as_the_name_that_it_is(
    pair: Pair, daemon: Daemon, ident: str
) -> None:
    daemon.put_key("x", key_of(ident))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    far_end_for(pair, f"fqdn:{ident}" if len(ident) < 251 else ident)

    assert pair.comes_up(CONNECTION)

    (sa,) = [tree for _, tree in pair.target.sas()]
    assert sa["remote-id"].decode() == ident
    pair.forget()


@pytest.mark.parametrize("length", [250, 251, 254, 255])
@pytest.mark.parametrize("kind", [IdType.ID_FQDN, IdType.ID_USER_FQDN])
def test_a_long_ids_key_is_its_own_to_the_last_byte(
    pair: Pair, daemon: Daemon, kind: IdType, length: int
) -> None:
    """Charon cuts a secret's owner off behind 255 characters, and "fqdn:" is five of them.

    Two keys of ids that differ in the last byte only, on the target's side, where the owner decides.
    """
    tail = "@b" if kind is IdType.ID_USER_FQDN else "bb"
    first, second = ("a" * (length - 3) + tail + last for last in "12")
    for name, ident, key in (("first", first, KEY_A), ("second", second, KEY_B)):
        daemon.put_key(name, key_of(ident, key=key, kind=kind))
    ours, theirs = pair.lab.node("initiator").at.v4, pair.lab.node("target").at.v4
    daemon.put_portal(
        "san",
        f'portals = ["{ours}"]\nrole = "target"\ntarget_id = "{ours}"\nike_proposals = ["aes128-sha256-ecp256"]\n',
    )
    daemon.start()
    wait_until(lambda: len(our_secrets(pair.initiator)) == 2, "both keys are loaded", detail=daemon.tail)
    encoded = encode_id(IkeId.parse(kind, first))
    pair.target.load_conn(
        "near", connection(Ike.V2, local=theirs, remote=ours, local_id=encoded, remote_id=ours)
    )

    def gets_in(key: bytes) -> bool:
        pair.target.load_psk("near", key, [encoded])
        swapped = Pair(pair.lab, pair.target, pair.initiator)
        try:
            return swapped.comes_up("near")
        finally:
            pair.forget()

    assert gets_in(KEY_A)
    assert not gets_in(KEY_B)


def test_another_id_does_not_get_in_as_any(pair: Pair, daemon: Daemon) -> None:
    """So that the test above can fail: a far end that knows only one odd name lets no other name in."""
    daemon.put_key("x", key_of("somebody.lab"))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    far_end_for(pair, "fqdn:a%s%n%x")
    assert not pair.comes_up(CONNECTION)


@pytest.mark.parametrize("kind", [IdType.ID_FQDN, IdType.ID_USER_FQDN])
@pytest.mark.parametrize("ident", REFUSED_IDS + REFUSED_HOSTS, ids=range(len(REFUSED_IDS + REFUSED_HOSTS)))
def test_an_id_that_cannot_be_a_name_is_refused(kind: IdType, ident: str) -> None:
    user = f"who@{ident}" if ident in REFUSED_HOSTS else f"{ident}@x.lab"
    with pytest.raises(ValueError, match=r"\w"):
        IkeId.parse(kind, ident if kind is IdType.ID_FQDN else user)


def test_names_of_files_and_targets_change_nothing_but_their_own_row(daemon: Daemon, charon: Charon) -> None:
    daemon.node.run(["nft", "-f", "-"], text=FOREIGN_TABLE)
    charon.load_conn("others", {"children": {"c": {}}})
    charon.load_psk("others", b"not ours")
    names = (
        'x"; flush ruleset; "', "x'; DROP TABLE files; --", "$(touch injected)", "%any", "%s%n", "a" * 200, "iscsi-ipsec-x", "üñî",
    )  # fmt: skip
    for number, name in enumerate(names):
        daemon.put_key(name, key_of(f"host{number}.lab"))
        policy = portal_file(f"192.0.2.{number + 1}", psk=name.replace("\\", r"\\").replace('"', r"\""))
        daemon.put_portal(name, policy)
    for raw in (b"nl\n.toml", b"esc\x1b[2J.toml", b"latin\xff.toml", "rtl\u202e.toml".encode()):
        with open(os.fsencode(daemon.psk) + b"/" + raw, "wb"):
            pass
    # a target chooses its name when it is discovered, and iscsiadm makes a path of it
    evil = "iqn.x:\x1b]0;owned\x07\x1b[2J\nguard   in place"
    record = daemon.nodes / "nodes" / evil / f"{PORTAL},3260,1"
    record.mkdir(parents=True)
    (record / "default").write_text(
        f"# BEGIN RECORD 2.1.8\nnode.name = {evil.splitlines()[0]}\nnode.conn[0].address = {PORTAL}\n"
        "node.conn[0].port = 3260\n# END RECORD\n"
    )
    daemon.start()
    wait_until(lambda: daemon.row(ROW), "the target is seen", detail=daemon.tail)
    wait_until(
        lambda: all(daemon.row(f"192.0.2.{n + 1}:3260") for n in range(len(names))),
        "all policies are in force",
        detail=daemon.tail,
    )

    # each key is the file's of that name
    reported = {row["key"] for row in daemon.status()["portals"] if row["portal"].startswith("192.0.2.")}
    assert reported == set(names)
    # others' things are as they were
    assert "not ours" in foreign_table_of(daemon)
    assert {name for name in charon.connections() if not name.startswith(PREFIX)} == {"others"}
    assert {name for name in charon.secrets() if not name.startswith(PREFIX)} == {"others"}
    ruleset = daemon.node.run(["nft", "-j", "list", "ruleset"]).out
    tables = {item["table"]["name"] for item in json.loads(ruleset)["nftables"] if "table" in item}
    assert tables == {"others", "iscsi_ipsec"}
    assert not [
        word
        for word in ("DROP", "touch", "flush", "owned")
        if word in (daemon.state / "guard.nft").read_text()
    ]
    # and no terminal, log or metrics file obeys them
    for words in (("status",), ("explain", PORTAL), ("plan",), ("check",), ("psk", "list"), ("verify",)):
        answer = daemon.cli(*words)
        assert "\x1b" not in answer.out + answer.err, words
        assert "\nguard   in place\n" not in answer.out, words
        assert all(line.isprintable() for line in (answer.out + answer.err).split("\n")), words
    assert r"\x1b]0;owned" in daemon.cli("explain", PORTAL).out
    log = daemon.log.read_text()
    assert "\x1b" not in log
    assert all(line.isprintable() for line in log.split("\n"))
    assert "\x1b" not in (daemon.runtime / "metrics.prom").read_text()
    daemon.node.run(["nft", "delete", "table", "inet", "others"])

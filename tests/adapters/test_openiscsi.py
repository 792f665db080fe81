"""open-iscsi's database as iscsiadm writes it, and sessions as the kernel shows them."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import openiscsi
from iscsi_ipsec.adapters.openiscsi import RecordCache, Records, read_firmware, read_records, read_sessions
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.portal import Portal

IQN = "iqn.2024-01.com.example"


def node_text(host: str = "10.0.0.20", port: int = 3260, target: str = f"{IQN}:a", **fields: str) -> str:
    lines = [
        "# BEGIN RECORD 2.1.8",
        f"node.name = {target}",
        *(f"{key.replace('__', '.')} = {value}" for key, value in fields.items()),
        "node.session.auth.password = topsecret",
        f"node.conn[0].address = {host}",
        f"node.conn[0].port = {port}",
        "# END RECORD",
        "",
    ]
    return "\n".join(lines)


def discovery_text(host: str) -> str:
    return (
        "# BEGIN RECORD 2.1.8\ndiscovery.type = sendtargets\n"
        f"discovery.sendtargets.address = {host}\ndiscovery.sendtargets.port = 3260\n# END RECORD\n"
    )


def put(path: Path, text: str) -> Path:
    """Write in place, and make the file old enough to be cached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    old = path.stat().st_mtime_ns - 3_600_000_000_000
    os.utime(path, ns=(old, old))
    return path


def hosts(records: Records) -> list[str]:
    return [record.host for record in records.records]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "iscsi"


# --- the database -----------------------------------------------------------


def test_both_layouts_of_node_files_are_read(db: Path) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text("10.0.0.20"))
    put(db / f"nodes/{IQN}:a/10.0.0.21,3260", node_text("10.0.0.21"))
    put(db / f"nodes/{IQN}:b/fd00::20,3260,2/default", node_text("fd00::20"))
    put(db / f"nodes/{IQN}:c/san.example.com,3261,1/default", node_text("san.example.com", 3261))
    records = read_records([str(db)], RecordCache())
    assert hosts(records) == ["10.0.0.20", "10.0.0.21", "fd00::20", "san.example.com"]
    assert (records.problems, records.torn) == ((), ())


def test_discovery_records_of_both_layouts_are_read(db: Path) -> None:
    put(db / "send_targets/10.0.0.30,3260/st_config", discovery_text("10.0.0.30"))
    put(db / "send_targets/10.0.0.31,3260", discovery_text("10.0.0.31"))
    records = read_records([str(db)], RecordCache())
    assert [(r.host, r.is_discovery) for r in records.records] == [("10.0.0.30", True), ("10.0.0.31", True)]


def test_links_are_not_followed_out_of_the_tree_or_inside_it(db: Path, tmp_path: Path) -> None:
    node = put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text()).parent
    outside = put(tmp_path / "outside/default", node_text("192.0.2.1")).parent
    put(db / "send_targets/10.0.0.30,3260/st_config", discovery_text("10.0.0.30"))
    (db / f"send_targets/10.0.0.30,3260/{IQN}:a,10.0.0.20,3260,1,default").symlink_to(node)
    (db / "send_targets/192.0.2.1,3260").symlink_to(outside)
    (db / f"nodes/{IQN}:a/192.0.2.1,3260,1").symlink_to(outside)
    (db / f"nodes/{IQN}:z").symlink_to(outside.parent)
    (db / f"nodes/{IQN}:a/10.0.0.20,3260,1/other").symlink_to(outside / "default")
    assert hosts(read_records([str(db)], RecordCache())) == ["10.0.0.20", "10.0.0.30"]


def test_missing_databases_are_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert read_records([f"{tmp_path}/none", f"{tmp_path}/empty"], RecordCache()) == Records()


def test_a_database_that_is_a_link_to_the_other_is_read_once(db: Path, tmp_path: Path) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text())
    (tmp_path / "lib").symlink_to(db)
    assert hosts(read_records([str(db), f"{tmp_path}/lib"], RecordCache())) == ["10.0.0.20"]


def test_the_interface_comes_from_ifaces_when_the_record_only_names_it(db: Path) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/eth7", node_text(iface__iscsi_ifacename="eth7"))
    put(
        db / f"nodes/{IQN}:b/10.0.0.21,3260,1/eth7",
        node_text("10.0.0.21", iface__iscsi_ifacename="eth7", iface__net_ifacename="own"),
    )
    put(db / f"nodes/{IQN}:c/10.0.0.22,3260,1/eth8", node_text("10.0.0.22", iface__iscsi_ifacename="eth8"))
    iface = "# BEGIN RECORD\niface.iscsi_ifacename = eth7\niface.net_ifacename = {}\n# END RECORD\n"
    put(db / "ifaces/eth7", iface.format("ens3"))
    cache = RecordCache()
    assert [r.net_ifacename for r in read_records([str(db)], cache).records] == ["ens3", "own", ""]
    put(db / "ifaces/eth7", iface.format("ens33"))
    assert [r.net_ifacename for r in read_records([str(db)], cache).records] == ["ens33", "own", ""]


@pytest.mark.parametrize("name", ["../secret", "..", "a/b"])
def test_an_interface_name_cannot_lead_out_of_ifaces(db: Path, name: str) -> None:
    put(db / "secret", "# BEGIN RECORD\niface.net_ifacename = ens3\n# END RECORD\n")
    put(db / "ifaces/a/b", "# BEGIN RECORD\niface.net_ifacename = ens3\n# END RECORD\n")
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/x", node_text(iface__iscsi_ifacename=name))
    (record,) = read_records([str(db)], RecordCache()).records
    assert record.net_ifacename == ""


# --- torn, broken, unreadable -----------------------------------------------


def test_a_torn_record_counts_with_its_earlier_content(db: Path) -> None:
    path = put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text())
    cache = RecordCache()
    whole = read_records([str(db)], cache)
    for text in ("", node_text("10.0.0.99")[:-5]):
        put(path, text)
        torn = read_records([str(db)], cache)
        assert torn.records == whole.records
        assert torn.torn == (str(path),)
    put(path, node_text("10.0.0.99"))
    again = read_records([str(db)], cache)
    assert (hosts(again), again.torn) == (["10.0.0.99"], ())


def test_a_record_that_was_never_whole_is_only_listed(db: Path) -> None:
    path = put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text()[:-5])
    assert read_records([str(db)], RecordCache()) == Records(torn=(str(path),))


def test_a_deleted_record_is_gone_even_from_the_cache(db: Path) -> None:
    path = put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text())
    cache = RecordCache()
    assert hosts(read_records([str(db)], cache)) == ["10.0.0.20"]
    path.unlink()
    assert read_records([str(db)], cache) == Records()
    assert cache.entries == {}


def test_a_record_without_an_address_is_a_problem_and_the_rest_goes_on(db: Path) -> None:
    bad = put(db / f"nodes/{IQN}:a/x,3260,1/default", node_text("<empty>"))
    put(db / f"nodes/{IQN}:b/10.0.0.20,3260,1/default", node_text())
    records = read_records([str(db)], RecordCache())
    assert hosts(records) == ["10.0.0.20"]
    assert [(p.code, p.file) for p in records.problems] == [("bad-record", str(bad))]
    assert "topsecret" not in repr(records)


def test_a_fifo_and_a_huge_file_in_the_database_stop_nothing(db: Path) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text())
    os.mkfifo(db / f"nodes/{IQN}:a/10.0.0.21,3260")
    put(db / f"nodes/{IQN}:a/10.0.0.22,3260", "#" * 70_000 + node_text("10.0.0.22"))
    records = read_records([str(db)], RecordCache())
    assert hosts(records) == ["10.0.0.20"]
    assert [p.code for p in records.problems] == ["unreadable"]


def test_a_folder_that_cannot_be_listed_keeps_its_known_records(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text())
    put(db / f"nodes/{IQN}:a/10.0.0.21,3260", node_text("10.0.0.21"))
    put(db / "send_targets/10.0.0.30,3260/st_config", discovery_text("10.0.0.30"))
    cache = RecordCache()
    before = read_records([str(db)], cache)
    scandir = os.scandir

    def fails(path: str) -> object:
        if path.endswith("/nodes"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    for _ in range(2):
        records = read_records([str(db)], cache)
        assert set(records.records) == set(before.records)
        assert [(p.code, p.file) for p in records.problems] == [("unreadable", f"{db}/nodes")]


# --- the cache --------------------------------------------------------------


def test_an_unchanged_file_is_not_opened_again(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text(iface__iscsi_ifacename="eth7"))
    put(db / "ifaces/eth7", "# BEGIN RECORD\niface.net_ifacename = ens3\n# END RECORD\n")
    cache = RecordCache()
    first = read_records([str(db)], cache)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a file was opened again"))
    assert read_records([str(db)], cache) == first


def test_a_file_written_just_now_is_read_again_though_its_stat_is_the_same(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(db / f"nodes/{IQN}:a/10.0.0.20,3260,1/default", node_text("10.0.0.20"))
    cache = RecordCache()
    path.write_text(node_text("10.0.0.21"))  # its time stamp is now
    same = openiscsi._signature(path.stat())
    monkeypatch.setattr(openiscsi, "_signature", lambda _: same)  # both writes in one tick of the clock
    assert hosts(read_records([str(db)], cache)) == ["10.0.0.21"]
    path.write_text(node_text("10.0.0.22"))
    assert hosts(read_records([str(db)], cache)) == ["10.0.0.22"]
    put(path, node_text("10.0.0.23"))
    assert hosts(read_records([str(db)], cache)) == ["10.0.0.23"]
    put(path, node_text("10.0.0.24"))
    assert hosts(read_records([str(db)], cache)) == ["10.0.0.23"], "an old file is not read for nothing"


# --- with the real iscsiadm -------------------------------------------------

MAKE = r"""
mount -t tmpfs tmpfs /etc/iscsi || exit 77
if [ -d /var/lib/iscsi ]; then mount -t tmpfs tmpfs /var/lib/iscsi || exit 77; fi  # where Debian 13 has its records
mkdir -p /run/lock/iscsi
echo "InitiatorName=iqn.2024-01.com.example:me" >/etc/iscsi/initiatorname.iscsi
new() { iscsiadm -m node -o new -T "iqn.2024-01.com.example:$1" -p "$2"; }
new a 10.0.0.20:3260,1 || exit 77
new b 10.0.0.21:3260; new c '[fd00::20]:3260,2'; new d san.example.com:3261,1
iscsiadm -m discoverydb -t sendtargets -p 10.0.0.30:3260 -o new
iscsiadm -m discoverydb -t isns -p 10.0.0.31:3205 -o new
set -e
iscsiadm -m node -T iqn.2024-01.com.example:a -p 10.0.0.20 -o update -n node.session.auth.password -v topsecret
iscsiadm -m node -T iqn.2024-01.com.example:a -p 10.0.0.20 -o update -n node.startup -v automatic
for base in /etc/iscsi /var/lib/iscsi; do if [ -d $base/nodes ]; then cp -a $base/. "$1"; fi; done
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("iscsiadm"), reason="makes records with iscsiadm, as root"
)
def test_records_that_iscsiadm_writes_are_read(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", MAKE, "sh", str(tmp_path)], capture_output=True, text=True, timeout=110
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("iscsiadm makes no records here")
    assert done.returncode == 0, done.stderr
    records = read_records([str(tmp_path)], RecordCache())
    assert (records.problems, records.torn) == ((), ())
    at = f"{tmp_path}/nodes/{IQN}"
    common = NodeRecord(host="", port=3260, startup="manual", iface="default")
    assert records.records == (
        replace(
            common,
            host="10.0.0.20",
            target=f"{IQN}:a",
            startup="automatic",
            path=f"{at}:a/10.0.0.20,3260,1/default",
        ),
        replace(common, host="10.0.0.21", target=f"{IQN}:b", path=f"{at}:b/10.0.0.21,3260"),
        replace(common, host="fd00::20", target=f"{IQN}:c", path=f"{at}:c/fd00::20,3260,2/default"),
        replace(
            common,
            host="san.example.com",
            port=3261,
            target=f"{IQN}:d",
            path=f"{at}:d/san.example.com,3261,1/default",
        ),
        replace(common, host="10.0.0.30", iface="", path=f"{tmp_path}/send_targets/10.0.0.30,3260/st_config"),
    )


# --- sysfs ------------------------------------------------------------------


class Sysfs:
    """A tree with the kernel's links: class/<kind>/<name> -> devices/platform/hostN/…"""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.driver = "iscsi_tcp"

    def _make(self, kind: str, name: str, device: str, attrs: dict[str, str]) -> Path:
        real = self.root / "devices/platform" / device / kind / name
        real.mkdir(parents=True, exist_ok=True)
        for attr, value in attrs.items():
            (real / attr).write_text(value + "\n")
        link = self.root / "class" / kind / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(real, link.parent))
        return real

    def session(self, host: int, sid: int, local: str | None, **connection: str) -> Path:
        """One session with one connection on one host; returns the connection's folder."""
        self._make("scsi_host", f"host{host}", f"host{host}", {"proc_name": self.driver})
        self._make("iscsi_host", f"host{host}", f"host{host}", {} if local is None else {"ipaddress": local})
        attrs = {"targetname": f"{IQN}:{sid}", "state": "LOGGED_IN", "ifacename": "default", "tpgt": "1"}
        self._make("iscsi_session", f"session{sid}", f"host{host}/session{sid}", attrs)
        return self._make(
            "iscsi_connection",
            f"connection{sid}:0",
            f"host{host}/session{sid}/connection{sid}:0",
            {
                "address": "10.0.0.20",
                "port": "3260",
                "persistent_address": "10.0.0.20",
                "persistent_port": "3260",
                "local_port": "45678",
            }
            | connection,
        )


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def portal(text: str, port: int = 3260) -> Portal:
    return Portal(ipaddress.ip_address(text), port)


def test_a_sessions_four_ends_are_read(sysfs: Sysfs) -> None:
    sysfs.session(host=3, sid=7, local="10.0.0.1")
    (session,) = read_sessions(str(sysfs.root))
    assert (session.sid, session.target, session.state, session.iface) == (
        7,
        f"{IQN}:7",
        "LOGGED_IN",
        "default",
    )
    assert (session.local_address, session.local_port) == (ipaddress.ip_address("10.0.0.1"), 45678)
    assert session.remote == session.persistent == portal("10.0.0.20")


@pytest.mark.parametrize(
    ("driver", "offloaded"),
    [
        ("iscsi_tcp", False),
        ("", False),
        ("iscsi_iser", True),
        ("bnx2i", True),
        ("qedi", True),
        ("cxgb4i", True),
    ],
)
def test_the_driver_of_a_session_says_whether_it_is_offloaded(
    sysfs: Sysfs, driver: str, offloaded: bool
) -> None:
    sysfs.driver = driver
    sysfs.session(host=3, sid=7, local=None if offloaded else "10.0.0.1", local_port="(null)")
    (session,) = read_sessions(str(sysfs.root))
    assert (session.transport, session.is_offloaded) == (driver, offloaded)


def test_each_session_has_its_own_hosts_address(sysfs: Sysfs) -> None:
    sysfs.session(host=11, sid=10, local="fd00:0000:0000:0000:0000:0000:0000:0001", address="fd00::20")
    sysfs.session(host=1, sid=2, local="10.0.0.1")
    two, ten = read_sessions(str(sysfs.root))
    assert (two.sid, str(two.local_address)) == (2, "10.0.0.1")
    assert (ten.sid, str(ten.local_address), ten.remote) == (10, "fd00::1", portal("fd00::20"))


def test_a_redirected_login_shows_where_it_really_went(sysfs: Sysfs) -> None:
    sysfs.session(host=1, sid=1, local="10.0.0.1", address="10.0.0.99", port="3261")
    (session,) = read_sessions(str(sysfs.root))
    assert (session.remote, session.persistent) == (portal("10.0.0.99", 3261), portal("10.0.0.20"))


def test_a_name_as_persistent_address_is_no_portal(sysfs: Sysfs) -> None:
    sysfs.session(host=1, sid=1, local="10.0.0.1", persistent_address="san.example.com")
    (session,) = read_sessions(str(sysfs.root))
    assert (session.remote, session.persistent) == (portal("10.0.0.20"), None)


def test_a_session_on_a_link_is_read_without_the_link(sysfs: Sysfs) -> None:
    zoned = "fe80::20%eth0 . 3260 } }; flush ruleset"
    sysfs.session(host=1, sid=1, local="fe80::1%eth0", address=zoned, persistent_address=zoned)
    (session,) = read_sessions(str(sysfs.root))
    assert session.remote == session.persistent == portal("fe80::20")
    assert session.local_address == ipaddress.ip_address("fe80::1")


@pytest.mark.parametrize("local", ["(null)", "", None])
def test_a_session_that_is_down_shows_where_it_will_connect_again(sysfs: Sysfs, local: str | None) -> None:
    connection = sysfs.session(host=1, sid=1, local=local, local_port="0")
    (connection / "address").unlink()  # the kernel answers ENOTCONN
    (session,) = read_sessions(str(sysfs.root))
    assert (session.remote, session.local_address, session.local_port) == (portal("10.0.0.20"), None, 0)


def test_a_connection_without_any_peer_is_left_out(sysfs: Sysfs) -> None:
    connection = sysfs.session(host=1, sid=1, local=None, address="(null)", persistent_address="(null)")
    (connection / "local_port").unlink()
    assert read_sessions(str(sysfs.root)) == ()


def test_a_session_that_vanishes_while_it_is_read_breaks_nothing(sysfs: Sysfs) -> None:
    sysfs.session(host=1, sid=1, local="10.0.0.1")
    sysfs.session(host=2, sid=2, local="10.0.0.1")
    shutil.rmtree(sysfs.root / "devices/platform/host1")
    assert [s.sid for s in read_sessions(str(sysfs.root))] == [2]


def test_without_the_kernels_module_there_is_no_session(tmp_path: Path) -> None:
    assert read_sessions(str(tmp_path)) == ()


def test_firmware_targets_are_records_on_boot(tmp_path: Path) -> None:
    for name, address in (("target0", "10.0.0.20"), ("target1", "0.0.0.0"), ("target2", "fd00::20")):  # noqa: S104  # an empty slot
        folder = tmp_path / "firmware/ibft" / name
        folder.mkdir(parents=True)
        for attr, value in (("ip-addr", address), ("port", "3260"), ("target-name", f"{IQN}:{name}")):
            (folder / attr).write_text(value + "\n")
    (tmp_path / "firmware/ibft/ethernet0").mkdir()
    records = read_firmware(str(tmp_path))
    assert [(r.host, r.target, r.startup) for r in records] == [
        ("10.0.0.20", f"{IQN}:target0", "onboot"),
        ("fd00::20", f"{IQN}:target2", "onboot"),
    ]
    assert read_firmware(f"{tmp_path}/none") == ()

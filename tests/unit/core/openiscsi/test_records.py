"""open-iscsi's records: whole or torn, ours or not, and never a password."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.core.openiscsi.records import IfaceRecord, NotForUs, Torn, parse_iface, parse_record

PATH = "nodes/iqn/10.0.0.20,3260,1/default"

# as open-iscsi 2.1.8 writes it, shortened
NODE = """\
# BEGIN RECORD 2.1.8
node.name = iqn.2024-01.com.example:a
node.tpgt = 1
node.startup = automatic
node.leading_login = No
iface.iscsi_ifacename = eth7
iface.net_ifacename = ens3
iface.hwaddress = 52:54:00:12:34:56
iface.transport_name = tcp
node.discovery_address = 10.0.0.30
node.discovery_port = 3260
node.discovery_type = send_targets
node.session.auth.authmethod = CHAP
node.session.auth.username = user
node.session.auth.password = topsecret
node.session.timeo.replacement_timeout = 120
node.conn[0].address = 10.0.0.20
node.conn[0].port = 3261
node.conn[0].startup = manual
# END RECORD
"""
SEND_TARGETS = """\
# BEGIN RECORD 2.1.8
discovery.startup = manual
discovery.type = sendtargets
discovery.sendtargets.address = 10.0.0.30
discovery.sendtargets.port = 3260
discovery.sendtargets.auth.authmethod = CHAP
discovery.sendtargets.auth.password = topsecret
# END RECORD
"""
# an iSNS server's address is spelled sendtargets too
ISNS = """\
# BEGIN RECORD 2.1.8
discovery.startup = manual
discovery.type = isns
discovery.sendtargets.address = 10.0.0.31
discovery.sendtargets.port = 3205
# END RECORD
"""


def node(text: str = NODE) -> NodeRecord:
    record = parse_record(text, PATH)
    assert isinstance(record, NodeRecord)
    return record


def test_a_node_record_is_read() -> None:
    assert node() == NodeRecord(
        host="10.0.0.20",
        port=3261,
        target="iqn.2024-01.com.example:a",
        startup="automatic",
        iface="eth7",
        net_ifacename="ens3",
        hwaddress="52:54:00:12:34:56",
        transport="tcp",
        path=PATH,
    )
    assert not node().is_discovery


def test_a_record_that_says_little_is_read_as_that_little() -> None:
    text = "# BEGIN RECORD\nnode.name = iqn.x:a=b\nnode.conn[0].address = 10.0.0.20\n# END RECORD \r\n"
    assert node(text) == NodeRecord(host="10.0.0.20", port=3260, target="iqn.x:a=b", path=PATH)


@pytest.mark.parametrize(("line", "port"), [("discovery.sendtargets.port = 3261\n", 3261), ("", 3260)])
def test_a_discovery_record_is_a_portal_without_a_target(line: str, port: int) -> None:
    record = node(SEND_TARGETS.replace("discovery.sendtargets.port = 3260\n", line))
    assert record == NodeRecord(host="10.0.0.30", port=port, startup="manual", path=PATH)
    assert record.is_discovery


@pytest.mark.parametrize(
    "text",
    [ISNS, ISNS.replace("discovery.type = isns\n", "").replace("sendtargets", "isns")],
    ids=["now", "older"],
)
def test_an_isns_server_is_no_portal_and_no_mistake(text: str) -> None:
    assert parse_record(text, PATH) == NotForUs(PATH, "an iSNS server is not an iSCSI portal")


@pytest.mark.parametrize("text", [NODE, SEND_TARGETS])
def test_every_prefix_of_a_record_is_torn(text: str) -> None:
    for end in range(len(text.rstrip())):
        assert parse_record(text[:end], PATH) == Torn(PATH), text[:end]


@pytest.mark.parametrize("text", ["", "\n", NODE.split("\n", 1)[1], "# END RECORD\n"])
def test_a_record_without_its_first_line_is_torn(text: str) -> None:
    assert parse_record(text, PATH) == Torn(PATH)


def test_a_value_that_looks_like_the_end_does_not_end_the_record() -> None:
    text = NODE.replace("= user", "= # END RECORD")
    assert node(text).host == "10.0.0.20"


def test_what_follows_the_end_is_not_read() -> None:
    assert node(NODE + "node.conn[0].address = 192.0.2.1\n").host == "10.0.0.20"


@pytest.mark.parametrize("text", [NODE, SEND_TARGETS])
def test_a_password_becomes_no_value_of_ours(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = parse_record(text, PATH)
    assert "topsecret" not in repr(record)
    assert not [d for d in gc.get_objects() if type(d) is dict and "node.session.auth.password" in d]


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("fd00::20", "fd00::20"),
        ("FD00:0:0::0020", "fd00::20"),
        ("[fd00::20]", "fd00::20"),
        ("::ffff:10.0.0.20", "10.0.0.20"),  # TCP goes over IPv4
        ("SAN-A.example.com", "san-a.example.com"),
        ("san-a.example.com.", "san-a.example.com"),
        ("SAN-X.", "san-x"),
        ("a" * 1024, "a" * 1024),
    ],
)
def test_a_host_is_made_canonical(written: str, host: str) -> None:
    assert node(NODE.replace("= 10.0.0.20", f"= {written}")).host == host


@pytest.mark.parametrize(
    "change",
    [
        ("address = 10.0.0.20", "address = <empty>"),
        ("node.conn[0].address = 10.0.0.20\n", ""),
        ("address = 10.0.0.20", "address = two words"),
        ("address = 10.0.0.20", "address = ."),
        ("address = 10.0.0.20", "address = [.]"),
        ("address = 10.0.0.20", "address = a\x1bb"),
        ("address = 10.0.0.20", "address = " + "a" * 1025),
        ("port = 3261", "port = 0"),
        ("port = 3261", "port = 65536"),
        ("port = 3261", "port = -1"),
        ("port = 3261", "port = ٣٢٦٠"),
        ("port = 3261", "port = 00000003260"),
        ("node.name = iqn.2024-01.com.example:a\n", ""),
    ],
)
def test_a_whole_record_that_names_no_portal_is_malformed(change: tuple[str, str]) -> None:
    answer = parse_record(NODE.replace(*change), PATH)
    assert isinstance(answer, NotForUs)
    assert answer.malformed
    assert "topsecret" not in repr(answer)


def test_a_record_without_a_port_uses_the_registered_one() -> None:
    assert node(NODE.replace("node.conn[0].port = 3261\n", "")).port == 3260


@pytest.mark.parametrize(
    ("written", "port"), [("1", 1), ("65535", 65535), ("03260", 3260), ("0000003260", 3260)]
)
def test_a_port_is_a_decimal_number(written: str, port: int) -> None:
    assert node(NODE.replace("= 3261", f"= {written}")).port == port


def test_absent_and_empty_interface_fields_are_the_same() -> None:
    absent = NODE.replace("iface.net_ifacename = ens3\n", "")
    empty = NODE.replace("= ens3", "= <empty>")
    assert node(absent) == node(empty)
    assert node(absent).net_ifacename == ""


def test_verify_flow_reports_an_offload_transport() -> None:
    assert node(NODE.replace("transport_name = tcp", "transport_name = bnx2i")).transport == "bnx2i"


def test_the_last_of_two_lines_counts_as_in_open_iscsi() -> None:
    assert node(NODE.replace("# END", "node.conn[0].port = 3262\n# END")).port == 3262


def test_an_iface_record_is_read_or_torn() -> None:
    text = (
        "# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = eth7\niface.net_ifacename = ens3\n"
        "iface.hwaddress = 52:54:00:12:34:56\niface.transport_name = iser\n# END RECORD\n"
    )
    assert parse_iface(text, "ifaces/eth7") == IfaceRecord(
        net_ifacename="ens3", hwaddress="52:54:00:12:34:56", transport="iser"
    )
    assert parse_iface("# BEGIN RECORD\n# END RECORD\n", "ifaces/eth7") == IfaceRecord()
    assert parse_iface(text[:-5], "ifaces/eth7") == Torn("ifaces/eth7")


@given(st.text())
def test_no_text_is_too_odd_to_be_answered(text: str) -> None:
    for whole in (
        text,
        f"# BEGIN RECORD\n{text}\n# END RECORD",
        f"# BEGIN RECORD\nnode.name = {text}\n# END RECORD",
    ):
        assert isinstance(parse_record(whole, PATH), NodeRecord | Torn | NotForUs)
        assert isinstance(parse_iface(whole, PATH), IfaceRecord | Torn)


@given(st.text(alphabet="0123456789-+ ", max_size=8))
def test_a_port_is_in_range_or_refused(port: str) -> None:
    answer = parse_record(NODE.replace("= 3261", f"= {port}"), PATH)
    assert isinstance(answer, NotForUs) or (isinstance(answer, NodeRecord) and 1 <= answer.port <= 65535)

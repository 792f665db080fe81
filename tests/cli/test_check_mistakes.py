"""``check``: all files together as the daemon decides, and the mistakes that people make in one."""

from __future__ import annotations

import os

import pytest

from iscsi_ipsec.cli.verbs import check as check_verb
from tests.cli.conftest import Instance
from tests.support.reported import needs_root

KEY = 'id_type = "ID_FQDN"\nid = "db1.example.com"\nkey = "q7nq5KCFsv1nVsRkQd0Yx1VHzCkHNl9e"\n'
GROUP = 'group = true\nkey = "rBxIDUg4wMnbDOSB0c2LJXgXbfvkHdHt"\n'
SAN = 'portals = ["10.0.0.20"]\n'


def key(text: str) -> dict[str, str]:
    return {"psk.d/db1.toml": text}


def check(instance: Instance, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        instance.put(instance.root / "etc" / name, text)
    answer = instance.run("check", "--nodes-dir", str(instance.root / "nodes"))
    lines = [line.replace(f"{instance.root}/etc/", "") for line in answer.out.splitlines()]
    assert answer.code == (1 if "0 errors" not in lines[-1] and "no problems" not in lines[-1] else 0), (
        answer.all
    )
    return lines[:-1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"portal.d/san.toml": 'portals = ["10.0.0.20"]\npsk = "nothere"\n'}, "portal.d/san.toml:2: the policy names"),
        ({"portal.d/san.toml": SAN}, "portal.d/san.toml:1: no key applies to 10.0.0.20:3260"),
        ({"portal.d/net.toml": 'portals = ["10.9.0.0/24"]\n'}, "portal.d/net.toml:1: no key applies to 10.9.0.0/24:3260"),
        (
            {"portal.d/name.toml": 'portals = ["san.example.com:3261"]\n'},
            "portal.d/name.toml:1: no key applies to san.example.com:3261",
        ),
        (
            {"portal.d/net.toml": 'portals = ["10.9.0.0/24"]\n', "psk.d/g.toml": f'{GROUP}portals = ["10.9.0.0/25"]\n'},
            "portal.d/net.toml:1: no key applies to 10.9.0.128:3260, in 10.9.0.0/24:3260",
        ),
        (
            {
                "portal.d/net.toml": 'portals = ["10.9.0.0/24"]\n', "psk.d/g.toml": GROUP,
                "psk.d/db1.toml": f'{KEY}portals = ["10.9.0.64/28"]\n',
                "psk.d/db2.toml": f'{KEY.replace("db1", "db2")}portals = ["10.9.0.64/27"]\n',
            },
            "several keys with a name as identity apply to 10.9.0.64/28:3260",
        ),
        (
            {
                "portal.d/net.toml": 'portals = ["10.9.0.0/24"]\n', "psk.d/g.toml": f'{GROUP}portals = ["10.8.0.0/16"]\n',
                "portal.d/half.toml": 'portals = ["10.9.0.0/25"]\npsk = "db1"\n', "psk.d/db1.toml": f'{KEY}portals = ["10.9.0.0/25"]\n',
            },
            "portal.d/net.toml:1: no key applies to 10.9.0.128:3260, in 10.9.0.0/24:3260",
        ),
        ({"psk.d/a.toml": GROUP, "psk.d/b.toml": GROUP}, "psk.d/b.toml: "),
        ({"psk.d/db1.toml": KEY, "psk.d/db1-old.toml": KEY}, "psk.d/db1.toml: "),
        ({"psk.d/db1.toml": KEY, "psk.d/db2.toml": KEY.replace("db1", "DB1")}, "psk.d/db2.toml: "),
        (
            {"psk.d/db1.toml": KEY, "psk.d/db2.toml": KEY.replace("db1", "db2"), "portal.d/san.toml": SAN},
            "several keys with a name as identity apply to 10.0.0.20:3260",
        ),
        (
            {"psk.d/g.toml": GROUP, "portal.d/a.toml": SAN, "portal.d/b.toml": SAN},
            "portal.d/b.toml:1: 10.0.0.20:3260 is in portal.d/a.toml too",
        ),
        (
            {"psk.d/g.toml": GROUP, "portal.d/a.toml": SAN, "portal.d/b.toml": f'{SAN}role = "target"\n'},
            "portal.d/b.toml:1: 10.0.0.20:3260 is in portal.d/a.toml too, with role initiator, and here with target",
        ),
        (
            {
                "psk.d/g.toml": f"{GROUP}security_flags = 0x33\n",
                "portal.d/a.toml": f'{SAN}esp_proposals = ["aes256gcm16"]\n',
            },
            "portal.d/a.toml:2: the flags ask for PFS, but an ESP proposal has no DH group",
        ),
    ],
)  # fmt: skip
def test_a_conflict_between_files_is_an_error_with_file_and_line(
    instance: Instance, files: dict[str, str], said: str
) -> None:
    lines = check(instance, files)
    assert [line for line in lines if said in line], lines


def test_a_machine_without_routes_finds_the_same(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_verb, "_sources", lambda wanted: {})
    files = {
        "psk.d/g.toml": f"{GROUP}security_flags = 0x33\n",
        "portal.d/a.toml": f'{SAN}esp_proposals = ["aes256gcm16"]\n',
    }
    assert [line for line in check(instance, files) if "no DH group" in line]


def test_files_that_fit_together_are_no_problem(instance: Instance) -> None:
    files = {
        "psk.d/db1.toml": KEY, "psk.d/g.toml": f'{GROUP}portals = ["10.9.0.0/24"]\n',
        "portal.d/san.toml": f'{SAN}psk = "db1"\n', "portal.d/net.toml": 'portals = ["10.9.0.0/24"]\npsk = "g"\n',
        "iscsi-ipsecd.toml": "resync_interval = 60\n", "psk.d/README": "text\n",
    }  # fmt: skip
    assert [line for line in check(instance, files) if "a group key is in use" not in line] == []


FULL = 'id_type = "ID_FQDN"\nid = "db1.example.com"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{FULL}key = "0xDEADBEEF00112233"\n', ":3: key begins with 0x"),
        (f'{FULL}key = """a key of twenty bytes\n"""\n', ":3: key begins or ends with a blank"),
        (f'{FULL}key = "a key of \\u0000 twenty bytes"\n', ":3: key holds a NUL"),
        (f'{FULL}key = "CHANGEME please, soon"\n', ":3: the key is still the sample's"),
        (f"{KEY}security_flags = 0x22\n", ":4: VALID is unset"),
        (f'{KEY}security_flags = ["MAIN_MODE_ENABLED", "AGGRESSIVE_MODE_ENABLED"]\n', ":4: VALID is unset"),
        (f"{KEY}security_flags = 3.0\n", ":4: security_flags must be a number or a list of names"),
        (f'{KEY}security_flags = "0x37"\n', "write 0x37 without quotes"),
        (f'{KEY}security_flags = "VALID,IKE_IPSEC_ENABLED"\n', 'write a list: ["VALID", "IKE_IPSEC_ENABLED"]'),
        (f'{KEY}key = "b"\n', ':4: not valid TOML: "key" is set twice, in lines 3 and 4'),
        (f"[psk]\n{KEY}", ':1: unknown key "psk" (the keys stand without a section'),
        (f'{FULL}key.text = "q7nq5KCFsv1nVsRkQd0Yx1VHzCkHNl9e"\n', ":3: key must be a text"),
        (f'{FULL}key_file = "/root/nothere"\n', ":3: /root/nothere: no such file"),
        (f"{FULL}key = \u201cq7nq5KCFsv1nVsRkQd0Yx1VHzCkHNl9e\u201d\n", ":3: not valid TOML: the quotes are typographic"),
        (f'{FULL}key = "q7nq5KCFsv1nVsRkQd0Yx1VHzCkHNl9e\n', ":3: not valid TOML: the text does not end"),
        ('\u0456d_type = "ID_FQDN"\nid = "x"\nkey = "x"\n', ":1: not valid TOML: a character outside of quotes is not ASCII"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_key_file_has_its_line_and_a_word_that_helps(
    instance: Instance, text: str, said: str
) -> None:
    lines = check(instance, key(text))
    assert [line for line in lines if said in line], lines
    assert not [line for line in lines if "DEADBEEF" in line or "q7nq5" in line]


@pytest.mark.parametrize(
    ("kind", "id", "said"),
    [
        ("ID_IPV4_ADDR", "0.0.0.0", "stands for any address"), ("ID_IPV6_ADDR", "::", "stands for any address"),  # noqa: S104  # what must be refused
        ("ID_IPV4_ADDR", "224.0.0.1", "is a multicast address"), ("ID_IPV4_ADDR", "255.255.255.255", "is the broadcast address"),
        ("ID_IPV6_ADDR", "::ffff:10.0.0.5", "write 10.0.0.5"), ("ID_FQDN", "%any", "stands for anybody"),
        ("ID_FQDN", "fqdn:db1.example.com", "write the name alone, 'db1.example.com'"),
        ("ID_FQDN", "db1.example.com.", "write 'db1.example.com'"), ("ID_FQDN", "*.example.com", "holds a wildcard"),
        ("ID_USER_FQDN", "db1", "is not of the form user@host"), ("ID_FQDN", "10.0.0.5", "looks like an address"),
    ],
)  # fmt: skip
def test_an_identity_that_no_single_host_has_is_refused_with_what_to_write(
    instance: Instance, kind: str, id: str, said: str
) -> None:
    text = f'id_type = "{kind}"\nid = "{id}"\nkey = "q7nq5KCFsv1nVsRkQd0Yx1VHzCkHNl9e"\n'
    (line,) = check(instance, key(text))
    assert line.startswith("psk.d/db1.toml:2: ")
    assert said in line
    if kind != "ID_USER_FQDN" and id != "10.0.0.5":
        lines = check(instance, {"psk.d/db1.toml": KEY, "portal.d/x.toml": f'{SAN}target_id = "{id}"\n'})
        assert [line for line in lines if line.startswith("portal.d/x.toml:2: target_id: ")], lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{SAN}psk = "g.toml"\n', ':2: psk is the name of a file in psk.d, without .toml (write psk = "g")'),
        (f'{SAN}psk = "psk.d/g.toml"\n', ":2: psk is the name of a file in psk.d, without folder"),
        (f'{SAN}esp_proposals = ["null-sha256-modp2048"]\n', ':2: "null-sha256-modp2048" offers null'),
        (f'{SAN}esp_proposals = ["des-md5-modp768"]\n', "offers des, md5, modp768, which can be broken"),
        (f'{SAN}ike_proposals = ["3des-sha1-modp1024"]\n', "offers 3des, sha1, modp1024, which can be broken"),
        (f'{SAN}role = "target"\ninitiators = ["0.0.0.0/0"]\n', ":3: initiators: '0.0.0.0/0' stands for anybody"),
        (f'{SAN}role = "server"\n', ':2: role must be "initiator" or "target"'),
        (f'{SAN}preset = "netapp"\n', 'did you mean "ontap"?'),
        ('portals = ["10.0.0.20/24"]\n', "did you mean 10.0.0.0/24?"),
        ('portals = ["0.0.0.0"]\n', "stands for any address"),
        ('portals = ["fe80::1%eth0"]\n', "has a zone"),
        ('portals = "10.0.0.20"\n', ":1: portals must be a list"),
        ('portals = ["10.0.0.20:3260,1"]\n', "leave out the comma"),
        ('portals = ["iqn.2026-01.com.example:disk1"]\n', "the name of a target"),
        ('portals = ["iscsi://10.0.0.20"]\n', "is a URL"),
        ("portals = [10.0.0.20]\n", ":1: not valid TOML: a text needs quotes"),
        ('portals = ["10.0.0.20-10.0.0.30"]\n', "is a range"),
        ('portals = ["fe80::1"]\n', "link-local"),
        ('portals = ["255.255.255.255"]\n', "broadcast"),
        ('portals = ["fd00::20:3260"]\n', "write [fd00::20]:3260"),
        ('portals = ["127.0.0.1"]\n', "this host itself"),
        (f'{SAN}flags = ["VALID"]\n', 'did you mean "security_flags"?'),
        (f'{SAN}key = "q7nq5"\n', "keys belong in a file of psk.d"),
        (f"{SAN}security_flags = 0x01\n", ":2: IKE_IPSEC_ENABLED is unset"),
        (f'{SAN}esp_proposals = ["aes256gcm16"]\nsecurity_flags = 0x33\n', ":2: the flags ask for PFS"),
        (f'{SAN}esp_proposals = ["aes256gcm16-modp2048"]\nsecurity_flags = 0x23\n', ":2: PFS_ENABLED is unset"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_policy_has_a_word_that_helps(instance: Instance, text: str, said: str) -> None:
    lines = check(instance, {"psk.d/g.toml": GROUP, "portal.d/x.toml": text})
    assert [line for line in lines if said in line], lines


def test_a_file_whose_name_the_daemon_ignores_is_reported(instance: Instance) -> None:
    lines = check(instance, {"psk.d/db1.conf": KEY, "psk.d/db2.TOML": KEY, "psk.d/db3.toml~": KEY})
    assert [line.split(":")[0] for line in lines] == ["psk.d/db1.conf", "psk.d/db2.TOML", "psk.d/db3.toml~"]


def test_a_wrong_mode_hides_no_mistake(instance: Instance) -> None:
    path = instance.put(instance.psk / "db1.toml", "id = 1\n", 0o644)
    answer = instance.run("check", str(path))
    assert "chmod 600" in answer.out
    assert f"{path}:1: id must be a text" in answer.out


@needs_root
def test_a_file_elsewhere_is_judged_by_its_content_whoever_owns_it(instance: Instance) -> None:
    """As Ansible uploads it before it asks ``validate``."""
    instance.root.chmod(0o755)
    path = instance.put(instance.root / "home/.ansible/tmp/source", KEY, 0o644)
    for owned in (path, path.parent, path.parent.parent):
        os.chown(owned, 65534, 65534)
    assert instance.run("check", str(path)).code == 0
    path.write_text(KEY.replace("ID_FQDN", "ID_FDQN"))
    answer = instance.run("check", str(path))
    assert answer.code == 1
    assert "did you mean" in answer.out
    assert "chown" not in answer.out


@needs_root
def test_who_may_not_read_the_folders_gets_exit_code_5(instance: Instance) -> None:
    instance.put(instance.psk / "db1.toml", KEY)
    instance.root.chmod(0o755)
    os.seteuid(65534)
    try:
        answer = instance.run("check")
    finally:
        os.seteuid(0)
    assert answer.code == 5

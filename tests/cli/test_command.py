"""The command against a status file and a lock of the test's making: words, columns and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsi_ipsec.adapters import files
from iscsi_ipsec.cli.main import build_parser
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.report.schema import SCHEMA
from tests.support import reported
from tests.support.fake_charon import FakeCharon
from tests.support.netlab.waiting import wait_until
from tests.support.reported import (
    FINE,
    NO_CHARON,
    NOBODY,
    NOT_PERMITTED,
    NOT_RUNNING,
    ORPHANED,
    PROBLEMS,
    USAGE,
    Instance,
    needs_root,
    write_session,
)
from tests.support.values import (
    CLEAR,
    SOURCE,
    choice,
    derived,
    per_id,
    policy,
    portal,
    record,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here
KEY = 'id_type = "ID_FQDN"\nid = "db1"\nkey = "canary-key-0123456789"\n'


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# -- exit codes that verbs share


READERS = (["status"], ["explain", "10.0.0.20"], ["release", "10.0.0.20"], ["verify"])


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_without_a_daemon_the_exit_code_is_3(instance: Instance, words: list[str]) -> None:
    answer = instance.call(*words)
    assert answer.code == NOT_RUNNING
    assert "not running" in answer.err
    assert "systemctl start iscsi-ipsecd" in answer.err


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_status_file_that_a_dead_daemon_left_is_not_believed(instance: Instance, words: list[str]) -> None:
    instance.tell()
    instance.write("run/daemon.lock", "")
    assert instance.call(*words).code == NOT_RUNNING


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_daemon_without_status_has_only_just_started(instance: Instance, words: list[str]) -> None:
    instance.run_daemon()
    answer = instance.call(*words)
    assert answer.code == NOT_RUNNING
    assert "just started" in answer.err


@needs_root
@pytest.mark.parametrize("words", [*READERS, ["wait", "--timeout", "0"]], ids=" ".join)
def test_another_user_is_not_permitted(running: Instance, words: list[str]) -> None:
    build_parser(words[:1])  # loads the verb: the checkout may be out of that user's reach
    with as_nobody():
        answer = running.call(*words)
    assert answer.code == NOT_PERMITTED
    assert "root" in answer.err


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_status_of_another_version_is_not_read(running: Instance, words: list[str]) -> None:
    running.tell(schema=SCHEMA + 1)
    answer = running.call(*words)
    assert answer.code == PROBLEMS
    assert "another version" in answer.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["explain"],
        ["explain", "10.0.0.0/24"],
        ["explain", "san.example.com"],
        ["release"],
        ["release", "nonsense!"],
        ["flags"],
        ["flags", "0x80"],
        ["flags", "NONSENSE"],
        ["wait", "--timeout", "soon"],
        ["wait", "nonsense!"],
        ["check", "/nonexistent/file.toml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(running: Instance, words: list[str]) -> None:
    answer = running.call(*words)
    assert answer.code == USAGE
    assert answer.err
    assert not answer.out


def test_help_names_every_verb_and_the_exit_codes(instance: Instance) -> None:
    answer = instance.call("--help")
    assert answer.code == FINE
    for word in ("status", "verify", "explain", "check", "plan", "wait", "release", "flags", "exit codes"):
        assert word in answer.out


def test_places_may_stand_before_and_behind_the_verb(running: Instance) -> None:
    before = running.call("explain", "10.0.0.20")
    behind = running.call("explain", "10.0.0.20", *running.places, places=[])
    half = len(running.places) // 2
    both = running.call("explain", "10.0.0.20", *running.places[half:], places=running.places[:half])
    assert before == behind == both
    assert before.code == FINE


def test_a_place_behind_the_verb_beats_one_before_it(running: Instance) -> None:
    answer = running.call("explain", "10.0.0.20", places=[*running.places, "--runtime-dir", "/nonexistent"])
    assert answer.code == NOT_RUNNING
    behind = ["explain", "10.0.0.20", "--runtime-dir", str(running.root / "run")]
    assert running.call(*behind, places=["--runtime-dir", "/nonexistent"]).code == FINE


# -- status


def test_no_colour_goes_to_what_is_no_terminal(running: Instance, charon: FakeCharon) -> None:
    running.tell(ORPHANED)
    for words in (["status"], ["explain", "10.0.0.20"], ["flags", "0x57"]):
        answer = running.call(*words)
        assert "\x1b" not in answer.out + answer.err


def test_errors_are_coloured_on_a_terminal(
    running: Instance, charon: FakeCharon, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.tell(ORPHANED)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[31m" in running.call("status").out


def test_an_unreachable_charon_is_exit_code_4(running: Instance) -> None:
    answer = running.call("status")
    assert answer.code == NO_CHARON
    assert "unreachable" in answer.out


def test_status_as_json_is_the_daemons_document(running: Instance, charon: FakeCharon) -> None:
    reported = running.tell()
    document = json.loads(running.call("status", "--json").out)
    assert document.keys() == reported.keys()
    (row,) = document["portals"]
    assert (row["portal"], row["protected"], row["problem"]) == ("10.0.0.20:3260", True, None)


def test_without_portals_status_says_why(running: Instance, charon: FakeCharon) -> None:
    running.tell(derived())
    answer = running.call("status")
    assert answer.code == FINE
    assert "no portals yet" in answer.out


# -- explain


@pytest.mark.parametrize("text", ["10.0.0.20", "10.0.0.20:3260"])
def test_explain_tells_files_and_reasons(running: Instance, text: str) -> None:
    answer = running.call("explain", text)
    assert answer.code == FINE
    for words in (
        "node record nodes/10.0.0.20,3260",
        "psk.d/10.0.0.1.toml",
        "ID_IPV4_ADDR",
        "IKEv2",
        "transport",
    ):
        assert words in answer.out


def test_explain_as_json_lists_every_row_of_the_portal(running: Instance) -> None:
    (row,) = json.loads(running.call("explain", "--json", "10.0.0.20").out)
    assert row["reasons"]
    assert row["origins"] == ["node record nodes/10.0.0.20,3260"]


def test_explain_of_an_unknown_portal_is_a_problem(running: Instance) -> None:
    answer = running.call("explain", "10.9.9.9")
    assert answer.code == PROBLEMS
    assert "10.9.9.9:3260 is unknown" in answer.err


@pytest.mark.parametrize("unnamed", ["10.9.9.9", "[fd00:9::9]:3260"])
def test_explain_of_an_unnamed_portal_tells_what_keeps_it_closed(running: Instance, unnamed: str) -> None:
    nets = policy("10.9.9.0/24", "fd00:9::/64", flags=choice())
    opened = policy("10.9.9.128/25", name="open", flags=CLEAR)
    running.tell(derived(per_id(SOURCE), nets, opened))
    assert "which is closed" in running.call("explain", unnamed).err
    assert "which is closed" not in running.call("explain", "10.9.9.200").err
    assert "which is closed" not in running.call("explain", "10.9.9.9:860").err


def test_explain_of_a_closed_portal_tells_the_problem(running: Instance) -> None:
    running.tell(ORPHANED)
    answer = running.call("explain", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "stays closed" in answer.out


# -- wait


def signature(path: Path) -> str:
    (found,) = [f for f in files.find_config([str(path.parent)]).files if f.path == str(path)]
    return found.stat.signature


def row_of(path: Path, state: str = "ok") -> dict[str, str]:
    return {"path": str(path), "kind": "psk", "state": state, "signature": signature(path)}


def test_wait_returns_at_once_when_everything_is_in_place(running: Instance) -> None:
    key = running.write("etc/psk.d/db1.toml", KEY)
    running.tell(files=[row_of(key)])
    assert running.call("wait", "--timeout", "0").code == FINE
    assert running.call("wait", "--timeout", "0", "10.0.0.20").code == FINE


def test_wait_without_a_daemon_gives_up_saying_so(instance: Instance) -> None:
    answer = instance.call("wait", "--timeout", "0")
    assert answer.code == NOT_RUNNING
    assert "systemctl start iscsi-ipsecd" in answer.err


@pytest.mark.parametrize("time", ["nan", "-5", "inf", "soon"])
def test_a_time_that_is_none_is_wrong_usage(running: Instance, time: str) -> None:
    answer = running.call("wait", "--timeout", time)
    assert answer.code == USAGE
    assert "number of seconds" in answer.err
    assert len(answer.err.splitlines()) == 2


def test_wait_waits_for_the_settings_too(running: Instance) -> None:
    assert running.call("wait").code == FINE
    running.write("etc/iscsi-ipsecd.toml", "require_ipsec = true\n")
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    assert "iscsi-ipsecd.toml" in answer.err


def test_wait_tells_what_is_missing(running: Instance) -> None:
    document = running.tell(ORPHANED)
    document["charon"]["reachable"] = False
    document["guard"]["installed"] = False
    running.tell(ORPHANED, charon=document["charon"], guard=document["guard"])
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    for words in ("charon is unreachable", "guard is not installed", "10.0.0.20:3260: no file covers"):
        assert words in answer.err


@pytest.mark.parametrize("change", ["new", "changed", "removed"])
def test_wait_waits_for_a_file_that_the_daemon_has_not_seen(running: Instance, change: str) -> None:
    key = running.write("etc/psk.d/db1.toml", KEY)
    running.tell(files=[] if change == "new" else [row_of(key)])
    if change == "changed":
        running.write("etc/psk.d/db1.toml", KEY + "# more\n")
    if change == "removed":
        key.unlink()
    answer = running.call("wait", "--timeout", "0")
    assert answer.code == PROBLEMS
    assert f"has not read the current version of {key}" in answer.err


def test_wait_for_an_unmanaged_portal_says_that_nothing_manages_it(running: Instance) -> None:
    answer = running.call("wait", "--timeout", "0", "10.9.9.9")
    assert answer.code == PROBLEMS
    assert "10.9.9.9:3260 is not managed" in answer.err


def test_waiting_for_one_portal_does_not_wait_for_another(running: Instance) -> None:
    running.tell(derived(per_id(SOURCE), record(), record("10.0.0.21"), sources={"10.0.0.21": None}))
    assert running.call("wait", "--timeout", "0", "10.0.0.20").code == FINE
    assert running.call("wait", "--timeout", "0").code == PROBLEMS


def test_wait_returns_when_the_daemon_is_done(running: Instance) -> None:
    running.tell(ORPHANED)
    daemon = threading.Timer(0.1, running.tell)
    daemon.start()
    answer = running.call("wait", "--timeout", "60")
    daemon.join()
    assert answer.code == FINE


def test_wait_as_json_lists_what_is_missing(running: Instance) -> None:
    assert json.loads(running.call("wait", "--json", "--timeout", "0").out) == {"ready": True, "missing": []}
    running.tell(ORPHANED)
    reported = json.loads(running.call("wait", "--json", "--timeout", "0").out)
    assert reported["ready"] is False
    assert len(reported["missing"]) == 1


# -- release


def test_release_asks_the_daemon_and_returns_when_it_is_done(running: Instance) -> None:
    running.tell(ORPHANED)
    requests = running.root / "run/requests"
    asked: list[str] = []

    def daemon() -> None:
        (request,) = wait_until(
            lambda: [p for p in requests.iterdir() if not p.name.startswith(".")], "a request", timeout=60
        )
        asked.append(request.read_text())
        running.tell(derived(record()))

    thread = threading.Thread(target=daemon)
    thread.start()
    answer = running.call("release", "10.0.0.20")
    thread.join()
    assert answer.code == FINE
    assert asked == ["10.0.0.20:3260\n"]
    assert "10.0.0.20:3260 is released" in answer.out


def test_a_covered_portal_is_not_released(running: Instance) -> None:
    running.tell(derived(per_id(SOURCE), record(), policy("10.0.0.20", name="san")))
    answer = running.call("release", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "still covered by portal.d/san.toml" in answer.err
    assert not list((running.root / "run/requests").iterdir())


def test_a_released_portal_that_require_ipsec_keeps_closed_says_so(running: Instance) -> None:
    running.tell(ORPHANED)
    requests = running.root / "run/requests"

    def daemon() -> None:
        wait_until(lambda: list(requests.iterdir()), "a request", timeout=60)
        running.tell(derived(record(), settings=Settings(require_ipsec=True)))

    thread = threading.Thread(target=daemon)
    thread.start()
    answer = running.call("release", "10.0.0.20")
    thread.join()
    assert answer.code == PROBLEMS
    assert "forgotten, but stays closed" in answer.err
    assert "require_ipsec" in answer.err


def test_a_session_that_would_be_unencrypted_is_shown_before_a_release(running: Instance) -> None:
    running.tell(ORPHANED)
    write_session(running.root / "sys", 7, "10.0.0.20")
    for more, code in ((), PROBLEMS), (("--dry-run",), FINE):
        answer = running.call("release", "10.0.0.20", *more)
        assert answer.code == code
        assert "session 7, iqn.2026-01.com.example:disk: sdx" in answer.err
    assert not list((running.root / "run/requests").iterdir())


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["shwo", "status"], "one of:"), (["--config-dir", "plan", "statsu"], "did you mean status?")],
)
def test_a_mistyped_verb_is_one_line_and_a_hint(instance: Instance, words: list[str], hint: str) -> None:
    answer = instance.call(*words, places=[])
    assert answer.code == USAGE
    assert f'there is no verb "{words[-1] if hint != "one of:" else words[0]}"' in answer.err
    assert hint in answer.err
    assert len(answer.err.splitlines()) == 2


def test_the_help_of_a_verb_leaves_out_what_all_verbs_take(instance: Instance) -> None:
    answer = instance.call("release", "--help", places=[])
    assert "--config-dir" not in answer.out
    assert "unencrypted from then on" in " ".join(answer.out.split())


def test_a_full_disk_below_standard_output_is_no_traceback(running: Instance) -> None:
    command = [sys.executable, "-m", "iscsi_ipsec.cli.main", *running.places, "status"]
    with open("/dev/full", "w") as full:  # a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == PROBLEMS
    assert done.stderr == "iscsi-ipsec: cannot write the answer: No space left on device\n"


def test_control_c_is_no_traceback(running: Instance) -> None:
    running.tell(ORPHANED)
    command = [sys.executable, "-m", "iscsi_ipsec.cli.main", *running.places, "wait", "--timeout", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: _has_loaded(process.pid), "the command waits")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def _has_loaded(pid: int) -> bool:
    """Whether the process sleeps between two looks."""
    return (
        "hrtimer" in Path(f"/proc/{pid}/wchan").read_text()
        or "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    )


def test_an_unmanaged_portal_need_not_be_released(running: Instance) -> None:
    running.tell(derived(record()))
    answer = running.call("release", "10.0.0.20")
    assert answer.code == PROBLEMS
    assert "not managed" in answer.err


# -- check


def test_check_tells_every_problem_of_every_file_by_line(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", 'id_type = "ID_FDQN"\nid = "x"\nkey_hex = "canary"\n')
    policy = instance.write("etc/portal.d/san.toml", 'portals = ["10.0.0.20"]\nrole = "server"\n')
    settings = instance.write("etc/iscsi-ipsecd.toml", "\nguard = 1\n")
    answer = instance.call("check")
    assert answer.code == PROBLEMS
    reported = answer.out.splitlines()
    assert [line.split(": ", 1)[0] for line in reported] == [
        f"{settings}:2",
        f"{key}:1",
        f"{key}:3",
        f"{policy}:2",
    ]
    assert 'did you mean "ID_FQDN"?' in answer.out
    assert "canary" not in answer.out + answer.err


def test_check_of_good_files_says_how_many(instance: Instance) -> None:
    instance.write("etc/psk.d/db1.toml", KEY)
    answer = instance.call("check")
    assert (answer.code, answer.out) == (FINE, "1 files, no problems\n")


def test_check_takes_files_and_folders(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY)
    policy = instance.write("etc/portal.d/san.toml", 'portals = ["x y"]\n')
    assert instance.call("check", str(key)).code == FINE
    answer = instance.call("check", str(policy), str(key.parent))
    assert answer.code == PROBLEMS
    assert answer.out.startswith(f"{policy}:1: ")


def test_check_takes_a_file_for_what_it_looks_like_in_any_folder(instance: Instance) -> None:
    assert instance.call("check", str(instance.write("a.toml", KEY))).code == FINE
    assert instance.call("check", str(instance.write("b.toml", 'portals = ["10.0.0.20"]\n'))).code == FINE


def test_check_tells_a_weak_key_but_does_not_fail_for_it(instance: Instance) -> None:
    instance.write("etc/psk.d/db1.toml", KEY.replace("canary-key-0123456789", "short"))
    answer = instance.call("check")
    assert answer.code == FINE
    assert "guessed" in answer.out


@pytest.mark.parametrize("line", ['key_hex = "0x"', 'key_file = "empty.key"'])
def test_check_fails_for_an_empty_key_as_the_daemon_does(instance: Instance, line: str) -> None:
    instance.write("etc/psk.d/empty.key", "\n")
    instance.write("etc/psk.d/db1.toml", f'id_type = "ID_FQDN"\nid = "db1"\n{line}\n')
    assert instance.call("check").code == PROBLEMS


def test_check_tells_wrong_rights_with_the_command_that_mends_them(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY, 0o644)
    answer = instance.call("check")
    assert answer.code == PROBLEMS
    assert f"chmod 600 {key}" in answer.out


def test_check_as_json_has_file_and_line(instance: Instance) -> None:
    key = instance.write("etc/psk.d/db1.toml", KEY + "nonsense = 1\n")
    (row,) = json.loads(instance.call("check", "--json").out)
    assert (row["file"], row["line"], row["code"], row["severity"]) == (str(key), 4, "unknown-key", "error")


# -- flags


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["0x57"], "0x57  VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED PFS_ENABLED TUNNEL_MODE_PREFERRED", "IKEv1 main, tunnel mode, PFS"),
        (["VALID", "IKE_IPSEC_ENABLED"], "0x03  VALID IKE_IPSEC_ENABLED", "IKEv2, transport (tunnel where an outer address is set) mode, no PFS"),
        (["0x01"], "0x01  VALID", "IKE_IPSEC_ENABLED is unset: IPsec is not required, clear text is allowed"),
        (["0"], "0x00  (none)", "VALID is unset: not specified, the next source decides"),
    ],
)  # fmt: skip
def test_flags_are_decoded_and_encoded(instance: Instance, words: list[str], first: str, second: str) -> None:
    answer = instance.call("flags", *words)
    assert (answer.code, answer.out.splitlines()) == (FINE, [first, second])


def test_both_of_a_pair_are_decoded_and_refused(instance: Instance) -> None:
    answer = instance.call("flags", "0x0F")
    assert answer.code == PROBLEMS
    assert "refused: MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED" in answer.out


def test_flags_as_json(instance: Instance) -> None:
    reported = json.loads(instance.call("flags", "--json", "0x2B").out)
    assert reported["value"] == 0x2B
    assert reported["meaning"] == {
        "required": True,
        "ike": "IKEv1 aggressive",
        "mode": "transport",
        "pfs": False,
    }
    assert json.loads(instance.call("flags", "--json", "0x61").out)["problem"]


def test_a_portal_is_named_alike_everywhere(running: Instance) -> None:
    running.tell(derived(per_id("db1"), record("fd00::20")))
    for text in ("fd00::20", "[fd00::20]", "[FD00:0::20]:3260"):
        (row,) = json.loads(running.call("explain", "--json", text).out)
        assert row["portal"] == str(portal("fd00::20")) == "[fd00::20]:3260"


@pytest.mark.parametrize("verb", ["status", "wait", "explain", "flags"])
def test_a_verb_does_not_load_what_only_the_daemon_needs(verb: str) -> None:
    """Scripts call the command again and again, and pyroute2 alone is half of the daemon's loading."""
    verbs = f"from iscsi_ipsec.cli import main; main.build_parser([{verb!r}])"
    heavy = {"pyroute2", "watchdog", "sqlite3", "tomllib"}
    # less what any Python here has: one that measures coverage needs some of them itself
    assert not heavy & (loaded_by(verbs) - loaded_by("pass"))


def test_the_daemon_loads_no_event_loop_no_web_and_no_tls() -> None:
    """A fifth of a second and 13 MB, which its libraries would bring and it has no use for."""
    unused = {"asyncio", "ssl", "http", "email", "pyroute2.iproute", "pyroute2.netlink.nlsocket"}
    assert not unused & (loaded_by("import iscsi_ipsec.service.main") - loaded_by("pass"))


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())

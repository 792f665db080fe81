"""Output for terminals only: the status that refreshes, and progress that leaves nothing behind."""

from __future__ import annotations

import os
import time

from tests.support.admin import ROW, key_file, portal_file
from tests.support.ike import KEY_A
from tests.support.netlab import Charon, Daemon, Terminal, wait_until
from tests.support.netlab.daemon import command

CLEAR_SCREEN, CLEAR_LINE, CONTROL_C = "\x1b[H\x1b[2J", "\r\x1b[K", "\x03"
RED = "\x1b[31m"


def on_terminal(daemon: Daemon, verb: str, *words: str) -> Terminal:
    argv = daemon.node.argv([*command("iscsi-ipsec"), verb, *daemon.options, *words])
    return Terminal(argv, env={"TERM": "xterm", "COLUMNS": "160"})


def test_the_watched_status_follows_and_outlives_a_restart_of_the_daemon(
    charon: Charon, daemon: Daemon
) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    with on_terminal(daemon, "status", "--watch") as terminal:

        def screen() -> str:
            """The present screens; the last one may be incomplete."""
            return terminal.text.split(CLEAR_SCREEN)[-1]

        wait_until(lambda: f"{RED}{ROW}" in screen() and "no-key" in screen(), "the problem, in red")
        daemon.put_key("a", key_file("a.lab", KEY_A))
        wait_until(lambda: ROW in screen() and "ready" in screen(), "the key shows by itself")
        assert "no-key" not in screen()
        daemon.terminate()
        wait_until(lambda: "not running" in screen(), "the daemon's end is reported")
        daemon.start()
        wait_until(lambda: ROW in screen(), "and its return")
        terminal.press(CONTROL_C)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text


MANY = 4000


def test_waiting_shows_the_missing_things_and_wipes_the_line(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file(psk="a"))
    daemon.start()
    with on_terminal(daemon, "wait", "--timeout", "60") as terminal:
        wait_until(lambda: f"waiting: {ROW}: " in terminal.text, "it says what it waits for")
        daemon.put_key("a", key_file("a.lab", KEY_A))
        assert terminal.end() == 0
        assert terminal.text.endswith(CLEAR_LINE)


def test_setting_a_key_shows_the_reason_for_waiting(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    charon.terminate()
    words = ("set", "--id", "a.lab", "--generate", "--wait", "--timeout", "60")
    with on_terminal(daemon, "psk", *words) as terminal:
        wait_until(lambda: "waiting: charon is unreachable" in terminal.text, "it says what it waits for")
        charon.start()
        assert terminal.end() == 0
        assert terminal.text.endswith(CLEAR_LINE)


def test_an_import_of_many_shows_how_far_it_is(charon: Charon, daemon: Daemon) -> None:
    script = daemon.folder / "many.cmd"
    lines = [f"iscsicli PSKey * * 0x27 2 h{n}.lab key-number-{n}-0123456789 *" for n in range(MANY)]
    script.write_text("\n".join(lines))
    with on_terminal(daemon, "import", "--apply", str(script)) as terminal:
        wait_until(lambda: os.listdir(daemon.psk), "the first file is there", interval=0.001)
        terminal.halt()  # or a fast machine is done before anything is shown
        halted = time.monotonic()
        assert len(os.listdir(daemon.psk)) < MANY
        wait_until(lambda: time.monotonic() > halted + 0.5, "time has passed")
        terminal.go_on()
        assert terminal.end(60) == 0
        assert "files written: " in terminal.text
        assert f" of {MANY} (" in terminal.text
    assert len(os.listdir(daemon.psk)) == MANY


def test_where_there_is_no_terminal_nothing_but_the_result_is_said(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file(psk="a"))
    daemon.start()
    answer = daemon.cli("wait", "--timeout", "1.5")
    assert answer.rc == 1
    assert "waiting" not in answer.out + answer.err
    assert "\x1b" not in answer.out + answer.err

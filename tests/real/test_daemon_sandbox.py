"""The daemon needs nothing that its unit forbids: it works where the kernel gives it no internet sockets."""

from __future__ import annotations

import sys

import pytest

from tests.support.admin import key_file, portal_file, wait_for_connection
from tests.support.ike import KEY_A
from tests.support.netlab import Charon, Daemon
from tests.support.netlab import daemon as lab_daemon

FORBID = """
import errno, os, socket, sys
def hook(event, arguments):
    if event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
sys.addaudithook(hook)
try:
    socket.socket(socket.AF_INET)
except OSError:
    from iscsi_ipsec.service.main import main
    sys.exit(main())
"""


def test_the_daemon_opens_no_internet_socket(
    daemon: Daemon, charon: Charon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_daemon, "command", lambda name: [sys.executable, "-c", FORBID])
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    assert "Address family not supported" not in daemon.log.read_text()

"""The configurations that the pages show are loaded as they stand there, and the two ends agree.

Addresses are exchanged for the lab's, nothing else. An SA needs ESP in the kernel; the target
chooses a proposal before it installs one, and that is looked for.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair

TOP = Path(__file__).resolve().parents[2]
README, BY_HAND = TOP / "README.md", TOP / "docs/by-hand.md"
LINUX = TOP / "docs/howto/linux-target.md"
LAB = (("10.0.0.20", "10.10.0.2"), ("10.0.0.5", "10.10.0.1"), ("10.0.0.0/24", "10.10.0.0/24"))
AGREED = "selected proposal: ESP:AES_GCM_16_256"


def in_lab(text: str) -> str:
    for shown, here in LAB:
        text = text.replace(shown, here)
    return text


def swanctl_of(page: Path) -> str:
    (block,) = re.findall(r"```\n(connections \{.*?)```", page.read_text(), flags=re.DOTALL)
    return in_lab(block)


def files_of(page: Path) -> dict[str, list[str]]:
    """TOML of the page by its path below /etc/iscsi-ipsec, in the page's order."""
    text = page.read_text()
    blocks = re.findall(r"```toml\n# (?:/etc/iscsi-ipsec/)?(\S+\.toml)\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"^# cat > /etc/iscsi-ipsec/(\S+\.toml)\n((?:[^#`].*\n)+)", text, flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for path, body in blocks:
        found.setdefault(path, []).append(in_lab(body))
    return found


def put(daemon: Daemon, files: dict[str, list[str]], *names: str) -> None:
    for name in names:
        daemon.put(daemon.config / name, files[name][0] + ('start = "start"\n' if "portal.d" in name else ""))


def agrees(pair: Pair, daemon: Daemon) -> None:
    mark = pair.target.log_mark()
    daemon.start()
    wait_until(
        lambda: AGREED in pair.target.log_text(mark), "the two ends agree",
        detail=lambda: daemon.tail() + pair.target.tail(),
    )  # fmt: skip


def test_the_readmes_two_files_agree_with_the_readmes_target(pair: Pair, daemon: Daemon) -> None:
    pair.target.load_all(swanctl_of(README))
    put(daemon, files_of(README), "psk.d/group.toml", "portal.d/san.toml")
    agrees(pair, daemon)


def test_the_how_tos_initiator_agrees_with_its_target_by_hand(pair: Pair, daemon: Daemon) -> None:
    pair.target.load_all(swanctl_of(LINUX))
    put(daemon, files_of(LINUX), "psk.d/db1.toml", "portal.d/san.toml")
    agrees(pair, daemon)


@pytest.mark.parametrize("ours", [True, False], ids=["two-files", "by-hand"])
def test_the_initiator_by_hand_does_what_the_two_files_do(pair: Pair, daemon: Daemon, ours: bool) -> None:
    pair.target.load_all(swanctl_of(README))
    if ours:
        put(daemon, files_of(BY_HAND), "psk.d/group.toml", "portal.d/san.toml")
        agrees(pair, daemon)
        return
    pair.initiator.load_all(swanctl_of(BY_HAND))
    mark = pair.target.log_mark()
    pair.initiator.start_initiate(ike="san", child="san")
    wait_until(lambda: AGREED in pair.target.log_text(mark), "the two ends agree", detail=pair.target.tail)


def test_the_targets_files_of_the_how_to_admit_its_initiators(pair: Pair, daemon: Daemon) -> None:
    """The daemon on the target's side: both initiators have a connection, and the portal is held."""
    files = files_of(LINUX)
    for name in ("psk.d/db1.toml", "psk.d/web7.toml"):
        daemon.put(daemon.config / name, files[name][0])
    # the daemon runs on the lab's node 1
    daemon.put(
        daemon.config / "portal.d/served.toml",
        files["portal.d/served.toml"][0].replace("10.10.0.2", "10.10.0.1"),
    )
    daemon.start()

    def admitted() -> set[str]:
        return {
            row["identity"] for row in daemon.status()["portals"] if row["ready"] and row["role"] == "target"
        }

    wait_until(lambda: admitted() == {"db1.example.com", "10.0.0.7"}, "both are admitted", detail=daemon.tail)
    assert daemon.cli("check").rc == 0

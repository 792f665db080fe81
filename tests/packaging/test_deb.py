from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from tests.support.source import TOP, only_plain_files, run

BUNDLE = "usr/lib/iscsi-ipsec/python"


def control(deb: Path, field: str) -> str:
    return run("dpkg-deb", "--field", deb, field).strip()


def version_of_source() -> str:
    text = (TOP / "daemon/iscsi_ipsec/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found
    return found[1]


def listing(deb: Path) -> dict[str, tuple[str, str]]:
    """Path in the package: mode as ``ls`` writes it, owner."""
    rows = [line.split(None, 5) for line in run("dpkg-deb", "--contents", deb).splitlines()]
    return {row[5].removeprefix("./"): (row[0], row[1]) for row in rows}


def test_the_package_has_the_version_of_the_source_and_of_its_changelog(deb: Path) -> None:
    changelog = (TOP / "packaging/deb/changelog").read_text()
    assert control(deb, "Version") == version_of_source()
    assert changelog.startswith(f"iscsi-ipsec ({version_of_source()}) ")
    assert deb.name == f"iscsi-ipsec_{version_of_source()}_all.deb"


def test_it_depends_on_nothing_but_debian(deb: Path) -> None:
    depends = {entry.split()[0] for entry in control(deb, "Depends").split(", ")}
    assert {"python3", "python3-systemd", "nftables"} <= depends
    # apt would take this package with it, and open running sessions
    assert "charon-systemd" not in depends
    assert "charon-systemd" in control(deb, "Recommends").split(", ")
    # these Debian lacks, or has too old; they are inside
    assert not depends & {"python3-pyroute2", "python3-vici", "python3-watchdog"}


def test_root_owns_every_file(deb: Path) -> None:
    assert {owner for _, owner in listing(deb).values()} == {"root/root"}


def test_only_root_may_enter_the_folder_of_keys(deb: Path) -> None:
    rows = listing(deb)
    assert rows["etc/iscsi-ipsec/psk.d/"][0] == "drwx------"
    assert rows["etc/iscsi-ipsec/portal.d/"][0] == "drwxr-xr-x"


def test_nothing_is_writable_for_others_or_runs_as_another_user(unpacked: Path) -> None:
    for path in unpacked.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), path


def test_only_commands_and_hooks_are_executable(unpacked: Path) -> None:
    executable = {
        str(path.relative_to(unpacked))
        for path in only_plain_files(unpacked)
        if path.stat().st_mode & stat.S_IXUSR and "DEBIAN" not in path.parts
    }
    assert executable == {
        "usr/bin/iscsi-ipsec",
        "usr/lib/iscsi-ipsec/answer-names",
        "usr/lib/iscsi-ipsec/apt-hook",
        "usr/lib/iscsi-ipsec/boot-guard",
        "usr/lib/iscsi-ipsec/hold-ike",
        "usr/lib/iscsi-ipsec/managed-sessions",
        "usr/sbin/iscsi-ipsecd",
        "usr/share/python3/runtime.d/iscsi-ipsec.rtupdate",
    }


def test_the_whole_program_and_its_libraries_are_inside(unpacked: Path) -> None:
    source = {
        str(path.relative_to(TOP / "daemon"))
        for path in only_plain_files(TOP / "daemon/iscsi_ipsec")
        if "__pycache__" not in path.parts
    }
    packed = {str(path.relative_to(unpacked / BUNDLE)) for path in only_plain_files(unpacked / BUNDLE)}
    assert source <= packed
    for library in ("pyroute2", "vici", "watchdog"):
        assert f"{library}/__init__.py" in packed
        assert any(re.match(rf"{library}-.*\.dist-info/licenses/LICENSE", name) for name in packed), library


def test_nothing_compiled_cached_or_made_by_pip_is_inside(unpacked: Path) -> None:
    names = [path.name for path in unpacked.rglob("*")]
    assert not [name for name in names if re.search(r"\.(so|pyc|pyo|egg-link|pth)$|\.so\.", name)]
    assert not {"__pycache__", "RECORD", "INSTALLER", "REQUESTED", "direct_url.json"} & set(names)
    assert not (unpacked / BUNDLE / "bin").exists()


def test_no_file_tells_where_it_was_built(unpacked: Path) -> None:
    needle = str(TOP / "daemon").encode()
    assert not [path for path in only_plain_files(unpacked) if needle in path.read_bytes()]


def test_no_key_and_no_active_policy_is_inside(unpacked: Path) -> None:
    folder = unpacked / "etc/iscsi-ipsec"
    files = {str(path.relative_to(folder)) for path in only_plain_files(folder)}
    assert files == {"iscsi-ipsecd.toml", "psk.d/README", "portal.d/README"}
    assert not list(unpacked.rglob("*.key")), "private key"
    assert not list(unpacked.rglob("*.pem")), "private key"
    for example in only_plain_files(unpacked / "usr/share/doc/iscsi-ipsec/examples"):
        assert example.name.endswith(".example") or example.parent.name == "monitoring"


def test_files_in_etc_are_conffiles(unpacked: Path) -> None:
    files = {"/" + str(path.relative_to(unpacked)) for path in only_plain_files(unpacked / "etc")}
    assert set((unpacked / "DEBIAN/conffiles").read_text().split()) == files


def test_debians_zsh_finds_the_completion(unpacked: Path) -> None:
    assert (unpacked / "usr/share/zsh/vendor-completions/_iscsi-ipsec").is_file()
    assert not (unpacked / "usr/share/zsh/site-functions").exists()


def test_checksums_cover_every_file(unpacked: Path) -> None:
    reported = {}
    for line in (unpacked / "DEBIAN/md5sums").read_text().splitlines():
        digest, _, name = line.partition("  ")
        reported[name] = digest
    found = {
        str(path.relative_to(unpacked)): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in only_plain_files(unpacked)
        if "DEBIAN" not in path.relative_to(unpacked).parts
    }
    assert reported == found


def test_open_iscsi_waits_and_nftables_brings_the_guard_back(unpacked: Path) -> None:
    units = unpacked / "usr/lib/systemd/system"
    for login in ("iscsid", "open-iscsi", "iscsi"):
        text = (units / f"{login}.service.d/50-iscsi-ipsec.conf").read_text()
        assert "After=iscsi-ipsec-guard.service iscsi-ipsecd.service" in text
        assert "Requires=" not in text
    text = (units / "nftables.service.d/50-iscsi-ipsec.conf").read_text()
    assert len(re.findall(r"^Exec(StartPost|Reload|StopPost)=-", text, re.MULTILINE)) == 3


def test_another_checkout_and_another_umask_give_the_same_bytes(deb: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    left_out = shutil.ignore_patterns(".git", ".venv", ".vm", "dist", "tests", "__pycache__", "pip")
    shutil.copytree(TOP, copy, ignore=left_out)
    os.chmod(copy / "README.md", 0o600)
    env = dict(os.environ, SOURCE_DATE_EPOCH=build_time(deb))
    run("sh", "-c", 'umask 077; exec packaging/deb/build "$1"', "sh", tmp_path / "dist", env=env, cwd=copy)
    assert (tmp_path / "dist" / deb.name).read_bytes() == deb.read_bytes()


def build_time(deb: Path) -> str:
    """The time that the build gave to files."""
    with deb.open("rb") as stream:
        # of an ar archive: 8 bytes of magic, then the first member's name (16) and time (12)
        return stream.read(36)[24:36].decode().strip()


@pytest.mark.skipif(not shutil.which("lintian"), reason="needs lintian")
def test_lintian_finds_nothing(deb: Path) -> None:
    reported = run("lintian", "--fail-on", "error,warning", "--allow-root", deb)
    # what an override matches no more has to go
    assert "unused-override" not in reported


def test_every_lintian_override_has_its_reason_above() -> None:
    lines = (TOP / "packaging/deb/lintian-overrides").read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        assert line.startswith("#") or above.startswith("#"), line

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path

import pytest

from tests.support.source import SYSTEM_PYTHON, TOP, only_plain_files, run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "python"
    run(TOP / "packaging/bundle", folder, env=dict(os.environ, PYTHON=SYSTEM_PYTHON))
    return folder


class Staged:
    """An installation under a folder, as the builder of another distribution's package makes one."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.root, self._bundle = root, bundle
        self._env = {
            "PATH": os.environ["PATH"],
            "DESTDIR": str(root),
            "PREFIX": "/opt/site",
            "SYSCONFDIR": "/etc",
            "PYTHON": SYSTEM_PYTHON,
        }

    def install(self) -> None:
        run(TOP / "packaging/install-tree", self._bundle, env=self._env)
        run(TOP / "packaging/after-install", env=self._env)

    def uninstall(self) -> str:
        return run(TOP / "packaging/uninstall", env=self._env)


@pytest.fixture
def staged(tmp_path: Path, bundle: Path) -> Staged:
    return Staged(tmp_path, bundle)


def test_everything_goes_under_the_prefix(staged: Staged) -> None:
    staged.install()
    assert {path.name for path in staged.root.iterdir()} == {"opt", "etc"}
    unit = (staged.root / "opt/site/lib/systemd/system/iscsi-ipsecd.service").read_text()
    assert "ExecStart=/opt/site/sbin/iscsi-ipsecd\n" in unit
    assert stat.S_IMODE((staged.root / "etc/iscsi-ipsec/psk.d").stat().st_mode) == 0o700


def test_completion_and_catalog_lie_where_shells_and_the_journal_look(staged: Staged) -> None:
    staged.install()
    for name in (
        "share/bash-completion/completions/iscsi-ipsec",
        "share/zsh/site-functions/_iscsi-ipsec",
        "lib/systemd/catalog/iscsi-ipsec.catalog",
        "share/man/man1/iscsi-ipsec.1.gz",
        "share/doc/iscsi-ipsec/docs/howto/ontap.md",
        "share/doc/iscsi-ipsec/examples/monitoring/alerts.yml",
    ):
        assert (staged.root / "opt/site" / name).is_file(), name


def test_installing_again_keeps_the_files_of_the_admin(staged: Staged) -> None:
    staged.install()
    settings = staged.root / "etc/iscsi-ipsec/iscsi-ipsecd.toml"
    settings.write_text("require_ipsec = true\n")
    key = staged.root / "etc/iscsi-ipsec/psk.d/db1.toml"
    key.write_text("key")
    stray = staged.root / "opt/site/lib/iscsi-ipsec/python/iscsi_ipsec/gone.py"
    stray.write_text("")

    staged.install()

    assert settings.read_text() == "require_ipsec = true\n"
    assert key.read_text() == "key"
    assert not stray.exists(), "a module of an older version"


def test_uninstalling_leaves_nothing_but_etc(staged: Staged) -> None:
    staged.install()
    reported = staged.uninstall()
    assert "left in place" in reported
    assert only_plain_files(staged.root / "opt") == []
    assert (staged.root / "etc/iscsi-ipsec/iscsi-ipsecd.toml").exists()


def test_bundled_versions_are_within_the_ranges_of_the_project() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    pins = (TOP / "packaging/bundle-requirements.txt").read_text()
    bundled = dict(re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", pins, re.MULTILINE))
    ranges = {re.split("[<>=]", entry)[0]: entry for entry in project["dependencies"]}
    # compiled, so the distribution's
    assert set(bundled) == set(ranges) - {"systemd-python"}
    for name, version in bundled.items():
        numbers = _numbers(version)
        for sign, bound in re.findall(r"(>=|<)([0-9.]+)", ranges[name]):
            assert numbers >= _numbers(bound) if sign == ">=" else numbers < _numbers(bound), (name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_need_packages_touches_nothing_when_all_is_there(tmp_path: Path) -> None:
    env = _tools(tmp_path, {"dpkg-query": "echo installed", "apt-get": "exit 9"})
    assert run(TOP / "packaging/need-packages", "a", "b", env=env) == ""


def test_need_packages_shows_a_user_which_packages_to_install(tmp_path: Path) -> None:
    env = _tools(
        tmp_path, {"dpkg-query": '[ "$3" = b ] || echo installed', "apt-get": "exit 9", "id": "echo 1000"}
    )
    with pytest.raises(AssertionError, match=r"exited 1:\n.*not root.* b\n"):
        run(TOP / "packaging/need-packages", "a", "b", env=env)


def test_need_packages_starts_nothing_now_and_nothing_at_the_next_boot(tmp_path: Path) -> None:
    policy, log = tmp_path / "policy-rc.d", tmp_path / "log"
    env = _tools(
        tmp_path,
        {
            # "there" was installed before; "new" brings a unit of a service
            "dpkg-query": f"""
                case "$1 $3" in
                --show*there) echo installed ;;
                --listfiles*) echo /usr/bin/new; echo /lib/systemd/system/new.service
                              echo /lib/systemd/system/new@.service ;;
                esac
                [ "$1" != --listfiles ] || echo "list $2" >>{log}""",
            "apt-get": f'echo "$* $({policy}; echo policy $?)" >>{log}',
            "systemctl": f'echo "systemctl $*" >>{log}; echo enabled',
            "id": "echo 0",
        },
    )
    reported = run(TOP / "packaging/need-packages", "there", "new", env=dict(env, POLICY_RC_D=str(policy)))

    lines = log.read_text().splitlines()
    (install,) = [line for line in lines if " install " in line]
    assert "--no-install-recommends new" in install
    assert "there" not in install
    assert install.endswith("policy 101"), "the answer to maintainer scripts that want to start something"
    assert "systemctl --quiet disable new.service" in lines
    assert "list there" not in lines, "units that were there before are not looked at"
    assert "left disabled: new.service" in reported
    assert not policy.exists()


def test_need_packages_leaves_a_policy_of_the_admin(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("the admin's")
    env = _tools(tmp_path, {"dpkg-query": "", "apt-get": "", "systemctl": "", "id": "echo 0"})
    run(TOP / "packaging/need-packages", "new", env=dict(env, POLICY_RC_D=str(policy)))
    assert policy.read_text() == "the admin's"


def _tools(folder: Path, scripts: dict[str, str]) -> dict[str, str]:
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.defpath}"}

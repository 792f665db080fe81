from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.source import TOP, run

# the first build makes a venv and fetches three wheels
BUILD_TIMEOUT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from this source."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    folder = tmp_path_factory.mktemp("dist")
    run(TOP / "packaging/deb/build", folder)
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="session")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, with its control files in ``DEBIAN``."""
    folder = tmp_path_factory.mktemp("tree")
    run("dpkg-deb", "--raw-extract", deb, folder)
    return folder


@pytest.fixture
def hostile_env(tmp_path: Path) -> dict[str, str]:
    """An environment whose every Python variable points to code that breaks the import."""
    trap = tmp_path / "trap"
    for name in ("iscsi_ipsec", "vici", "sitecustomize", "usercustomize", "argparse"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text('raise SystemExit("imported from the trap")\n')
    return {
        "PATH": os.defpath,
        "HOME": str(trap),
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONSTARTUP": str(trap / "vici/__init__.py"),
        "PYTHONUSERBASE": str(trap),
        "LC_ALL": "C.UTF-8",
    }

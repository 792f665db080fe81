"""The dependencies are documented: allowed ranges, tested versions, and the package's own list."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

# the folder packaging/ stands before the library of that name
from pip._vendor.packaging.requirements import Requirement

from tests.support.source import TOP, run

PYPROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
ASKED = [
    Requirement(text)
    for text in (
        *PYPROJECT["dependencies"],
        *(r for rs in PYPROJECT["optional-dependencies"].values() for r in rs),
    )
]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, Requirement]:
    lines = (TOP / "packaging" / file).read_text().splitlines()
    found = [Requirement(line.partition(" --hash")[0]) for line in lines if line and not line.startswith("#")]
    return {plain(requirement.name): requirement for requirement in found}


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_every_dependency_has_a_lower_bound_and_a_tested_version_within_it(asked: Requirement) -> None:
    assert any(spec.operator in (">=", "==", "~=") for spec in asked.specifier)
    (exact,) = pinned("test-constraints.txt")[plain(asked.name)].specifier
    assert exact.operator == "=="
    assert exact.version in asked.specifier


def test_the_packed_versions_are_the_tested_ones() -> None:
    tested = pinned("test-constraints.txt")
    for name, requirement in pinned("bundle-requirements.txt").items():
        assert tested[name].specifier == requirement.specifier, f"{name}: make lock"


def test_every_dependency_is_in_the_table_with_its_reason() -> None:
    text = (TOP / "docs/dependencies.md").read_text().lower()
    assert [asked.name for asked in ASKED if asked.name.lower() not in text] == []


def test_the_package_lists_its_content(unpacked: Path) -> None:
    library = unpacked / "usr/lib/iscsi-ipsec"
    document = json.loads((library / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    listed = {plain(part["name"]): part for part in document["components"]}
    assert {name: part["version"] for name, part in listed.items()} == {
        plain(found.metadata["Name"]): found.version
        for found in distributions(path=[str(library / "python")])
    }
    assert set(listed) == set(pinned("bundle-requirements.txt"))
    hashes = (TOP / "packaging/bundle-requirements.txt").read_text()
    for part in listed.values():
        assert part["hashes"][0]["content"] in hashes
        assert part["purl"].startswith("pkg:pypi/")
        assert "unknown" not in str(part["licenses"])
    refs = {part["bom-ref"] for part in listed.values()}
    assert set(document["dependencies"][0]["dependsOn"]) == refs


def test_the_list_is_the_same_each_time(unpacked: Path) -> None:
    bundle = unpacked / "usr/lib/iscsi-ipsec/python"
    again = run(TOP / "packaging/sbom", bundle)
    assert again == (unpacked / "usr/lib/iscsi-ipsec/sbom.cdx.json").read_text()

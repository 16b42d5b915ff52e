"""What is shipped: the wheel holds what it needs, and its papers agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import latentfit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "latentfit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: what CFF 1.2.0 requires, and the kinds it knows
CFF_REQUIRED = {"cff-version", "message", "title", "authors"}


def citation() -> dict[str, str]:
    """The top-level entries of CITATION.cff, nested ones as text: a reader of the flat YAML that it is."""
    entries: dict[str, str] = {}
    key = ""
    for line in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"([a-z-]+):\s*(.*)", line)
        if found:
            key, value = found.groups()
            assert key not in entries
            entries[key] = value.strip('"')
        else:
            assert line.startswith("  "), line
            entries[key] += f"\n{line.strip()}"
    return entries


def test_the_citation_is_valid_and_agrees() -> None:
    entries = citation()
    assert set(entries) >= CFF_REQUIRED
    assert entries["cff-version"] == "1.2.0"
    assert entries["type"] == "software"
    assert entries["license"] == PROJECT["license"]
    assert entries["version"] == latentfit.__version__
    assert PROJECT["authors"][0]["name"] in entries["authors"]


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert latentfit.__version__ in versions


def test_every_extra_that_a_message_names_exists() -> None:
    named = {
        extra
        for path in PACKAGE.rglob("*.py")
        for extra in re.findall(r"latentfit\[(\w+)\]", path.read_text(encoding="utf-8"))
    }
    assert named - set(PROJECT["optional-dependencies"]) == set()


def test_the_constraints_pin_versions_the_project_allows() -> None:
    """A pin that is below the project's own bound would make `make install` fail for everybody."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    wanted = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    bounds = {requirement.name: requirement for requirement in map(Requirement, wanted)}
    assert "torch" in {pin.name for pin in pins}
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert Version(exact.version) in bounds[pin.name].specifier


@pytest.mark.slow
def test_a_wheel_builds_and_holds_all_files(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert f"-{latentfit.__version__}-py3-none-any" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        entry_points = next(name for name in inside if name.endswith("entry_points.txt"))
        assert "latentfit = latentfit.cli:main" in archive.read(entry_points).decode()
    source = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source - inside == set()
    assert "latentfit/py.typed" in inside
    assert any(name.startswith("latentfit/report/templates/") for name in inside)
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    foreign = {name for name in inside if not name.startswith(("latentfit/", f"latentfit-{latentfit.__version__}"))}
    assert foreign == set()

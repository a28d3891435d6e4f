"""constraints.txt: only names and versions, all dependencies, and records that report deviations."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest

from bench.records import provenance

REPO = Path(__file__).resolve().parents[3]
LINES = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
# Packages that a release of torch pins itself.
_OF_TORCH = re.compile(r"^(nvidia-|cuda-|triton$)")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_each_name_once() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in LINES)
    names = [_normal(line.partition("==")[0]) for line in LINES]
    assert names == sorted(set(names)) and "earthbench" not in names
    assert not [name for name in names if _OF_TORCH.match(name)]


def test_constraints_cover_tests_and_documentation() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(word for extra in ("test", "dev", "docs") for word in extras[extra])]
    open_names = {_name(word) for word in wanted} | {"tox-ignore-env-name-mismatch"}
    known, missing = {_normal(line.partition("==")[0]) for line in LINES}, set()
    seen: set[str] = set()
    while open_names - seen:
        name = (open_names - seen).pop()
        seen.add(name)
        if name == "earthbench" or _OF_TORCH.match(name):
            continue
        if name not in known:
            missing.add(name)
        try:
            parts = requires(name) or []
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        open_names |= {_name(part) for part in parts if "extra ==" not in part and _applies(part)}
    assert not missing


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return _normal(match[0])


def _applies(requirement: str) -> bool:
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate()


def test_an_environment_reports_how_it_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = tmp_path / "constraints.txt"
    listing.write_text(f"# a remark\nnumpy=={version('numpy')}\nh5py==0.0.1\n\nnot-installed-here==1.0\n")
    monkeypatch.setattr(provenance, "_constraints", lambda: listing)
    provenance.environment_differences.cache_clear()
    assert provenance.environment_differences() == (f"h5py 0.0.1 -> {version('h5py')}",)
    provenance.environment_differences.cache_clear()


def test_the_constraints_are_found_in_a_checkout_and_packaged() -> None:
    assert provenance._constraints().read_text() == (REPO / "constraints.txt").read_text()
    hatch = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert hatch["force-include"]["constraints.txt"] == "bench/records/constraints.txt"


@pytest.mark.parametrize("environment", ["tests", "slow", "lint", "types", "docs", "py313", "plugin", "fault"])
def test_every_environment_except_latest_uses_the_constraints(environment: str) -> None:
    import configparser

    settings = configparser.ConfigParser(interpolation=None)
    settings.read(REPO / "tox.ini")
    assert "constraints.txt" in settings["testenv"]["set_env"] and "constraints.txt" in settings["pkgenv"]["set_env"]
    own = settings[f"testenv:{environment}"].get("set_env", "{[testenv]set_env}")
    assert "{[testenv]set_env}" in own
    assert "constraints.txt" not in settings["testenv:latest"]["set_env"].replace(
        "{[testenv]set_env}", "constraints.txt"
    )


def test_the_readme_installs_with_the_constraints() -> None:
    commands = [line for line in (REPO / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2 and all("pip install -c constraints.txt " in command for command in commands)


def test_one_installation_runs_every_command_with_lazy_imports() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    light = {"diffusers", "itables", "jinja2", "plotly"}
    assert light <= {_name(word) for word in project["dependencies"]}
    assert project["optional-dependencies"]["prediff"] == project["optional-dependencies"]["report"] == []
    program = "import sys, bench.report, bench.cli.report, bench.cli.table, bench.cli.compare; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {*light, "torch", "matplotlib"} & set(loaded)

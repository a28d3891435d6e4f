"""Where a record comes from: code, library versions, hardware.  Imports no torch: facts about GPUs are passed in."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.records.schema import CodePart

_LIBRARIES = (
    "torch",
    "lightning",
    "torchmetrics",
    "timm",
    "fvcore",
    "numpy",
    "h5py",
    "hydra-core",
    "pydantic",
    "pandas",
)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache(maxsize=1)
def environment_differences() -> tuple[str, ...]:
    """Returns how the installed packages differ from `constraints.txt`, the versions that the test suite passed on.

    Returns:
        A text such as `numpy 2.4.6 -> 2.4.5` for each package that is installed in another version, by name. Packages
        that are not installed, e.g. those of an extra, do not count.

    Raises:
        FileNotFoundError: neither an installed wheel nor a checkout has the file.
    """
    found = []
    for line in _constraints().read_text(encoding="utf-8").splitlines():
        name, pinned, tested = line.partition("#")[0].strip().partition("==")
        try:
            installed = version(name) if pinned else tested
        except PackageNotFoundError:
            continue
        if installed != tested:
            found.append(f"{name} {tested} -> {installed}")
    return tuple(found)


def differences_or_none() -> tuple[str, ...] | None:
    """Returns the same as `environment_differences`, or None if there are no constraints to compare with."""
    try:
        return environment_differences()
    except FileNotFoundError:
        return None


def _constraints() -> Path:
    beside = Path(__file__).with_name("constraints.txt")  # in a wheel
    return beside if beside.is_file() else Path(__file__).resolve().parents[2] / "constraints.txt"


def hardware(accelerator: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Returns a description of this machine.

    Args:
        accelerator: Name of the GPU, if one was used.
        threads: CPU threads of one process.
    """
    return {
        "accelerator": accelerator,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": _memory_bytes(),
        "platform": platform.platform(terse=True),
    }


def nvidia_driver() -> str | None:
    """Returns the version of the NVIDIA driver that is loaded, or None."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", first)
    return found.group() if found else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None  # not POSIX


@lru_cache(maxsize=1)
def code_state() -> CodePart:
    """Returns the version of this package and, in a git checkout, its commit and whether files were changed."""
    root = Path(__file__).resolve().parents[2]
    release = version("earthbench")
    if not (root / ".git").exists():
        return CodePart(version=release, commit=None, dirty=None, diff_sha256=None)
    commit = _git(root, "rev-parse", "HEAD")
    packages = ("--", "bench", "baselines", "earthformer")
    diff = _git(root, "diff", "HEAD", *packages)
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", *packages)
    if commit is None or diff is None or unknown is None:
        return CodePart(version=release, commit=commit, dirty=None, diff_sha256=None)
    if not diff and not unknown:
        return CodePart(version=release, commit=commit, dirty=False, diff_sha256=None)
    digest = hashlib.sha256(diff.encode())
    for name in unknown.splitlines():  # untracked files have no diff
        digest.update(name.encode() + (root / name).read_bytes())
    return CodePart(version=release, commit=commit, dirty=True, diff_sha256=digest.hexdigest())


def libraries() -> dict[str, str]:
    """Returns the versions of the libraries that the bits of a training depend on."""
    known = versions()
    return {name: known[name] for name in ("torch", "lightning", "timm", "numpy")}


@lru_cache(maxsize=32)
def git_state(path: Path) -> tuple[str | None, bool | None]:
    """Returns the commit of the checkout of a path, and whether the path has changed since; None if unknown."""
    folder = path if path.is_dir() else path.parent
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", str(path)) if commit is not None else None
    return commit, None if changed is None else bool(changed)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "-c", "core.quotePath=false", *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no commits, or a checkout of somebody else's
    return done.stdout.strip()

"""The source that makes a number: of a model, of a plugin's task and metrics, and of this harness; no torch.

Versions and commits name a release.  What a user edits has neither, so the source itself is hashed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bench import registry
from bench.cards import UnreadableSourceError, module_path
from bench.metrics.names import metric_of
from bench.records.provenance import git_state
from bench.records.schema import SourcePart

_OURS = ("baselines", "bench", "earthformer")
_NO_NUMBERS = {"ablation", "cli", "report", "reproduction", "tables", "testing"}
"""Packages of the harness that no score or weight depends on."""
_IMPORT = re.compile(r"^\s*(?:from\s+([.\w]+)\s+import\s+(\([^)]*\)|[^\n]+)|import\s+([^\n]+))", re.MULTILINE)
_LARGEST_BYTES = 64 << 20
"""Files beside a plugin's source above this are data, which the digest takes by name and size."""


@cache
def harness_source() -> SourcePart:
    """Returns the part of this harness that trains and evaluates."""
    folder = Path(__file__).resolve().parents[1]
    files = [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in _NO_NUMBERS]
    return _part("bench", "earthbench", _version(), folder, _digest({_name(path, folder): path for path in files}))


@cache  # a class is the source that it was imported from, whatever became of the file since
def class_source(made: type, origin: str, version: str | None = None) -> SourcePart:
    """Returns the source of a class: its module's and that of everything of the same origin it imports.

    Of a class of this project these are the modules that its own imports; of a package of somebody else every file of
    the package, for what it opens beside its modules is not to be seen in them; of a file its module and those beside
    it.  Libraries and the harness are not part of it.

    Args:
        made: The class.
        origin: Where its name was registered.
        version: Of its distribution.
    """
    bases = [base.__module__ for base in made.__mro__ if not _is_library(base.__module__)]
    modules = [name for name in bases if not _is_harness(name) or _is_harness(made.__module__)]
    files: dict[str, Path] = {}
    for module in modules or [made.__module__]:
        files |= _closure(module)
    top = made.__module__.partition(".")[0]
    root = next(iter(files.values()), None)
    if top not in _OURS and "." in made.__module__ and (package := _package(top)) is not None:
        found = [path for path in sorted(package.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
        files |= {f"{top}/{_name(path, package)}": path for path in found}
        root = package
    return _part(made.__module__, origin, version, root, _digest(files))


def sources_of(model: type, task: type, metrics: Iterable[str]) -> dict[str, SourcePart]:
    """Returns the source of everything that a score comes from.

    Args:
        model: Its class.
        task: Its class.
        metrics: Names of the task's metrics.

    Returns:
        `model`, `harness` and, where they are not part of this project, `task` and `metric NAME`.
    """
    found = {"model": registered_source("model", model), "harness": harness_source()}
    if task.__module__.partition(".")[0] not in _OURS:
        found["task"] = registered_source("task", task)
    for name in dict.fromkeys(map(metric_of, metrics)):
        entry = registry.find("metric", name)
        if entry.value.partition(".")[0] not in _OURS:
            found[f"metric {name}"] = class_source(entry.load(), entry.origin, entry.version)
    return found


@cache
def registered_source(kind: registry.Kind, made: type) -> SourcePart:
    """Returns the source of a class, with the origin and version that it is registered with, where it is."""
    name = registry.name_of(kind, made)
    if name is None:
        return class_source(made, f"{made.__module__}:{made.__qualname__}")
    entry = registry.find(kind, name)
    return class_source(made, entry.origin, entry.version)


def _part(module: str, origin: str, version: str | None, root: Path | None, digest: str) -> SourcePart:
    commit, dirty = git_state(root) if root is not None else (None, None)
    return SourcePart(module=module, origin=origin, version=version, commit=commit, dirty=dirty, sha256=digest)


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("earthbench")


def _digest(files: dict[str, Path]) -> str:
    content = hashlib.sha256()
    for name, path in sorted(files.items()):
        size = path.stat().st_size
        content.update(f"{name}|{size}\n".encode())
        if size <= _LARGEST_BYTES:
            content.update(path.read_bytes())
    return content.hexdigest()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _package(top: str) -> Path | None:
    file = getattr(sys.modules.get(top), "__file__", None)
    return Path(file).resolve().parent if file else None


def _closure(module: str) -> dict[str, Path]:
    """Returns the files of a module and of what it imports, but for the standard library and installed libraries."""
    found: dict[str, Path] = {}
    top = module.partition(".")[0]
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or (name.partition(".")[0] != top and (_is_library(name) or _is_harness(name))):
            continue
        try:
            path = module_path(name)
        except UnreadableSourceError:
            continue
        found[name] = path
        waiting += _imports(path, name)
    return found


def _imports(path: Path, module: str) -> Iterator[str]:
    """Yields the names of modules that a file may import, anywhere in it; some of them are not modules."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for source, names, plain in _IMPORT.findall(text):
        if plain:
            yield from (part.split(" as ")[0].strip() for part in plain.partition("#")[0].split(","))
            continue
        base = source.lstrip(".")
        if dots := len(source) - len(base):
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - dots + 1], *([base] if base else [])])
        yield base
        parts = re.sub(r"#[^\n]*", "", names).strip("()").split(",")
        yield from (f"{base}.{part.split(' as ')[0].strip()}" for part in parts if part.strip())


def _is_harness(module: str) -> bool:
    """Returns whether a module belongs to the harness, whose source has a digest of its own."""
    return module.partition(".")[0] == "bench"


@cache
def _is_library(module: str) -> bool:
    """Returns whether a module belongs to Python or to an installed library, which has a version."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    try:
        path = module_path(top)
    except UnreadableSourceError:
        return True  # built in, compiled, or not there
    return top not in _OURS and any(part in ("site-packages", "dist-packages") for part in path.parts)

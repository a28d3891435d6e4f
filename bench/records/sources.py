"""Digests of the source behind a score: of the model, of a plugin's task and metrics, and of this harness.

Versions and commits identify releases.  Code under development has neither, so the source itself is hashed, without
comments and docstrings: their wording changes no number.  Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tokenize
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
_BEFORE_A_STATEMENT = (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
_MAX_BYTES = 64 << 20
"""Larger files beside a plugin's source are data, of which only name and size enter the digest."""


@cache
def harness_source() -> SourcePart:
    """Returns the part of this harness that trains and evaluates."""
    folder = Path(__file__).resolve().parents[1]
    files = [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in _NO_NUMBERS]
    return _part("bench", "earthbench", _version(), folder, _digest({_name(path, folder): path for path in files}))


@cache  # the source at import time, even if the file has changed since
def class_source(made: type, origin: str, version: str | None = None) -> SourcePart:
    """Returns the source of a class: its module, and everything of the same origin that it imports.

    For a class of this project, these are the modules imported by its own; for another package, all files of the
    package, because it may open files besides its modules; for a single file, its module and the modules beside it.
    Libraries and the harness are not part of it.

    Args:
        made: The class.
        origin: Where its name was registered.
        version: Version of its distribution.
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
    """Returns the sources of everything that a score depends on.

    Args:
        model: The model's class.
        task: The task's class.
        metrics: Names of the task's metrics.

    Returns:
        `model`, `harness` and, if they are not part of this project, `task` and `metric NAME`.
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
    """Returns the source of a class, with the origin and version of its registration if it is registered."""
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
        size, text = path.stat().st_size, b""
        if size <= _MAX_BYTES:
            text = path.read_bytes()
            text = code_of(text) if path.suffix == ".py" else text
            size = len(text)
        content.update(f"{name}|{size}\n".encode())
        content.update(text)
    return content.hexdigest()


def code_of(source: bytes) -> bytes:
    """Returns a Python file without comments, docstrings and blank lines; what is no Python, as it is."""
    try:
        tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
        lines = source.decode("utf-8-sig" if tokens[0].string == "utf-8" else tokens[0].string).split("\n")
    except (SyntaxError, UnicodeError, tokenize.TokenError):
        return source
    left_out = [token for token in tokens if token.type == tokenize.COMMENT]
    left_out += [token for token in tokens if token.type == tokenize.NL and not token.line.strip()]
    code = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    left_out += [
        token
        for before, token, after in zip(code, code[1:], code[2:], strict=False)
        if token.type == tokenize.STRING and before.type in _BEFORE_A_STATEMENT and after.type == tokenize.NEWLINE
    ]
    for token in sorted(left_out, key=lambda token: token.start, reverse=True):
        (top, left), (bottom, right) = token.start, token.end
        rest = (lines[top - 1][:left].rstrip() + lines[bottom - 1][right:]).rstrip()
        lines[top - 1 : bottom] = [rest] if rest else []
    return "\n".join(lines).encode()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _package(top: str) -> Path | None:
    file = getattr(sys.modules.get(top), "__file__", None)
    return Path(file).resolve().parent if file else None


def _closure(module: str) -> dict[str, Path]:
    """Returns the files of a module and of all modules that it imports, except the standard library and libraries."""
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
    """Yields the names that a file imports, anywhere in it; some of them are not modules."""
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
    """Returns whether a module belongs to the harness, which has its own digest."""
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
        return True  # built in, compiled, or missing
    return top not in _OURS and any(part in ("site-packages", "dist-packages") for part in path.parts)

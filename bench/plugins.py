"""Plugin files, and the state of the process that importing a plugin must not change."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from bench.errors import BrokenPluginError, UsageError

Setting = tuple[Any, Callable[[Any], Any]]
"""A value and its setter."""


@contextmanager
def restored_process_state(origin: str, *, ours: bool = False) -> Iterator[None]:
    """Undoes an import's changes of process-wide state, with a warning; the import's output goes to stderr.

    Random state, default dtype, threads and deterministic algorithms affect the scores of every model. Functions of
    other libraries that a module replaces are not detected.

    Args:
        origin: What is imported, for the warning.
        ours: Whether it belongs to this project: then a library that it imports made the change, without a warning.
    """
    before = _settings()
    try:
        with redirect_stdout(sys.stderr):  # stdout belongs to `--format json`
            yield
    finally:
        after = _settings()
        changed = [name for name, (value, _) in before.items() if not _equal(value, after[name][0])]
        for name in changed:
            value, put_back = before[name]
            put_back(value)
        if changed and not ours:
            warnings.warn(f"{origin} changed {', '.join(changed)} when it was imported: restored", stacklevel=3)


def _settings() -> dict[str, Setting]:
    """Returns the settings of the libraries that are already imported; none is imported for this."""
    found: dict[str, Setting] = {"Python's random numbers": (random.getstate(), random.setstate)}
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy is not None:
        found["numpy's random numbers"] = numpy.get_state(), numpy.set_state
    if torch is not None and hasattr(torch, "use_deterministic_algorithms"):  # not while it is being imported
        found |= {
            "torch's random numbers": (torch.get_rng_state(), torch.set_rng_state),
            "torch's default type": (torch.get_default_dtype(), torch.set_default_dtype),
            "torch's number of threads": (torch.get_num_threads(), torch.set_num_threads),
            "torch's choice of deterministic algorithms": (
                (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
                lambda given: torch.use_deterministic_algorithms(given[0], warn_only=given[1]),
            ),
        }
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)


# An environment variable, so that workers and the jobs of a sweep find the files, too.
VARIABLE = "EARTHBENCH_PLUGINS"
_FLAG = "--plugin"
_KINDS = ("models", "tasks", "metrics", "tables")
_NAME = re.compile(r"^[a-z0-9_]+(/[a-z0-9_]+)*$")
_EXAMPLE = 'EARTHBENCH = {"api": 1, "models": {"my_model": "MyModel"}}'

API_VERSION = 1
"""Version of the contracts that plugins are written against; raised when a valid plugin would no longer be valid."""
OLDEST_API_VERSION = 1
"""The oldest version whose plugins still work."""
API_GROUP = "earthbench.api"


def use_plugin_files(arguments: Sequence[str]) -> list[str]:
    """Registers the files of `--plugin FILE.py`, and returns the other command-line arguments.

    Raises:
        UsageError: no file is named, or it does not exist.
        BrokenPluginError: the file does not declare what it registers, or has the name of an installed module.
    """
    rest, words = [], iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != _FLAG:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if not given:
            raise UsageError(f"{_FLAG}: expected a file, e.g. {_FLAG} my_model.py")
        path = Path(given).expanduser().resolve()
        if not path.is_file() or path.suffix != ".py":
            raise UsageError(f"{_FLAG} {given}: not a Python file")
        _declared(path)
        known = _paths()
        if path not in known:
            os.environ[VARIABLE] = os.pathsep.join(map(str, [*known, path]))
    return rest


def api_problem(declared: Collection[str]) -> str:
    """Returns why a plugin is incompatible, as the end of a sentence about it, or an empty text.

    Args:
        declared: The versions that it was written for, `v1`, ...; empty if it does not say.
    """
    spoken = [f"v{number}" for number in range(OLDEST_API_VERSION, API_VERSION + 1)]
    if not declared or set(declared) & set(spoken):
        return ""
    newer = all(re.fullmatch(r"v\d+", one) and int(one[1:]) > API_VERSION for one in declared)
    advice = "Upgrade earthbench." if newer else "Install another release of the plugin, or an older earthbench."
    return (
        f"was written for {', '.join(sorted(declared))} of the plugin interface; this earthbench has "
        f"{', '.join(spoken)}. {advice}"
    )


def file_entries(group: str) -> list[tuple[str, str, Path, frozenset[str]]]:
    """Returns name, `module:attribute`, file and API versions of each object that plugin files register in a group.

    Raises:
        BrokenPluginError: a file is missing, or does not declare what it registers.
    """
    found = []
    for path in _paths():
        declared = _declared(path)
        api = frozenset({f"v{declared['api']}"} if "api" in declared else ())
        found += [(name, f"{path.stem}:{value}", path, api) for name, value in declared.get(group, {}).items()]
    return found


def _paths() -> list[Path]:
    return [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]


def _declared(path: Path) -> dict[str, Any]:
    """Makes a file importable as a module, and returns its entries."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenPluginError(f"plugin file {path} cannot be read: {type(error).__name__}: {error}") from error
    literal = next((node.value for node in tree.body if _is_declaration(node)), None)  # type: ignore[attr-defined]
    try:
        declared = ast.literal_eval(literal) if literal is not None else None
    except (ValueError, TypeError):
        declared = None
    if not _is_valid(declared):
        raise BrokenPluginError(
            f"plugin file {path}: expected a literal that says what it registers under {', '.join(_KINDS)}, "
            f"e.g. {_EXAMPLE}"
        )
    _make_importable(path)
    assert isinstance(declared, dict)
    return declared


def _is_declaration(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "EARTHBENCH" for t in node.targets)


def _is_valid(declared: object) -> bool:
    if not isinstance(declared, dict) or type(declared.get("api", 0)) is not int:
        return False
    return all(
        kind in _KINDS
        and isinstance(names, dict)
        and all(_NAME.match(str(name)) and str(value).isidentifier() for name, value in names.items())
        for kind, names in declared.items()
        if kind != "api"
    )


def _make_importable(path: Path) -> None:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file must not replace an installed module
        importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        where = f"module {path.stem!r} is {spec.origin}" if spec else f"{path.stem!r} is not a name for a module"
        raise BrokenPluginError(f"plugin file {path}: {where}; rename the file")

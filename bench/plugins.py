"""Plugins that are one file: `earthbench --plugin my_model.py run model=my_model ...`, without packaging.

The file says what it registers by a literal, which is read without running the file:

    EARTHBENCH = {"models": {"my_model": "MyModel"}}
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BrokenPluginError, UsageError

# An environment variable, so that workers and the jobs of a sweep find the files, too.
VARIABLE = "EARTHBENCH_PLUGINS"
_FLAG = "--plugin"
_KINDS = ("models", "tasks", "metrics", "tables")
_NAME = re.compile(r"^[a-z0-9_]+(/[a-z0-9_]+)*$")
_EXAMPLE = 'EARTHBENCH = {"models": {"my_model": "MyModel"}}'


def use_plugin_files(arguments: Sequence[str]) -> list[str]:
    """Returns command line arguments without `--plugin FILE.py`, whose files are used from now on.

    Raises:
        UsageError: no file is named, or it is not there.
        BrokenPluginError: the file does not say what it registers, or its name is that of an installed module.
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


def file_entries(group: str) -> list[tuple[str, str, Path]]:
    """Returns name, `module:attribute` and file of everything of a group (`models`, ...) that plugin files register.

    Raises:
        BrokenPluginError: a file is gone, or does not say what it registers.
    """
    return [
        (name, f"{path.stem}:{attribute}", path)
        for path in _paths()
        for name, attribute in _declared(path).get(group, {}).items()
    ]


def _paths() -> list[Path]:
    return [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]


def _declared(path: Path) -> dict[str, dict[str, str]]:
    """Returns what a file registers, after making its module importable."""
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
    return isinstance(declared, dict) and all(
        kind in _KINDS
        and isinstance(names, dict)
        and all(_NAME.match(str(name)) and str(value).isidentifier() for name, value in names.items())
        for kind, names in declared.items()
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
        where = f"module {path.stem!r} is {spec.origin}" if spec else f"{path.stem!r} is no name for a module"
        raise BrokenPluginError(f"plugin file {path}: {where}; rename the file")

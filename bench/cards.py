"""Descriptions of registered objects, read from their source text without importing them.

Listing a registry must neither import torch nor run a plugin's code, so summaries, hyperparameters and presets
are read from the syntax tree of the module that an entry point names.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

TARGET = "target_params"
"""The hyperparameter of every model with `widths` that sets its number of parameters instead of the widths."""
# Re-exports and base classes followed to a class or its constructor; nobody chains more on purpose.
_MAX_HOPS = 8


@dataclass(frozen=True)
class Card:
    """The documentation of a class or object, and its constructor's keywords with their defaults as source text."""

    summary: str
    doc: str
    parameters: dict[str, str] = field(default_factory=dict)
    accepts_any_parameter: bool = False
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    """Of a model: the hyperparameters that a target number of parameters scales."""
    path: Path | None = None
    trivial: bool = False
    """Of a model: whether it is a trivial reference that others are measured against."""
    methods: frozenset[str] = frozenset()
    """Of a class: its own, and those inherited from classes whose source can be read."""


class UnreadableSourceError(Exception):
    """The module of an entry point cannot be found or parsed; the text says why."""


def module_path(module: str) -> Path:
    """Returns the source file of a dotted module name; no code of the module or its parents is run.

    Raises:
        UnreadableSourceError: no such module on the import path, or it has no Python source.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # a top-level name is located without being imported
    except (ImportError, ValueError) as error:
        raise UnreadableSourceError(f"module {top!r} cannot be located: {error}") from error
    if spec is None:
        raise UnreadableSourceError(f"no module named {top!r}")
    if not rest:
        if not spec.origin or not spec.origin.endswith(".py"):
            raise UnreadableSourceError(f"module {top!r} has no Python source")
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        stem = Path(folder, *rest)
        for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise UnreadableSourceError(f"no module named {module!r}{hidden_by(module)}")


def hidden_by(module: str) -> str:
    """Returns which folder hides this project's package of a module, and what to do; an empty text if none does.

    Other distributions have packages of the same name, e.g. the authors' own `earthformer`.
    """
    top = module.partition(".")[0]
    ours = Path(__file__).parents[1] / top
    if not ours.is_dir():  # of another distribution
        return ""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ""
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if not folders or ours.resolve() in {folder.resolve() for folder in folders}:
        return ""
    return (
        f": the package {top!r} in {folders[0]} hides that of earthbench. Take {folders[0].parent} off the path "
        "(PYTHONPATH, the folder you are in, an editable install), or give earthbench an environment of its own"
    )


@lru_cache(maxsize=256)
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableSourceError(f"{path.name}: {type(error).__name__}: {error}") from error


def _import_source(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    parents = package[: len(package) - (node.level - 1)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _find(module: str, name: str, hops: int = 0) -> tuple[ast.AST, ast.Module, str]:
    """Returns the definition of `name`, the tree that holds it and that tree's module name."""
    path = module_path(module)
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, tree, module
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node, tree, module
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node, tree, module
        if isinstance(node, ast.ImportFrom) and hops < _MAX_HOPS:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_import_source(node, module, path), alias.name, hops + 1)
    raise UnreadableSourceError(f"{module!r} has no {name!r}")


def _keywords(function: ast.FunctionDef) -> tuple[dict[str, str], bool]:
    args = function.args
    positional = args.posonlyargs + args.args
    required = len(positional) - len(args.defaults)
    found: dict[str, str] = {}
    for index, arg in enumerate(positional):
        if arg.arg not in ("self", "cls", "input_shape", "target_shape"):
            found[arg.arg] = ast.unparse(args.defaults[index - required]) if index >= required else "required"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[arg.arg] = ast.unparse(default) if default is not None else "required"
    return found, args.kwarg is not None


def _constructor(node: ast.ClassDef, module: str, hops: int = 0) -> tuple[dict[str, str], bool]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            found, more = _keywords(item)
            if more and hops < _MAX_HOPS:  # `**kwargs` go to a class of options, or to the parent's constructor
                options = _literal(node, module, "options_class")
                inherited, more = _fields(options) if options else _from_bases(node, module, hops)
                found = {**inherited, **found}
            return found, more
    return _from_bases(node, module, hops)


def _from_bases(node: ast.ClassDef, module: str, hops: int) -> tuple[dict[str, str], bool]:
    for parent, home in _parents(node, module):
        return _constructor(parent, home, hops + 1) if hops < _MAX_HOPS else ({}, True)
    return {}, True


def _parents(node: ast.ClassDef, module: str) -> Iterator[tuple[ast.ClassDef, str]]:
    """Yields the base classes that are named directly and whose source can be read."""
    for base in node.bases:
        if isinstance(base, ast.Name):
            try:
                parent, _, home = _find(module, base.id)
            except UnreadableSourceError:
                continue
            if isinstance(parent, ast.ClassDef):
                yield parent, home


def _fields(value: str) -> tuple[dict[str, str], bool]:
    """Returns the fields of a dataclass `module:Class` with their defaults as source text."""
    module, _, name = value.partition(":")
    node, _, _ = _find(module, name)
    found = {}
    for item in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = ast.unparse(item.value) if item.value is not None else "required"
    return found, False


def _literal(node: ast.ClassDef, module: str, name: str, hops: int = 0) -> Any:
    """Returns the literal of a class attribute, its own or inherited; None if there is none."""
    for item in node.body:
        if not isinstance(item, ast.Assign | ast.AnnAssign) or item.value is None:
            continue
        targets = item.targets if isinstance(item, ast.Assign) else [item.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(item.value)
            except (ValueError, TypeError):
                return None  # computed: known only after import
    if hops < _MAX_HOPS:
        for parent, home in _parents(node, module):
            found = _literal(parent, home, name, hops + 1)
            if found is not None:
                return found
    return None


def read_card(value: str) -> Card:
    """Returns the card of an entry point value `module:attribute`, without importing it.

    Raises:
        UnreadableSourceError: the module or the attribute cannot be found, or its source does not parse.
    """
    module, _, attribute = value.partition(":")
    node, tree, home = _find(module.strip(), attribute.strip())
    path = module_path(home)
    if isinstance(node, ast.ClassDef):
        doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
        parameters, anything = _constructor(node, home)
        presets = _literal(node, home, "presets") or {}
    elif isinstance(node, ast.FunctionDef):
        doc = ast.get_docstring(node) or ""
        parameters, anything = _keywords(node)
        presets = {}
    else:
        doc, parameters, anything, presets = _string_after(tree, node), {}, False, {}
    summary = doc.strip().splitlines()[0] if doc.strip() else "(no description)"
    trivial = isinstance(node, ast.ClassDef) and _literal(node, home, "trivial") is True
    methods = _methods(node, home) if isinstance(node, ast.ClassDef) else frozenset()
    widths = (_literal(node, home, "widths") or {}) if isinstance(node, ast.ClassDef) else {}
    return Card(summary, doc, parameters, anything, presets, widths, path, trivial, methods)


def _methods(node: ast.ClassDef, module: str, hops: int = 0) -> frozenset[str]:
    own = frozenset(item.name for item in node.body if isinstance(item, ast.FunctionDef))
    parents = _parents(node, module) if hops < _MAX_HOPS else ()
    return own.union(*(_methods(parent, home, hops + 1) for parent, home in parents))


def _string_after(tree: ast.Module, node: ast.AST) -> str:
    """Returns the string literal that documents an assigned object: the statement right after it."""
    following = tree.body[tree.body.index(node) + 1 :][:1]  # type: ignore[arg-type]
    for item in following:
        if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
            return item.value.value
    return ""

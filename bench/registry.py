"""Lookup by name: models, tasks, metrics, tables and other named objects are entry points, imported on first use.

This project's `pyproject.toml` registers built-ins exactly as a plugin's registers its own.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import Distribution, EntryPoints, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from bench.cards import Card, UnreadableSourceError, hidden_by, read_card
from bench.errors import BrokenPluginError, NameClashError, UnknownNameError, did_you_mean
from bench.plugins import API_GROUP, api_problem, file_entries, restored_process_state

Kind = Literal["model", "task", "metric", "table", "constraint", "weight", "picture"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Entry:
    """One registered name: where it comes from, and how to get it."""

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str
    api: frozenset[str] = frozenset()
    """Versions of the plugin interface that its distribution declares; empty if it declares none."""

    @property
    def origin(self) -> str:
        """Returns `module:attribute (distribution version)`."""
        return f"{self.value} ({self.distribution} {self.version})"

    def card(self) -> Card:
        """Returns the object's description from its source, without importing it.

        Raises:
            BrokenPluginError: the source cannot be found or parsed, or is for another version of the interface.
        """
        self._refuse_other_api()
        try:
            return read_card(self.value)
        except UnreadableSourceError as error:
            raise BrokenPluginError(f"{self.kind} {self.name!r} from {self.origin} is broken: {error}") from error

    def load(self) -> Any:
        """Returns the registered object; importing its module must not change process-wide state.

        Raises:
            BrokenPluginError: the import fails, the module lacks the attribute, or the plugin is for another version
                of the interface.
        """
        self._refuse_other_api()
        module, _, attribute = self.value.partition(":")
        try:
            with restored_process_state(self.origin, ours=self.distribution == "earthbench"):
                return getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit() when imported
            raise BrokenPluginError(
                f"{self.kind} {self.name!r} from {self.origin} cannot be loaded: {type(error).__name__}: {error}"
                + hidden_by(module)
            ) from error

    def _refuse_other_api(self) -> None:
        if problem := api_problem(self.api):
            raise BrokenPluginError(f"{self.kind} {self.name!r} from {self.origin} {problem}")


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    return (distribution.name, distribution.version) if distribution else ("unknown", "?")


_Found = dict[str, dict[tuple[str, str], Entry]]
"""Entries by name, and by distribution and value."""


@lru_cache(maxsize=len(KINDS))
def _installed(kind: Kind, look: Callable[[], EntryPoints], _: tuple[tuple[str, int], ...]) -> _Found:
    """Returns what installed distributions register, cached until a folder of `sys.path` changes."""
    found: _Found = defaultdict(dict)
    written_for: dict[str, set[str]] = defaultdict(set)
    points = look()
    of_points = cache(_name_and_version)  # else metadata would be parsed for each entry point
    for point in points.select(group=API_GROUP):
        written_for[of_points(point.dist)[0]].add(point.name)
    for point in points.select(group=f"earthbench.{kind}s"):
        distribution, version = of_points(point.dist)
        entry = Entry(kind, point.name, point.value, distribution, version, frozenset(written_for[distribution]))
        # The same distribution found twice (a wheel and its build folder on the path) is not a clash.
        found[point.name].setdefault((distribution.lower().replace("_", "-"), point.value), entry)
    return found


def _changed(folder: str) -> int:
    """Returns the modification time (ns) of an entry of `sys.path`; 0 if it does not exist."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0


def _candidates(kind: Kind) -> dict[str, list[Entry]]:
    installed = _installed(kind, entry_points, tuple((folder, _changed(folder)) for folder in sys.path))
    found = {name: dict(by_origin) for name, by_origin in installed.items()}
    for name, value, path, api in file_entries(f"{kind}s"):
        found.setdefault(name, {})[str(path), value] = Entry(kind, name, value, "file", path.name, api)
    return {name: list(by_origin.values()) for name, by_origin in sorted(found.items())}


def entries(kind: Kind) -> dict[str, list[Entry]]:
    """Returns every registered name of a kind with its entries; more than one entry is a clash."""
    return _candidates(kind)


def names(kind: Kind) -> list[str]:
    """Returns the registered names of a kind, sorted."""
    return list(_candidates(kind))


def clash_message(kind: Kind, name: str, clashing: list[Entry]) -> str:
    """Returns the message about a name that several distributions registered, naming every origin."""
    origins = " and ".join(entry.origin for entry in clashing)
    return f"{kind} {name!r} is registered twice: {origins}. Rename one of them or uninstall its distribution."


def find(kind: Kind, name: str) -> Entry:
    """Returns the entry of a registered name.

    Raises:
        UnknownNameError: nothing has this name; the message offers the nearest.
        NameClashError: two distributions registered it; the message names both origins.
    """
    known = _candidates(kind)
    if name not in known:
        raise UnknownNameError(f"unknown {kind} {name!r}. {did_you_mean(str(name), known)}")
    if len(known[name]) > 1:
        raise NameClashError(clash_message(kind, name, known[name]))
    return known[name][0]


def name_of(kind: Kind, thing: type) -> str | None:
    """Returns the name under which a class is registered, or None; imports nothing."""
    for name, candidates in _candidates(kind).items():
        for entry in candidates:
            module, _, attribute = entry.value.partition(":")
            if attribute == thing.__qualname__ and module == thing.__module__:
                return name
    return None

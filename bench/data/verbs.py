"""The verbs `earthbench data make|fetch|convert` of a task: validated options, and a method that does the work.

A task lists its verbs in `data_verbs`: `{"make": "module:Class", "fetch": "module:Class", "convert:SOURCE": ...}`;
`"fetch:NAME"` is a data set with its own name, `earthbench data fetch NAME`.

The fields of the class are the flags of the command, so each option is defined once and can be used from Python, too.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from bench.errors import BrokenPluginError

AdvanceLabel = Callable[[str, int, int], None]
"""Called with `(what, done, total)` to report progress; `total` is 0 if unknown."""
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path in which `~` is the user's home."""


@dataclass(frozen=True)
class Plan:
    """The plan of a verb: lines for the reader, and whether it needs consent."""

    lines: tuple[str, ...] = ()
    ask: bool = False


class DataVerb(BaseModel, ABC):
    """One verb of `earthbench data` for a task; its fields are the flags of the command.

    Field names become flags (`train_count` is `--train-count`), descriptions their help, defaults their defaults.
    Importing the module of a verb must not import torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    summary: ClassVar[str]
    """One line for `--help`."""

    def plan(self, advance: AdvanceLabel) -> Plan:
        """Returns what `run` is about to do, to show it first; may already read, e.g. a catalogue."""
        return Plan()

    @abstractmethod
    def run(self, advance: AdvanceLabel) -> list[str]:
        """Does the work, and returns the lines to print.

        Args:
            advance: Called with `(what, done, total)`.

        Raises:
            UsageError: the arguments or the data are invalid; no unfinished file is left under a final name.
        """


def load_verb(value: str) -> type[DataVerb]:
    """Returns the verb class that `module:Class` names.

    Raises:
        BrokenPluginError: it cannot be imported, or is no `DataVerb`.
    """
    module, _, name = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise BrokenPluginError(f"data verb {value!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, DataVerb)):
        raise BrokenPluginError(f"data verb {value!r} is not a subclass of bench.data.verbs.DataVerb")
    return found

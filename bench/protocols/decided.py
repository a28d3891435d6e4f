"""Decisions of a board, beside its protocol: steps, choices from the grid, and the data."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field

from bench.errors import ConfigError
from bench.files import replacing
from bench.protocols.board import BoardFile, BoardRow
from bench.protocols.entries import Strict
from bench.protocols.files import read_protocol

_HEAD = """\
# Written by `earthbench board run`: what was decided for {name}.yaml, and is used again instead of deciding anew.
# Remove an entry to decide it again.
"""


class Tried(Strict):
    """A point of the grid."""

    settings: tuple[str, ...]
    steps: int
    score: float | None
    """Score of the best validation; None if none was finite or the training failed."""


class Decision(Strict):
    """How a row is trained."""

    asked: str
    """`BoardRow.asked`: a decision for another question does not count."""
    steps: int
    chosen: tuple[str, ...] = ()
    """From the grid."""
    monitor: str | None = None
    """The validation score that chose."""
    tried: tuple[Tried, ...] = ()
    on: str = ""
    """The processor or device that the budget was measured on."""


class Decided(Strict):
    """The decisions of a board."""

    data: dict[str, str] = Field(default_factory=dict)
    """Fingerprints by split, with folds by `SPLIT, FOLD`."""
    rows: dict[str, Decision] = Field(default_factory=dict)

    def of(self, row: BoardRow) -> Decision | None:
        """Returns the decisions for a row; None if there are none, or the row has changed since."""
        found = self.rows.get(row.key)
        return found if found is not None and found.asked == row.asked else None

    def is_settled(self, row: BoardRow) -> bool:
        """Returns whether nothing is left to decide before a row's runs."""
        return not row.decides or self.of(row) is not None

    def steps_of(self, row: BoardRow) -> int | None:
        """Returns the steps of a row's trainings; None if they are not decided yet, or it has none."""
        if row.budget is not None and row.budget.steps is not None:
            return row.budget.steps
        found = self.of(row)
        return None if found is None else found.steps

    def run_overrides(self, row: BoardRow, seed: int, fold: str | None = None) -> list[str]:
        """Returns the overrides of one run as it was decided."""
        found = self.of(row)
        return row.run_overrides(seed, () if found is None else found.chosen, self.steps_of(row), fold)


def read_decided(board: BoardFile) -> Decided:
    """Returns the decisions so far; empty if there is no file.

    Raises:
        ConfigError: the file is not readable or not valid, or it decides rows that the board does not have.
    """
    path: Path = board.decided_path
    if not path.exists():
        return Decided()
    found = read_protocol(path, Decided)
    unknown = sorted(found.rows.keys() - {row.key for row in board.rows()})
    if unknown:
        raise ConfigError(f"{path}: {board.path.name} has no row {unknown[0]!r}: remove the entry")
    return found


def write_decided(board: BoardFile, decided: Decided) -> None:
    """Writes the decisions so far, atomically."""
    content = decided.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    with replacing(board.decided_path) as part:
        part.write_text(_HEAD.format(name=board.name) + text, encoding="utf-8")

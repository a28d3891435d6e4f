"""A board: one YAML file that says what is compared, on which data, with which budget, seeds and references.

It is `ROOT/boards/NAME.yaml`; its records go to `ROOT/runs`, its table to `ROOT/tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from bench import registry
from bench.config import Config, compose, fingerprint, numbers_only
from bench.errors import ConfigError, did_you_mean
from bench.paths import AnyPath
from bench.protocols.entries import Alternatives, Setting, Strict, composed, key_of, layered, value_of
from bench.protocols.files import read_protocol
from bench.protocols.variants import Ablation, variants, varied_keys

FOLDER, _SUFFIX, _DECIDED = "boards", ".yaml", ".decided.yaml"
TABLES = "boards/"
"""Begins the name of a board's table."""
_WITHOUT_END = "train.max_epochs=1000000"
"""The steps end the training; `train.max_epochs` is required to be a number."""
_BUDGETS = ("cpu_s", "device_s", "steps")


class Budget(Strict):
    """What each training may take: exactly one of `cpu_s`, `device_s` and `steps`."""

    cpu_s: float | None = Field(None, gt=0)
    """Processor seconds of training steps, see `train.max_cpu_s`."""
    device_s: float | None = Field(None, gt=0)
    """Seconds of the device, see `train.max_device_s`."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    val_every_steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Budget:
        given = [key for key in _BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(_BUDGETS)}, found {' and '.join(given) or 'none'}")
        return self

    def overrides(self, steps: int | None) -> list[str]:
        """Returns the settings of a training.

        Args:
            steps: Decided before; None for a training that decides them itself.
        """
        steps = steps if self.steps is None else self.steps
        limits = [f"train.max_cpu_s={self.cpu_s}"] if self.cpu_s is not None else []
        limits += [f"train.max_device_s={self.device_s}"] if self.device_s is not None else []
        validation = [] if self.val_every_steps is None else [f"train.val_every_steps={self.val_every_steps}"]
        return [_WITHOUT_END, *([f"train.max_steps={steps}"] if steps is not None else limits), *validation]


class Entry(Strict):
    """A row: what it is called, and what is run."""

    label: str | None = None
    """None for the name."""
    overrides: tuple[Setting, ...] = ()
    """Without `model=`, the model is that of the row's name."""


Entries = Annotated[
    dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Annotated[Entry, BeforeValidator(lambda given: given or {})]],
    Field(default={}),
]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class BoardAblation(Ablation):
    """An ablation as a further block of a board, with the board's budget and seeds unless it has its own."""

    seeds: Seeds | None = None
    budget: Budget | None = None


class Board(Strict):
    """The protocol of a board."""

    title: str
    task: str
    data: str
    """How the data are made or fetched: commands or words."""
    units: str
    """What the independent units of the test split are, in words."""
    base: tuple[Setting, ...] = ()
    """Overrides of all runs."""
    budget: Budget | None = None
    seeds: Seeds = (0, 1, 2)
    folds: tuple[Setting, ...] = ()
    """Settings, each of which leaves other data for the test: every run is made once for each, and its scores are those
    of all of them together. A number N is short for `task.folds=N` in `base`, and `task.fold=0` to `N - 1` here."""
    columns: tuple[str, ...] = ()
    """Scores in the order of the table: rows are ranked by the first. Empty: those of the task's table of runs."""
    per_lead: str | None = None
    """The score of the picture by lead time; None for the first column."""
    references: Entries
    rows: Entries
    grid: tuple[Alternatives, ...] = ()
    """Tried for each row with the first seed: the best validation score decides."""
    ablations: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], BoardAblation] = Field(default_factory=dict)
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_folds(cls, given: Any) -> Any:
        """Writes a number of folds out."""
        if not isinstance(given, dict) or not isinstance(count := given.get("folds"), int):
            return given
        base = [f"task.folds={count}", *(given.get("base") or ())]
        return {**given, "base": base, "folds": [f"task.fold={number}" for number in range(count)]}

    @model_validator(mode="after")
    def _is_complete(self) -> Board:
        if self.task not in (known := registry.names("task")):
            raise ValueError(f"unknown task {self.task!r}. {did_you_mean(self.task, known)}")
        if self.rows and self.budget is None:
            raise ValueError("rows need a budget: budget: {cpu_s: 60}")
        if missing := [name for name, one in self.ablations.items() if (one.budget or self.budget) is None]:
            raise ValueError(f"ablations.{missing[0]} needs a budget: budget: {{cpu_s: 60}}")
        if taken := sorted(self.ablations.keys() & {"references", "rows"}):
            raise ValueError(f"{taken[0]} is the name of a block of its own, and of no ablation")
        if both := sorted(self.rows.keys() & self.references.keys()):
            raise ValueError(f"{both[0]} is the name of both a reference and a row")
        return self


@dataclass(frozen=True)
class BoardRow:
    """A row of a board: one config for each of its seeds."""

    key: str
    label: str
    block: str
    """`references`, `rows`, or the name of an ablation."""
    overrides: tuple[str, ...]
    """Of all its runs; seed, budget and decisions left out."""
    seeds: tuple[int, ...]
    budget: Budget | None
    """None for a reference: nothing of it is trained in steps."""
    grid: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Returns the name of the model."""
        return next(value_of(one) for one in self.overrides if key_of(one) == "model")

    @property
    def decides(self) -> bool:
        """Returns whether something is decided before it is run: its steps, or its choice from the grid."""
        return self.budget is not None and (self.budget.steps is None or bool(self.grid))

    @property
    def asked(self) -> str:
        """Returns a digest of what a decision depends on."""
        budget = None if self.budget is None else self.budget.model_dump(mode="json")
        return fingerprint([sorted(self.overrides), self.seeds[0], budget, list(self.grid), *self.folds[:1]])[:16]

    @property
    def runs(self) -> list[tuple[int, str | None]]:
        """Returns seed and fold of each run, the folds of a seed together; None if there are no folds."""
        return [(seed, fold) for seed in self.seeds for fold in self.folds or (None,)]

    def run_overrides(
        self, seed: int, chosen: Sequence[str] = (), steps: int | None = None, fold: str | None = None
    ) -> list[str]:
        """Returns the overrides of one run.

        Args:
            seed: Of the run.
            chosen: From the grid.
            steps: As they were decided.
            fold: Of the run; None for the first one, on which everything is decided.
        """
        limits = [] if self.budget is None else self.budget.overrides(steps)
        of_fold = self.folds[:1] if fold is None else [fold]
        return layered(self.overrides, limits, chosen, of_fold, [f"seed={seed}"])


@dataclass(frozen=True)
class BoardFile:
    """A board and its file."""

    board: Board
    path: Path

    @property
    def name(self) -> str:
        """Returns the board's name."""
        return self.path.name.removesuffix(_SUFFIX)

    @property
    def table(self) -> str:
        """Returns the name of its table."""
        return TABLES + self.name

    @property
    def root(self) -> Path:
        """Returns the results root."""
        return self.path.parent.parent

    @property
    def decided_path(self) -> Path:
        """Returns the file of its decisions."""
        return self.path.with_name(f"{self.name}{_DECIDED}")

    def rows(self) -> list[BoardRow]:
        """Returns all rows, block by block.

        Raises:
            ConfigError: an override that does not parse, or a config that is not valid.
        """
        board, base = self.board, [f"task={self.board.task}", *self.board.base]
        rows = [
            BoardRow(name, one.label or name, "references", _of_entry(base, name, one), (0,), None, folds=board.folds)
            for name, one in board.references.items()
        ]
        rows += [
            BoardRow(
                name,
                one.label or name,
                "rows",
                _of_entry(base, name, one),
                board.seeds,
                board.budget,
                board.grid,
                board.folds,
            )
            for name, one in board.rows.items()
        ]
        for name, ablation in board.ablations.items():
            rows += _of_ablation(name, ablation, board, base)
        return rows


def _of_entry(base: Sequence[str], name: str, entry: Entry) -> tuple[str, ...]:
    return tuple(layered(base, [f"model={name}"], entry.overrides))


def _of_ablation(name: str, ablation: BoardAblation, board: Board, base: Sequence[str]) -> list[BoardRow]:
    runs = variants(ablation, (), base)
    varied = varied_keys(runs) or list(runs[0].settings)[-1:]
    rows = []
    for run in runs:
        settings = {ablation.labels.get(key, key): run.settings[key] for key in varied if key in run.settings}
        label = ", ".join(f"{heading} {value}" for heading, value in settings.items())
        seeds, budget = ablation.seeds or board.seeds, ablation.budget or board.budget
        rows.append(BoardRow(f"{name}: {label}", label, name, run.overrides, seeds, budget, folds=board.folds))
    return rows


def read_board(path: Path) -> BoardFile:
    """Returns the board of a file.

    Raises:
        ConfigError: it is not in a folder `boards`, is not readable, or a key or value is wrong; names each.
    """
    path = path.expanduser().absolute()
    if not path.name.endswith(_SUFFIX) or path.name.endswith(_DECIDED):
        raise ConfigError(f"{path}: a board is a file NAME{_SUFFIX}")
    if path.parent.name != FOLDER:
        raise ConfigError(
            f"{path}: a board must be in a folder {FOLDER!r}, whose parent takes its records and tables: move it to "
            f"results/{FOLDER}/{path.name}"
        )
    return BoardFile(read_protocol(path, Board), path)


def board_names(root: AnyPath) -> list[str]:
    """Returns the names of the boards under a results root."""
    folder = root / FOLDER
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted(
        name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and not name.endswith(_DECIDED)
    )


def run_names(row: BoardRow, chosen: Sequence[str] = (), steps: int | None = None) -> dict[int, tuple[str, ...]]:
    """Returns by seed the fingerprints that name the configs of its runs, one per fold: their records carry them."""
    first = composed(tuple(row.run_overrides(row.seeds[0], chosen, steps)))
    configs = [first, *(_of_fold(first, row, fold, chosen, steps) for fold in row.folds[1:])]
    return {
        seed: tuple(fingerprint(numbers_only(config.model_copy(update={"seed": seed}))) for config in configs)
        for seed in row.seeds
    }


def _of_fold(first: Config, row: BoardRow, fold: str, chosen: Sequence[str], steps: int | None) -> Config:
    """Returns the config of a row's first run with another fold; a number needs no composing."""
    if key_of(fold) == "task.fold" == key_of(row.folds[0]) and value_of(fold).isdecimal():
        return first.model_copy(update={"task": first.task.model_copy(update={"fold": int(value_of(fold))})})
    return composed(tuple(row.run_overrides(row.seeds[0], chosen, steps, fold)))


def refuse_other_numbers(row: BoardRow, typed: Sequence[str]) -> None:
    """Refuses overrides of the command line that would change a number of the board.

    Raises:
        ConfigError: names those that change a number.
    """
    if not typed:
        return
    plain = row.run_overrides(row.seeds[0], steps=1)
    wanted = fingerprint(numbers_only(compose(plain)))
    for word in typed:
        if key_of(word).startswith("hydra"):
            continue
        if fingerprint(numbers_only(compose(layered(plain, [word])))) != wanted:
            raise ConfigError(
                f"{key_of(word)}={value_of(word)} would change the board's numbers. The command line takes locations "
                "and speed only (data.root, work, device, data.num_workers, hydra/launcher); edit the YAML file instead"
            )

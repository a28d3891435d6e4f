"""Definitions of tables: columns, rows, and the conditions on their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.config import explain
from bench.errors import DataError, UnknownNameError, did_you_mean, one_message
from bench.metrics.names import better_of

COSTS = {
    "parameters": "every element of every parameter",
    "gmacs": "fvcore, batch 1, multiply-add = 1; of an ensemble, one member with all steps of its sampling",
    "training_s": "wall time of the training on the device that the record names",
    "cpu_s": "processor seconds of the training's steps, over all threads",
}
"""Costs that a column may show besides scores, and how they are counted."""
SIZES = ("parameters", "gmacs")
"""Those that are of a model alone: all its runs have the same."""


class StrictModel(BaseModel):
    """A frozen part of a definition; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(StrictModel):
    """One column: the source of its value and its format."""

    key: str
    """A score of the task, or one of `COSTS`."""
    label: str
    group: str = ""
    """Heading that it shares with its neighbours."""
    scale: float = 1.0
    """Printed value = measured value x scale: the paper's units."""
    digits: int = 4
    better: Literal["higher", "lower"] | None = None
    """By default, the direction of the score in `bench.metrics.names`."""
    skill_of: str | None = None
    """The column whose skill against the best trivial reference on the same data this one shows. In a table with such a
    column, a row that does not beat that reference in a score is not ranked in it."""
    rank_of: str | None = None
    """The column whose ranks this one shows, see `bench.tables.standings.with_ranks`."""
    optional: bool = False
    """Hidden if no run has the score, e.g. of a metric added to the task after its runs were published."""
    tolerance_percent: float | None = None
    """Status `match` within this; default: half a unit of the published figure's last digit."""

    @model_validator(mode="before")
    @classmethod
    def _take_direction(cls, given: Any) -> Any:
        if isinstance(given, dict) and "better" not in given:
            better = better_of(str(given.get("key")))
            return {**given, "better": better if isinstance(better, str) else None}
        return given


class Row(StrictModel):
    """One row: a model, and remarks on the row."""

    model: str
    label: str
    name: str = ""
    """Name of the row if its model has several; else its model's name."""
    options: dict[str, Any] = {}
    """Hyperparameters in which the row differs from the model's preset for the task."""
    experiment: tuple[str, ...] = ()
    """Overrides that give the paper's training, for `earthbench reproduce`; else the table's."""
    task_options: dict[str, Any] = {}
    """Options of the task in which the row differs from the table's."""
    training: dict[str, Any] = {}
    """`train.*` settings in which the row differs from the table's."""
    training_sequence_counts: tuple[int, ...] = ()
    """Sequences of its complete training split; empty for the table's."""
    note: str = ""
    """Note on the row as a whole."""
    notes: dict[str, str] = {}
    """Column key -> remark on its published figure."""
    published_factors: dict[str, float] = {}
    """Column key -> factor that the published figure carries against our counting, e.g. 2 for PredRNN's GFLOPS."""
    configs: tuple[tuple[str, ...], ...] = ()
    """On a board: the fingerprints of its runs' configs, by seed and fold; empty if they are not decided yet."""
    own_runs: tuple[str, ...] = ()
    """For a model that is not in the paper (`bench.tables.own_rows`): the ids of the row's runs."""

    @property
    def key(self) -> str:
        """Returns the name of the row within its table."""
        return self.name or self.model


class Group(StrictModel):
    """A block of a board: rows whose runs are named by their configs."""

    name: str
    """`references`, `rows`, or the name of an ablation."""
    title: str
    rows: tuple[Row, ...]
    ranked: bool
    """Whether the rows are ranked; references are not."""


class Table(StrictModel):
    """A table of models on a task, with published figures or without."""

    name: str = Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_]+)*$")
    title: str
    task: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()
    """Empty, and no groups: one block per data set, with a row for each model that has a record."""
    groups: tuple[Group, ...] = ()
    """Of a board: its blocks."""
    data: dict[str, str] = {}
    """On a board: the fingerprints of its data by split; records of other data are left out."""
    published: str | None = None
    """File under `results/published`, or the full path of a plugin's file."""
    settings: str | None = None
    """File under `results/published/settings`: where the rows' training settings come from."""
    split: str = "test"
    data_origin: str = "files"
    """Of both training and test: `files`, the official ones, or what `DATASET.json` of generated data says."""
    sequence_counts: tuple[int, ...] = ()
    """What the complete split has; a record with another count is other data."""
    training_sequence_counts: tuple[int, ...] = ()
    """What the complete training split has."""
    task_options: dict[str, Any] = {}
    """Options of the task that differ from its defaults: a record with others is of another task."""
    training: dict[str, Any] = {}
    """The paper's settings, `train.*` keys of the config; a record that deviates is marked."""
    experiment: tuple[str, ...] = ()
    """Overrides that give the paper's training, for `earthbench reproduce`."""
    note: str = ""

    @property
    def file_stem(self) -> str:
        """Returns the name of its files: published figures, renderings, a page of the report."""
        return self.name.replace("/", "_")

    def task_options_of(self, row: Row) -> dict[str, Any]:
        """Returns the options of a row's task that differ from the task's defaults."""
        return {**self.task_options, **row.task_options}

    def training_of(self, row: Row) -> dict[str, Any]:
        """Returns the paper's `train.*` settings of a row; none for one that is not in the paper."""
        return {} if row.own_runs else {**self.training, **row.training}

    def training_counts_of(self, row: Row) -> tuple[int, ...]:
        """Returns the numbers of training sequences that records of a row may have."""
        return row.training_sequence_counts or self.training_sequence_counts

    def row(self, key: str) -> Row:
        """Returns the row of a key.

        Raises:
            UnknownNameError: the table has no such row; the message offers the nearest.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise UnknownNameError(
            f"table {self.name!r} has no row {key!r}. {did_you_mean(key, [row.key for row in self.rows])}"
        )

    def column(self, key: str) -> Column:
        """Returns the column of a key.

        Raises:
            UnknownNameError: the table has no such column; the message offers the nearest.
        """
        for column in self.columns:
            if column.key == key:
                return column
        raise UnknownNameError(
            f"table {self.name!r} has no column {key!r}. {did_you_mean(key, [column.key for column in self.columns])}"
        )

    def named(self, name: str) -> Column:
        """Returns the column of a key or, in whatever case, a label.

        Raises:
            UnknownNameError: the table has no such column; the message offers the nearest.
        """
        label = name.casefold()
        by_label = (column.key for column in self.columns if column.label.casefold() == label)
        keys = {column.key for column in self.columns}
        return self.column(name if name in keys else next(by_label, name))


def main_column(table: Table) -> Column | None:
    """Returns the column that a table's rows are sorted by, its first score; None if it has none."""
    return next((column for column in table.columns if column.better and column.key not in COSTS), None)


class PublishedValue(StrictModel):
    """One published figure."""

    value: float
    text: str
    sources: tuple[str, ...] = Field(min_length=1)
    note: str | None = None
    incomparable: str | None = None
    """Why our value must not be compared with it, e.g. another protocol; no difference is then given."""


class Source(StrictModel):
    """A source of figures."""

    title: str
    by: str
    kind: Literal["authors", "transcribed"]
    url: str
    note: str


class Published(StrictModel):
    """The figures of one published table, each with its sources."""

    schema_version: Literal[1]
    table: str
    paper: dict[str, str]
    caption: str
    units: dict[str, str]
    sources: dict[str, Source]
    rows: dict[str, dict[str, PublishedValue]]


def published_folder() -> Path:
    """Returns the folder of the published figures: in an installed wheel, or the checkout's `results/published`."""
    here = Path(__file__).resolve().parent
    packaged = here / "published"
    return packaged if packaged.is_dir() else here.parents[1] / "results" / "published"


def load_published(file_name: str) -> Published:
    """Returns the published figures of a file.

    Raises:
        DataError: the file is missing, or a figure in it lacks a value or a known source.
    """
    path = published_folder() / file_name
    try:
        published = Published.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(one_message(f"{path} is not valid:", explain(error, Published))) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    problems = [
        f"{row}.{column}: source {source!r} is not described"
        for row, figures in published.rows.items()
        for column, figure in figures.items()
        for source in figure.sources
        if source not in published.sources
    ]
    problems += [
        f"{row}.{column}: {figure.text!r} is not {figure.value}"
        for row, figures in published.rows.items()
        for column, figure in figures.items()
        if float(figure.text) != figure.value
    ]
    if problems:
        raise DataError(one_message(f"{path} is not valid:", problems))
    return published

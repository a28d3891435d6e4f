"""The task contract: a frozen, checked description that joins a data set, its units and its metrics."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.api import SPLITS, Palette, Shape, Split
from bench.config import fingerprint
from bench.data.plausibility import Plausible
from bench.errors import ConfigError, DataError, counted, did_you_mean
from bench.paths import expand_environment

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Float32, Real
    from torch import Tensor

    from bench.data.leaks import Leak, SplitEvents
    from bench.data.report import Advance, Report
    from bench.data.sequences import SequenceDataset


@dataclass(frozen=True)
class FrameCoordinates:
    """Times and coordinates of a forecast's frames, from the data."""

    start: Any
    """Time of the newest frame of the context, datetime64."""
    names: tuple[str, str]
    """Names of the dimensions y and x."""
    y: Any
    """Coordinates of the rows, float64 `(H,)`; None if the data have none."""
    x: Any
    attributes: tuple[dict[str, Any], dict[str, Any]]
    mapping: dict[str, Any]
    """Attributes of the CF grid mapping; empty if there is none."""
    variables: tuple[str, ...]
    units: tuple[str, ...]
    """Units of each channel of the target."""
    auxiliary: Mapping[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    """Further coordinates by name: values on (y, x), such as the latitudes of a curvilinear grid, and attributes."""


class NormalisedSequences:
    """A split as users see it: `dataset[i]` is `(context, target)` in the task's normalised units.

    `dataset.source` has the same sequences as stored on disk, which is what data loaders transfer.
    """

    def __init__(self, task: Task, source: SequenceDataset, split: Split) -> None:
        self.task, self.source, self.split = task, source, split

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns one identifier per independent event."""
        return self.source.ids

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns context `(T_in,H,W,C)` and target `(T_out,H,W,C)`, float32, normalised."""
        return self.task.item(self.source, index)

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target in their stored units and dtype, followed by labels, if any."""
        return self.source.stored(index)

    @property
    def why_empty(self) -> str:
        """Returns why there are no sequences, as a sentence followed by a space; empty if the data do not tell."""
        reason = self.source.why_empty
        return f"{reason[0].upper()}{reason[1:]}. " if reason else ""

    @property
    def incomplete(self) -> str | None:
        """Returns why sequences of the split are missing, or None if it is complete."""
        skipped = self.source.skipped_ids
        return f"{counted(len(skipped), 'event')} skipped: {', '.join(skipped[:5])}" if skipped else None

    def identity(self) -> dict[str, Any]:
        """Returns the identity of this split's data, with what it shares with other splits, if anything."""
        identity = self.source.identity()
        leaks = [leak.facts() for leak in self.task.leaks if self.split in leak.splits]
        return {**identity, "leaks": leaks} if leaks else identity


class Task(BaseModel, ABC):
    """Definition of a forecasting problem.  Importing a task's module must not import torch, as listings import it.

    Fields are the task's options, set by `task.FIELD=...` or `load_task(name, FIELD=...)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Incremented whenever scores of the task may change."""
    units: ClassVar[str]
    """Physical units that metrics see, if all data have the same."""
    published_sequences: ClassVar[dict[str, int]] = {}
    """Sequences per split of the complete, official data set, which rows of a published table must have used."""
    palette: ClassVar[Palette] = Palette()
    """Colours and levels for drawing frames, in physical units."""
    timeless: ClassVar[bool] = False
    """Whether frames have no physical time; lead times are then given in frames."""
    event_threshold: ClassVar[float | None] = None
    """Threshold in physical units; pictures of ensembles show the share of members at or above it."""
    regions: ClassVar[dict[str, tuple[float, float, float, float]]] = {}
    """Boxes outlined in pictures, by name: first row, last row, first column, last column, in cells of a frame."""
    degrees: ClassVar[tuple[range, range] | None] = None
    """Latitudes of the rows and longitudes of the columns, if they are the same in all data."""
    plausible: ClassVar[Plausible | None] = None
    """Range of possible values in physical units; readers refuse others."""
    data_verbs: ClassVar[dict[str, str]] = {}
    """`module:Class` of each `bench.data.verbs.DataVerb` by its name in `earthbench data`: `make`, `fetch`, or
    `convert:SOURCE` for data of the task SOURCE."""
    reads_addresses: ClassVar[bool] = False
    """Whether `data_root` may be an fsspec address, such as `s3://bucket/folder`."""
    presets_of: ClassVar[str | None] = None
    """Another task with the same shapes, whose presets are used by models without a preset for this one."""
    from_training: ClassVar[frozenset[str]] = frozenset()
    """Options whose values come from the training data unless given; they are stored with the weights."""
    selection_fields: ClassVar[frozenset[str]] = frozenset()
    """Options that select or score events; weights trained with other values may be evaluated."""
    context_fields: ClassVar[frozenset[str]] = frozenset()
    """Options that change only the model's input; runs that differ in them have the same targets and are comparable."""
    data_root: Path | None = None
    """A folder; for an address, a `upath.UPath`, which has the methods of a `Path`."""

    @field_validator("data_root", mode="plain")
    @classmethod
    def _root_is_a_folder(cls, root: str | Path | None) -> Path | None:
        if root is None:
            return None
        root = expand_environment(root, "data.root") if isinstance(root, str) else root
        if "://" in str(root):
            from bench.data.transfer.paths import open_root

            if cls.reads_addresses:
                try:
                    return open_root(root)
                except ConfigError as error:  # pydantic would wrap its message
                    raise DataError(str(error)) from error
            raise ConfigError(f"data.root={root}: task {cls.name!r} reads folders only; download the data first")
        root = Path(root).expanduser()
        if not os.path.isdir(root):  # noqa: PTH112 - unlike `Path.is_dir`, false also for a name that no disk takes
            raise DataError(
                f"data root {str(root)!r} is not a folder: expected the data of task {cls.name!r} there. "
                "Set data.root to where it lies (`earthbench data --help` lists how to fetch, make or convert it)."
            )
        return root

    @property
    @abstractmethod
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the task's registered metrics and their options, in the convention of its published table."""

    @property
    def augments(self) -> bool:
        """Returns whether training sequences are turned and mirrored at random."""
        return False

    @property
    def further_channels(self) -> tuple[str, ...]:
        """Returns the variables of the channels after the first; the task's metrics then score only the first."""
        return ()

    @property
    @abstractmethod
    def input_shape(self) -> Shape:
        """Returns `(T_in, H, W, C)` of a context."""

    @property
    @abstractmethod
    def target_shape(self) -> Shape:
        """Returns `(T_out, H, W, C)` of a target."""

    @property
    @abstractmethod
    def cadence_minutes(self) -> float:
        """Returns the time between frames in minutes."""

    @property
    def physical_units(self) -> str:
        """Returns the physical units that metrics see; those of the data if they have their own."""
        return self.units

    @property
    def picture_palette(self) -> Palette:
        """Returns the palette for drawing frames."""
        return self.palette

    def cell_weights(self) -> dict[str, np.ndarray]:
        """Returns named weights `(H,W)` of a frame's cells, from 0 to 1, for errors with `weights`; none by default."""
        return {}

    def taken_from_training(self) -> dict[str, Any]:
        """Returns the options whose values come from the training data and are kept for other data."""
        return {}

    def coordinates(self, split: Split, index: int) -> FrameCoordinates | None:
        """Returns times and coordinates of a sequence's frames; None if the data do not have them."""
        return None

    def latest(self) -> tuple[Tensor, FrameCoordinates]:
        """Returns the newest context, as stored, and its coordinates.

        Raises:
            ConfigError: the data are separate events without a newest one.
        """
        raise ConfigError(
            f"task {self.name!r} consists of separate events, so there is no latest context: use --sequence N"
        )

    @abstractmethod
    def sequences(self, split: Split) -> SequenceDataset:
        """Returns the stored sequences of a split; called once per split.

        Any object with `__len__`, `ids`, `stored` and `identity` works; see `bench.data.sequences.PlainSequences`.
        """

    @abstractmethod
    def normalise(self, physical: Real[Tensor, "*b t h w c"]) -> Float32[Tensor, "*b t h w c"]:
        """Returns normalised units, float32, for physical ones of any dtype."""

    @abstractmethod
    def denormalise(self, normalised: Float[Tensor, "*b t h w c"]) -> Float32[Tensor, "*b t h w c"]:
        """Returns physical units, float32, for normalised ones."""

    @property
    def zero(self) -> float:
        """Returns the value of 0 in physical units on the scale that models see."""
        import torch

        return float(self.normalise(torch.zeros(())))

    def to_context(self, stored: Real[Tensor, "*b t h w c"]) -> Float32[Tensor, "*b t h w c"]:
        """Returns the model's input for a stored context: float32, normalised, without missing values."""
        return self.normalise(stored)

    def context_known(self, stored: Real[Tensor, "*b t h w c"]) -> Bool[Tensor, "*b t h w c"]:
        """Returns where a stored context was observed, bool, shaped as the result of `to_context`."""
        import torch

        return ~torch.isnan(self.to_context(stored))

    def to_target(self, stored: Real[Tensor, "*b t h w c"]) -> Real[Tensor, "*b t h w c"]:
        """Returns a stored target for metrics: in physical units, missing pixels NaN if the task masks them."""
        return stored

    def item(
        self, source: SequenceDataset, index: int
    ) -> tuple[Float[Tensor, "t_in h w c_in"], Float[Tensor, "t_out h w c_out"]]:
        """Returns one sequence as users see it: normalised context and target."""
        context, target = source.stored(index)[:2]
        return self.to_context(context), self.normalise(self.to_target(target))

    def dataset(self, split: Split) -> NormalisedSequences:
        """Returns the map-style data set of a split; items are `(context, target)`, float32 `(T,H,W,C)`, normalised.

        Raises:
            ConfigError: no such split, or the task has no data root.
            DataError: the files have problems; the message lists all of them.
        """
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}. {did_you_mean(str(split), SPLITS)}")
        if self.data_root is None:
            raise ConfigError(f"task {self.name!r} has no data: give data.root=DIR (data_root=... in Python)")
        if split not in self._datasets:
            from bench.data.sequences import as_sequences

            self._datasets[split] = NormalisedSequences(self, as_sequences(self.sequences(split)), split)
        return self._datasets[split]

    @cached_property
    def _datasets(self) -> dict[str, NormalisedSequences]:
        return {}

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data and their problems, for `earthbench data info` and `check`.

        By default this opens every split; tasks override it to report more about their format.

        Args:
            read_everything: Whether to read every value, which shows further problems.
            advance: Called with `(done, total)` as events are read.
        """
        from bench.data.report import Report

        report = Report({"root": str(self.data_root), "splits": {}}, lines=[str(self.data_root)])
        for split in SPLITS:
            try:
                data = self.dataset(split)
            except DataError as error:
                report.problems.append(f"split {split}: {error}")
            else:
                report.facts["splits"][split] = {"events": len(data.ids), "sequences": len(data)}
        report.facts["events"] = max((count["events"] for count in report.facts["splits"].values()), default=0)
        report.add_split_lines()
        return report

    def events(self, split: Split) -> SplitEvents:
        """Returns ids and times of a split's events.

        By default this opens the split; tasks that do not need to read values override it.
        """
        from bench.data.leaks import SplitEvents

        data = self.dataset(split)
        return SplitEvents(data.ids, data.source.times)

    @cached_property
    def leaks(self) -> list[Leak]:
        """Returns the events that train, val and test share, pair by pair; a split without files shares nothing."""
        from bench.data.leaks import find_leaks

        splits = {}
        for split in SPLITS[:3]:
            with suppress(DataError):
                splits[split] = self.events(split)
        return find_leaks(splits)  # type: ignore[arg-type]

    @property
    def shared_by_design(self) -> frozenset[frozenset[str]]:
        """Returns the pairs of splits that share events because the user chose such a split."""
        return frozenset()

    def inspect_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns the report of `describe_data`, with the events that splits share."""
        from bench.data.leaks import add_leaks

        report = self.describe_data(read_everything=read_everything, advance=advance)
        if not report.problems and not report.facts.get("events"):
            report.problems.append(f"there are no events of task {self.name!r}")
        if not report.problems:
            add_leaks(report, self.leaks, by_design=self.shared_by_design)
        return report

    def fields(self) -> dict[str, Any]:
        """Returns the task's options as plain JSON types, without the data root."""
        return self.model_dump(mode="json", exclude={"data_root"})

    def defaults(self) -> dict[str, Any]:
        """Returns the default options of this task."""
        return type(self)().fields()

    def data_fingerprint(self, split: Split) -> str:
        """Returns the SHA-256 of a split's identity, which does not depend on the location of the data."""
        return fingerprint(self.dataset(split).identity())


class Augmentable(Task, ABC):
    """A task whose frames have no preferred direction, so that training may use rotated and mirrored ones."""

    augment: bool = Field(
        False,
        description="turn and mirror each training sequence one of eight ways (four where H and W differ), redrawn "
        "in each epoch; not for fields with directions of their own, such as wind components",
    )

    @property
    def augments(self) -> bool:
        """Returns whether training sequences are turned and mirrored at random."""
        return self.augment

    def fields(self) -> dict[str, Any]:
        """Returns the task's options; without `augment` if it is off, as in records from before this option."""
        return {key: value for key, value in super().fields().items() if key != "augment" or value}

"""SEVIR precipitation nowcasting: vertically integrated liquid (VIL) of storm events, and its low-resolution form.

Sources: Veillette et al. 2020 (data); Gao et al. 2022, Earthformer (13 -> 12 frames, splits by date, 0-1 scale);
Gao et al. 2023, PreDiff (SEVIR-LR, 7 -> 6 frames).
"""

from __future__ import annotations

import warnings
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.api import SPLITS, Palette, Shape, Split
from bench.data.folds import check_fold
from bench.data.plausibility import VIL_CODE, Plausible
from bench.data.sevir.splits import TEST_FROM, VAL_FROM, days_of_splits, split_dates
from bench.errors import DataError
from bench.tasks.task import Augmentable, FrameCoordinates, Task

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.leaks import SplitEvents
    from bench.data.report import Advance, Report
    from bench.data.sequences import SequenceDataset
    from bench.data.sevir.catalogue import Event, Part
    from bench.data.sevir.dataset import SevirSequences

# As in the papers, scaling is a float32 product with 1/255 and its inverse a float32 division by 1/255. This pair is
# exact for every integer code (except 255 -> 254.99998), unlike x/255, which would return 219 one ulp too low.
_SCALE = 1.0 / 255.0
_MISSING = 255
_EXTENT_KM = 384
_LEAST_RAIN = 16
"""VIL code, the lowest threshold of the scores."""
# Levels and colours of the SEVIR project's own plots (Veillette et al. 2020); the levels include the verification
# thresholds 16, 74, 133, 160, 181 and 219.
_PALETTE = Palette(
    levels=(0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255),
    colours=(
        "#000000", "#4d4d4d", "#28be28", "#199619", "#0a690a", "#0a4b0a", "#f5f500", "#edac00", "#f06e00", "#a00000",
        "#e700ff",
    ),
)  # fmt: skip


class Sevir(Augmentable):
    """SEVIR: 65 minutes of VIL in, 60 minutes out (13 -> 12 frames of 384x384, every 5 minutes).

    Frames per event and frame size are read from the files, so that any tree in SEVIR's format works.
    """

    name: ClassVar[str] = "sevir"
    units: ClassVar[str] = "VIL code 0..255"
    published_sequences: ClassVar[dict[str, int]] = {"train": 35_718, "val": 9_060, "test": 12_159}
    palette: ClassVar[Palette] = _PALETTE
    plausible: ClassVar[Plausible | None] = VIL_CODE
    data_verbs: ClassVar[dict[str, str]] = {
        "make": "bench.data.sevir.synthetic:MakeStorms",
        "fetch": "bench.data.sevir.download:FetchSevir",
    }
    reads_addresses: ClassVar[bool] = True
    selection_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "stride", "val_from", "test_from", "admit_missing", "skip_missing", "mask_missing", "split_by", "augment",
            "folds", "fold", "val_days",
        }
    )  # fmt: skip
    nominal_size: ClassVar[int] = 384
    nominal_cadence: ClassVar[float] = 5.0
    event_threshold: ClassVar[float | None] = 74.0

    t_in: int = Field(13, ge=1, description="frames of the context")
    t_out: int = Field(12, ge=1, description="frames of the target")
    stride: int = Field(12, ge=1, description="frames between the starts of an event's windows")
    val_from: datetime = Field(VAL_FROM, description="train <= this date < validation")
    test_from: datetime = Field(TEST_FROM, description="validation <= this date < test")
    admit_missing: bool = Field(False, description="keep events with missing pixels (pct_missing > 0)")
    skip_missing: bool = Field(
        False, description="leave out events whose files are missing or wrong; the run then is partial"
    )
    mask_missing: bool = Field(False, description="code 255: no echo in contexts, not verified in targets")
    folds: int | None = Field(None, description="blocks of whole days that are left out in turn, instead of dates")
    fold: int | None = Field(None, description="the block to test on, from 0; the next one is for validation")
    val_days: int | None = Field(
        None, ge=1, description="with folds: days of that block for validation, the rest for training; null: all"
    )

    @model_validator(mode="after")
    def _a_fold(self) -> Sevir:
        dates = frozenset({"val_from", "test_from", "split_by"})
        check_fold(self.folds, self.fold, dates, self.model_fields_set)
        if self.val_days is not None and self.folds is None:
            raise ValueError(f"val_days={self.val_days} needs folds; expected val_from and test_from without")
        return self

    def fields(self) -> dict[str, Any]:
        """Returns the options as plain JSON types; those of folds only if used, because older records have none."""
        unused = () if self.folds is not None else ("folds", "fold", "val_days")
        return {key: value for key, value in super().fields().items() if key not in unused}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the metrics of the papers' table, in the papers' convention.

        If missing pixels are masked, mean errors are in the convention `correct`: the papers' has no rule for missing
        pixels, and a single one would invalidate a score.
        """
        errors = {"convention": "correct" if self.mask_missing else "upstream", "scale": 255.0, "t_out": self.t_out}
        return {"skill": {"convention": "upstream", "t_out": self.t_out}, "mse": dict(errors), "mae": dict(errors)}

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, H, W, 1)`."""
        return (self.t_in, *self.frame_size, 1)

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, H, W, 1)`."""
        return (self.t_out, *self.frame_size, 1)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Returns `(H, W)` of the files, or the nominal size without files."""
        return self._stored_form[:2]

    @property
    def cadence_minutes(self) -> float:
        """Returns the minutes between frames from the catalogue, or the nominal ones if it does not have them."""
        return self._stored_form[2]

    @cached_property
    def _stored_form(self) -> tuple[int, int, float]:
        from bench.data.sevir.catalogue import cadence_minutes, read_catalogue, select_events
        from bench.data.sevir.stored_events import first_header

        nominal = self.nominal_size, self.nominal_size, self.nominal_cadence
        if self.data_root is None:
            return nominal
        catalogue = read_catalogue(self.data_root)
        header = first_header(self.data_root, select_events(catalogue, admit_missing=self.admit_missing))
        cadence = cadence_minutes(catalogue, header.frames if header else None) or self.nominal_cadence
        return (header.height, header.width, cadence) if header else (*nominal[:2], cadence)

    @cached_property
    def pixel_kilometres(self) -> float:
        """Returns the width of a pixel in km: the catalogue's median, or the nominal one if it has none."""
        from bench.data.sevir.catalogue import pixel_kilometres, read_catalogue

        nominal = _EXTENT_KM / self.nominal_size
        return nominal if self.data_root is None else pixel_kilometres(read_catalogue(self.data_root)) or nominal

    @property
    def least_rain(self) -> float:
        """Returns the least rain, on the scale that models see."""
        return _LEAST_RAIN / 255

    def split_dates(self) -> dict[Split, tuple[datetime | None, datetime | None]]:
        """Returns the dates of each split: the centre of an event is after the first, and not after the second."""
        return split_dates(self.val_from, self.test_from)

    def sequences(self, split: Split) -> SequenceDataset:
        """Returns the stored windows of a split."""
        return self._sequences_of(self.part(split))

    def part(self, split: Split) -> Part:
        """Returns the rule that selects the events of a split."""
        if self.folds is not None and self.fold is not None:
            days = days_of_splits(self._days, self.folds, self.fold, self.val_days)
            return {} if split == "all" else {"days": days[split]}
        start, end = self.split_dates()[split]
        return {"start": start, "end": end}

    @cached_property
    def _days(self) -> tuple[date, ...]:
        """Returns the days with events, in order; an event belongs to the day of its centre."""
        from bench.data.sevir.catalogue import read_catalogue, select_events

        assert self.data_root is not None
        events = select_events(read_catalogue(self.data_root), admit_missing=self.admit_missing)
        return tuple(sorted({event.time.date() for event in events}))

    def _sequences_of(self, part: Part) -> SevirSequences:
        from bench.data.sevir.dataset import SevirSequences

        assert self.data_root is not None
        return SevirSequences(
            self.data_root,
            t_in=self.t_in,
            t_out=self.t_out,
            stride=self.stride,
            admit_missing=self.admit_missing,
            skip_missing=self.skip_missing,
            **part,
        )

    def events(self, split: Split) -> SplitEvents:
        """Returns ids and times of a split's events, from the catalogue alone."""
        from bench.data.leaks import SplitEvents
        from bench.data.sevir.catalogue import read_catalogue, select_events
        from bench.data.sevir.stored_events import storage_of

        assert self.data_root is not None
        catalogue = read_catalogue(self.data_root)
        chosen = select_events(catalogue, admit_missing=self.admit_missing, **self.part(split))
        storage = storage_of(self.data_root, chosen)
        return SplitEvents(tuple(event.id for event in chosen), tuple(event.span for event in chosen), storage)

    def coordinates(self, split: Split, index: int) -> FrameCoordinates | None:
        """Returns times and coordinates of a window's frames, as far as the catalogue has them."""
        from bench.data.sevir.dataset import SevirSequences

        windows = self.dataset(split).source
        if not isinstance(windows, SevirSequences):
            return None
        event, first = windows.where(index)
        return self._coordinates(event, first + self.t_in - 1)

    def latest(self) -> tuple[Tensor, FrameCoordinates]:
        """Returns the last frames of the event that ends last, as stored, and their coordinates.

        Raises:
            DataError: the tree has no events, or its catalogue no `minute_offsets`.
        """
        from bench.data.sevir.dataset import SevirSequences

        assert self.data_root is not None
        windows = SevirSequences(
            self.data_root, t_in=self.t_in, t_out=0, stride=1, admit_missing=self.admit_missing,
            skip_missing=self.skip_missing,
        )  # fmt: skip
        if not len(windows):
            raise DataError(f"{self.data_root} has no events: {windows.why_empty}")
        number, event = max(enumerate(windows.events), key=lambda found: (found[1].span[1], -found[0]))
        index = (number + 1) * windows.windows_per_event - 1
        coordinates = self._coordinates(event, windows.where(index)[1] + self.t_in - 1)
        if coordinates is None:
            raise DataError(
                f"{self.data_root}/CATALOG.csv has no minute_offsets for event {event.id}, so its latest frames are "
                "unknown. Use --sequence N"
            )
        return windows.stored(index)[0], coordinates

    def _coordinates(self, event: Event, newest: int) -> FrameCoordinates | None:
        """Returns time and coordinates of frame `newest` of an event; None if the catalogue does not have its time."""
        import numpy as np

        from bench.data.sevir.catalogue import read_catalogue
        from bench.data.sevir.places import pixel_axes

        if self.data_root is None or event.frames is None:
            return None
        minutes = event.minutes[0] + newest * self.cadence_minutes
        axes = pixel_axes(read_catalogue(self.data_root), event.id, self.frame_size)
        return FrameCoordinates(
            start=np.datetime64(event.time, "s") + np.timedelta64(round(60 * minutes), "s"),
            names=("y", "x"),
            y=axes.y if axes else None,
            x=axes.x if axes else None,
            attributes=axes.attributes if axes else ({}, {}),
            mapping=axes.mapping if axes else {},
            variables=("vil",),
            units=("1",),
        )

    def item(self, source: SequenceDataset, index: int) -> tuple[Tensor, Tensor]:
        """Returns one window on the 0-1 scale."""
        if self.mask_missing:
            return super().item(source, index)
        return source.scaled(index, _SCALE)

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root and their problems."""
        from bench.data.sevir import check as sevir_report

        assert self.data_root is not None
        window = self.t_in + self.t_out
        parts = {split: self.part(split) for split in SPLITS}
        report = sevir_report.describe(
            self.data_root, parts, window=window, stride=self.stride, admit_missing=self.admit_missing
        )
        if read_everything:
            sevir_report.read_everything(self.data_root, report, parts, advance, admit_missing=self.admit_missing)
        return report

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns VIL codes on the 0-1 scale, float32."""
        return physical.float() * _SCALE

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns VIL codes, float32, for the 0-1 scale."""
        import torch

        # The divisor is a tensor on the device: for a Python number, CUDA would multiply by its reciprocal.
        return normalised.to(torch.float32) / torch.tensor(_SCALE, dtype=torch.float32, device=normalised.device)

    def to_context(self, stored: Tensor) -> Tensor:
        """Returns the normalised context; missing pixels become "no echo" if the task masks them."""
        if not self.mask_missing:
            return self.normalise(stored)
        missing = stored == _MISSING
        if stored.is_floating_point():  # from a file written by earthbench
            missing |= stored.isnan()
        return self.normalise(stored.masked_fill(missing, 0))

    def context_known(self, stored: Tensor) -> Tensor:
        """Returns where the context was observed: everywhere, unless the task masks missing pixels."""
        return stored != _MISSING if self.mask_missing else super().context_known(stored)

    def to_target(self, stored: Tensor) -> Tensor:
        """Returns the target's codes; missing pixels become NaN if the task masks them."""
        if not self.mask_missing:
            return stored
        return stored.float().masked_fill(stored == _MISSING, float("nan"))


class SevirLR(Sevir):
    """SEVIR-LR: 70 minutes of VIL in, 60 minutes out (7 -> 6 frames of 128x128, every 10 minutes).

    Every second frame and the maximum of 3x3 pixels of SEVIR, stored in the same layout.
    """

    name: ClassVar[str] = "sevir_lr"
    published_sequences: ClassVar[dict[str, int]] = {}
    data_verbs: ClassVar[dict[str, str]] = {
        "make": "bench.data.sevir.synthetic:MakeLowResolutionStorms",
        "fetch": "bench.data.author_archives:FetchSevirLR",
        "convert:sevir": "bench.data.sevir.convert:ConvertToLowResolution",
    }
    nominal_size: ClassVar[int] = 128
    nominal_cadence: ClassVar[float] = 10.0

    t_in: int = Field(7, ge=1, description="frames of the context")
    t_out: int = Field(6, ge=1, description="frames of the target")
    stride: int = Field(6, ge=1, description="frames between the starts of an event's windows")
    split_by: Literal["date", "random"] = Field(
        "date", description="random: training and validation are 90/10 of the windows up to test_from, as the authors'"
    )

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns SEVIR's metrics, and the skill after max-pooling that PreDiff reports, if frames are large enough."""
        pools = [pool for pool in (1, 4, 16) if pool <= min(self.frame_size)]
        found = super().metrics
        return {**found, "skill": {**found["skill"], "pool": pools}}

    def sequences(self, split: Split) -> SequenceDataset:
        """Returns the stored windows of a split, by date or, for training and validation, at random as the authors."""
        if self.split_by == "date" or split not in ("train", "val"):
            return super().sequences(split)
        from bench.data.sevir.splits import RandomPart

        part = RandomPart(self._sequences_of({"end": self.test_from}), split)
        warnings.warn(
            "task.split_by=random: windows of one event are in training and in validation, so that validation scores "
            "are optimistic (`earthbench data info` counts them)",
            stacklevel=2,
        )
        return part

    def events(self, split: Split) -> SplitEvents:
        """Returns ids and times of a split's events."""
        if self.split_by == "date" or split not in ("train", "val"):
            return super().events(split)
        return Task.events(self, split)

    @property
    def shared_by_design(self) -> frozenset[frozenset[str]]:
        """Returns the pair of training and validation if they are a random split of windows."""
        return frozenset({frozenset({"train", "val"})} if self.split_by == "random" else ())

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root and their problems."""
        report = super().describe_data(read_everything=read_everything, advance=advance)
        if self.split_by == "random" and not report.problems:
            for split in ("train", "val"):
                data = self.dataset(split)
                report.facts["splits"][split] = {"events": len(data.ids), "sequences": len(data)}
                report.lines.append(f"  random split: {split} has {len(data)} windows of {len(data.ids)} events")
        return report

"""The user's cube on (time, y, x) in any format that xarray reads, forecast and scored like the built-in tasks."""

from __future__ import annotations

import os
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from bench.api import SPLITS, Palette, Shape, Split
from bench.data.folds import check_fold
from bench.errors import ConfigError, DataError
from bench.paths import expand_environment
from bench.tasks.task import Augmentable, FrameCoordinates

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.grid.cube import Cube
    from bench.data.grid.dataset import Cut, GridWindows
    from bench.data.leaks import SplitEvents
    from bench.data.report import Advance, Report

_NOMINAL_SIZE = 128
# Presets by the smaller side of a frame: models with the number of levels that fits this size.
_PRESETS = ((192, "sevir"), (96, "sevir_lr"), (48, "nbody_mnist"), (0, "icar_enso"))


class Grid(Augmentable):
    """Any cube on (time, y, x) that xarray reads: NetCDF, Zarr, a folder or glob of files, or an fsspec address.

    `data.root` is read as stored, frame by frame; cadence and gaps come from the times, and no window reaches over a
    gap.  NaN is missing: filled with 0 on the model's scale in contexts, left out of every loss and score in targets.
    Without dates, training has the first 70 % of the frames and validation 15 %; with `folds` and `fold`, blocks of
    time are left out in turn.  Scores are in the data's units, in the convention `correct`.
    """

    name: ClassVar[str] = "grid"
    units: ClassVar[str] = "the data's own units"
    reads_addresses: ClassVar[bool] = True
    data_verbs: ClassVar[dict[str, str]] = {
        "make": "bench.data.grid.synthetic:MakeRain",
        "convert:radar_files": "bench.data.grid.radar_files:ConvertRadarFiles",
        "convert:meteonet": "bench.data.grid.meteonet:ConvertMeteonet",
    }
    from_training: ClassVar[frozenset[str]] = frozenset({"normalisation"})
    selection_fields: ClassVar[frozenset[str]] = frozenset(
        {"stride", "val_from", "test_from", "split_by", "folds", "fold", "box", "random_crop", "thresholds", "augment"}
    )

    variable: str | tuple[str, ...] | None = Field(
        None, description="what is forecast: a variable, or several, each a channel; null: the only one that there is"
    )
    static: tuple[str, ...] = Field((), description="variables on (y, x) that are further channels of contexts")
    t_in: int = Field(10, ge=1, description="frames of the context")
    t_out: int = Field(10, ge=1, description="frames of the target")
    stride: int = Field(1, ge=1, description="frames between the starts of windows")
    thresholds: tuple[float, ...] = Field((), description="of the first variable, in its units, for CSI and its kin")
    data_units: str | None = Field(None, description="what the data's units have to be; null: what they are")
    scale: Literal["linear", "log1p", "dbz", "zscore"] = Field(
        "zscore", description="what models see: linear and log1p are 0-1 over the training data, dbz is dBZ / 60"
    )
    normalisation: tuple[tuple[float, float], ...] | None = Field(
        None, description="[offset, span] of each channel on that scale; null: from the training split"
    )
    split_by: Literal["date", "place"] = Field("date", description="place: each split has columns of crops of its own")
    val_from: datetime | None = Field(None, description="training ends before this time, validation begins")
    test_from: datetime | None = Field(None, description="validation ends before this time, the test begins")
    folds: int | None = Field(None, description="blocks of time, of equal length, that are left out in turn")
    fold: int | None = Field(None, description="the block to test on, from 0; the next one is for validation")
    box: tuple[int, int, int, int] | None = Field(
        None, description="[ROW, END_ROW, COLUMN, END_COLUMN] of the pixels that are used; null: all"
    )
    crop: tuple[int, int] | None = Field(None, description="[H, W]: cut the frames into crops, each a sequence")
    random_crop: bool = Field(False, description="training crops lie anywhere instead of side by side")

    @field_validator("variable", mode="after")
    @classmethod
    def _named(cls, variable: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        return variable[0] if isinstance(variable, tuple) and len(variable) == 1 else variable

    @field_validator("val_from", "test_from", mode="after")
    @classmethod
    def _as_stored(cls, date: datetime | None) -> datetime | None:
        """Drops the time zone of a date in UTC, because times of files are in UTC without a time zone."""
        if date is not None and date.utcoffset():
            raise ValueError(f"expected UTC, found {date.isoformat()}")
        return date.replace(tzinfo=None) if date is not None else None

    @field_validator("data_root", mode="plain")
    @classmethod
    def _root_is_a_folder(cls, root: str | Path | None) -> Path | None:
        """Accepts a file, a folder, a glob or an address."""
        if root is None:
            return None
        root = expand_environment(root, "data.root") if isinstance(root, str) else root
        if "://" in str(root):
            return super()._root_is_a_folder(root)
        root = Path(root).expanduser()
        if not ("*" in str(root) or "?" in str(root) or os.path.lexists(root)):
            raise DataError(
                f"data root {str(root)!r} is not there: expected a NetCDF file, a Zarr store, a folder of them or a "
                "glob"
            )
        return root

    @model_validator(mode="after")
    def _crops_fit(self) -> Grid:
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop={list(self.crop)}: expected a height and a width >= 1")
        if self.random_crop and (self.crop is None or self.split_by == "place"):
            raise ValueError("random_crop=true needs crop=[H,W] and split_by=date")
        if self.val_from and self.test_from and self.val_from > self.test_from:
            raise ValueError(f"val_from={self.val_from} is after test_from={self.test_from}")
        check_fold(self.folds, self.fold, frozenset({"val_from", "test_from", "split_by"}), self.model_fields_set)
        return self

    @cached_property
    def cube(self) -> Cube:
        """Returns the data under the root.

        Raises:
            DataError: they are not a cube, or not in the units `task.data_units`.
        """
        from bench.data.grid.cube import Cube

        assert self.data_root is not None
        cube = Cube(self.data_root, self._variables, self.static)
        if self.data_units is not None and cube.units[0] != self.data_units:
            raise DataError(
                f"{self.data_root}: {cube.names[0]}: expected units {self.data_units!r} (task.data_units), found "
                f"{cube.units[0]!r}. Convert the values, or correct the attribute `units`"
            )
        return cube

    @property
    def _variables(self) -> tuple[str, ...]:
        return (self.variable,) if isinstance(self.variable, str) else (self.variable or ())

    @property
    def physical_units(self) -> str:
        """Returns the units of the first variable, from the data."""
        return self.cube.units[0] if self.data_root is not None else self.data_units or self.units

    @property
    def picture_palette(self) -> Palette:
        """Returns a palette that draws north at the top, whichever way the rows run."""
        north = self.data_root is not None and self.cube.grid.from_north
        return Palette(first_row="upper" if north else "lower")

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns skill at the thresholds, if there are any, and mean errors in physical units."""
        common = {"convention": "correct", "t_out": self.t_out}
        skill = {"skill": {**common, "thresholds": list(self.thresholds), "missing_value": None}}
        errors = {name: {**common, "scale": 1.0} for name in ("mse", "mae")}
        return {**(skill if self.thresholds else {}), **errors}

    @property
    def further_channels(self) -> tuple[str, ...]:
        """Returns the variables after the first one, which get errors only."""
        return self._variables[1:]

    @property
    def _frame(self) -> tuple[int, int]:
        if self.data_root is None:
            return self.crop or (_NOMINAL_SIZE, _NOMINAL_SIZE)
        return self._cut.shape(self.cube.grid.size)

    @property
    def _channels(self) -> int:
        return len(self.cube.names) if self.data_root is not None else max(1, len(self._variables))

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, H, W, C + static fields)`."""
        return (self.t_in, *self._frame, self._channels + len(self.static))

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, H, W, C)`."""
        return (self.t_out, *self._frame, self._channels)

    @property
    def cadence_minutes(self) -> float:
        """Returns the minutes between frames."""
        return self.cube.axis.cadence_minutes if self.data_root is not None else 5.0

    @property
    def presets_of(self) -> str:  # type: ignore[override] # depends on the size of the frames
        """Returns the task whose presets fit frames of this size."""
        return next(name for least, name in _PRESETS if min(self._frame) >= least)

    @property
    def pixel_kilometres(self) -> float:
        """Returns the width of a pixel in km: from the data if x is in metres, kilometres or degrees, else 1."""
        grid = self.cube.grid if self.data_root is not None else None
        x = grid.coordinates[1] if grid is not None else None
        if grid is None or x is None or len(x) < 2:
            return 1.0
        step = float(np.median(np.abs(np.diff(x))))
        units = str(grid.attributes[1].get("units", "")).lower()
        return step * {"m": 1e-3, "metre": 1e-3, "meters": 1e-3}.get(units, 111.2 if units.startswith("deg") else 1.0)

    @property
    def least_rain(self) -> float:
        """Returns the least rain, on the scale that models see: the lowest threshold, else what the units suggest."""
        import torch

        from bench.data.grid.scales import least_rain

        least = min(self.thresholds) if self.thresholds else least_rain(self.physical_units)
        return float(self.normalise(torch.tensor(least)))

    @property
    def _cut(self) -> Cut:
        from bench.data.grid.dataset import Cut

        return Cut(self.t_in, self.t_out, self.stride, self.box, self.crop, self.random_crop)

    def sequences(self, split: Split) -> GridWindows:
        """Returns the stored windows of a split."""
        from bench.data.grid.dataset import GridWindows, refuse_short

        refuse_short(self.cube, self.t_in + self.t_out)
        dates = tuple(None if date is None else np.datetime64(date, "s") for date in (self.val_from, self.test_from))
        fold = None if self.folds is None or self.fold is None else (self.folds, self.fold)
        return GridWindows(self.cube, split, self._cut, by=self.split_by, dates=(dates[0], dates[1]), fold=fold)

    def cell_weights(self) -> dict[str, np.ndarray]:
        """Returns `area`, the cosine of latitude, if rows have a latitude and frames are not cut into crops."""
        grid = self.cube.grid if self.data_root is not None and self.crop is None else None
        latitudes = grid.coordinates[0] if grid is not None else None
        if grid is None or latitudes is None or not str(grid.attributes[0].get("units", "")).startswith("deg"):
            return {}
        top, bottom, left, right = self._cut.extent(grid.size)
        return {"area": np.repeat(np.cos(np.deg2rad(latitudes[top:bottom]))[:, None], right - left, 1)}

    def events(self, split: Split) -> SplitEvents:
        """Returns the ids of a split's frames, which contain their times."""
        from bench.data.leaks import SplitEvents

        return SplitEvents(self.dataset(split).ids)

    @cached_property
    def normalisations(self) -> tuple[tuple[float, float], ...]:
        """Returns `(offset, span)` of each variable, then of each static field: given, or from the training split.

        Without data, they are those that do not change values, except for a single channel with scale `dbz`.

        Raises:
            ConfigError: the given ones do not fit the number of channels, or a span is 0.
            DataError: the training split has no known values.
        """
        channels = self._channels + len(self.static)
        if self.normalisation is not None:
            if len(self.normalisation) != channels or any(span == 0 for _, span in self.normalisation):
                raise ConfigError(
                    f"task.normalisation: expected [offset, span] for each of {channels} channels, spans not 0, found "
                    f"{[list(pair) for pair in self.normalisation]}"
                )
            return self.normalisation
        if self.data_root is None:
            if self.scale == "dbz" and channels == 1:
                return ((0.0, 60.0),)
            return ((0.0, 1.0),) * channels
        from bench.data.grid.scales import normalisations_of

        return tuple(normalisations_of(self.sequences("train"), self.scale))

    def fields(self) -> dict[str, Any]:
        """Returns the options as plain JSON types; the normalisation as it is used."""
        names = (
            {"variable": self.cube.names[0] if self._channels == 1 else list(self.cube.names)} if self.data_root else {}
        )
        unused = {"folds", "fold"} if self.folds is None else set()  # older records do not have folds
        own = {key: value for key, value in super().fields().items() if key not in unused}
        return {**own, **names, **self.taken_from_training()}

    def taken_from_training(self) -> dict[str, Any]:
        """Returns the normalisation."""
        if self.data_root is None:
            return {}
        return {"normalisation": [list(pair) for pair in self.normalisations]}

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns values on the scale that models see, float32, for physical `(...,C)`, static fields last, if any."""
        from bench.data.grid.scales import transformed

        offset, span = self._affine(physical)
        if physical.dim() == 0 or physical.shape[-1] <= self._channels:
            return (transformed(physical, self.scale, rate=self._rate) - offset) / span
        import torch

        fields, static = physical[..., : self._channels], physical[..., self._channels :].float()
        return (torch.cat([transformed(fields, self.scale, rate=self._rate), static], -1) - offset) / span

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns physical values, float32, for values on the scale that models see."""
        from bench.data.grid.scales import restored

        offset, span = self._affine(normalised)
        values = normalised.float() * span + offset
        if values.dim() == 0 or values.shape[-1] <= self._channels:
            return restored(values, self.scale, rate=self._rate)
        import torch

        fields, static = values[..., : self._channels], values[..., self._channels :]
        return torch.cat([restored(fields, self.scale, rate=self._rate), static], -1)

    @cached_property
    def _rate(self) -> bool:
        from bench.data.grid.scales import is_rate

        return self.data_root is None or is_rate(self.cube.units[0])

    def _affine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns offsets and spans that broadcast with `(...,C)`; for a single value, those of the first channel."""
        import torch

        channels = 1 if values.dim() == 0 else values.shape[-1]
        found = torch.tensor(self.normalisations[:channels], dtype=torch.float32, device=values.device)
        return (found[0, 0], found[0, 1]) if values.dim() == 0 else (found[:, 0], found[:, 1])

    def to_context(self, stored: Tensor) -> Tensor:
        """Returns the normalised context with missing pixels as 0: the mean for zscore, the minimum otherwise."""
        return self.normalise(stored).nan_to_num(nan=0.0)

    def context_known(self, stored: Tensor) -> Tensor:
        """Returns where the context was observed."""
        return ~stored.isnan()

    def coordinates(self, split: Split, index: int) -> FrameCoordinates:
        """Returns times and coordinates of a sequence's frames."""
        windows = self.sequences(split)
        place, start = windows.where(index)
        return self._coordinates(place.row, place.column, start, start + self.t_in + self.t_out)

    def latest(self) -> tuple[Tensor, FrameCoordinates]:
        """Returns the newest context `(T_in,H,W,C)`, as stored, of the first crop, and its coordinates.

        Raises:
            DataError: the newest frames have a gap.
        """
        import torch

        end = len(self.cube)
        start = self.cube.axis.stretches(0, end)[-1][0]
        if end - start < self.t_in:
            raise DataError(
                f"{self.data_root}: the newest frames begin at {self.cube.axis.times[start]}, after a gap: "
                f"{end - start} of the {self.t_in} that a context needs"
            )
        place, (height, width) = self._cut.places(self.cube.grid.size)[0], self._frame
        rows, columns = slice(place.row, place.row + height), slice(place.column, place.column + width)
        context = torch.from_numpy(self.cube.read(end - self.t_in, end, rows, columns))
        if self.cube.static is not None:
            fields = torch.from_numpy(self.cube.static[:, rows, columns]).movedim(0, -1)
            context = torch.cat([context, fields.expand(self.t_in, -1, -1, -1)], -1)
        return context, self._coordinates(place.row, place.column, end - self.t_in, end)

    def _coordinates(self, row: int, column: int, first: int, last: int) -> FrameCoordinates:
        grid, (height, width) = self.cube.grid, self._frame
        y, x = grid.coordinates
        return FrameCoordinates(
            start=self.cube.axis.times[first + self.t_in - 1],
            names=grid.names,
            y=None if y is None else y[row : row + height],
            x=None if x is None else x[column : column + width],
            attributes=grid.attributes,
            mapping=grid.mapping,
            variables=self.cube.names,
            units=self.cube.units,
            auxiliary={
                name: (values[row : row + height, column : column + width], attributes)
                for name, (values, attributes) in grid.auxiliary.items()
            },
        )

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root and their problems."""
        from bench.data.grid.check import describe

        try:
            windows = {split: self.sequences(split) for split in SPLITS}
        except DataError as error:
            from bench.data.report import Report

            return Report(problems=[str(error)])
        return describe(
            self.cube, windows, self.thresholds, self.scale, read_everything=read_everything, advance=advance
        )

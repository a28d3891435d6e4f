"""Observed sea-surface temperature of the tropical Pacific, and the Nino3.4 index in it.

Source: Huang et al. 2017, ERSSTv5 (NOAA); grid, scale and windows are those of ICAR-ENSO, so that models trained on
climate models can be tried on observations.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bench.api import Shape, Split
from bench.data.folds import blocks, check_fold, leave_out
from bench.errors import DataError
from bench.tasks.task import FrameCoordinates
from bench.tasks.tropical_pacific import TropicalPacific

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.ersst.anomalies import BasePeriod, Months
    from bench.data.ersst.dataset import ErsstWindows
    from bench.data.report import Advance, Report

_UNSET = {"variable": None, "folds": None, "fold": None, "val_years": None, "calendar": False}
"""Options added later; unless they are used, the names of records and checkpoints do not contain them, as before."""


class EnsoErsst(TropicalPacific):
    """Observed SST (NOAA ERSST, or another): 12 months of anomaly in, 14 months out (24x48, every month), by time.

    Five-degree means by area, 0 on land; anomalies from the mean of each calendar month over a base period; a window
    is in a split only with all of its months, so that no month is in two.  Errors are in K, and C-Nino3.4 is in the
    convention `correct`: a forecast without variance, such as the climatology, has no correlation.

    The base period is 1961-1990, the standard normal that ends before the test and that the shorter records have too.

    With `folds` and `fold`, blocks of whole years are left out one after the other: fold k is tested on block k and
    validated on the next one, and anomalies are from the months of the training alone.

    Models see the 0-1 scale of ICAR-ENSO, which weights that were trained on climate models need.  Its range
    of 27 K leaves observed anomalies a standard deviation of 0.02: to train on observations, set `scale=kelvin`.
    """

    name: ClassVar[str] = "enso_ersst"
    presets_of: ClassVar[str] = "icar_enso"
    selection_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "train_gap", "eval_gap", "train_from", "val_from", "test_from", "test_to", "nino34_box", "variable",
            "folds", "fold", "val_years",
        }
    )  # fmt: skip
    context_fields: ClassVar[frozenset[str]] = frozenset({"calendar"})
    data_verbs: ClassVar[dict[str, str]] = {
        "make": "bench.data.ersst.synthetic:MakeSst",
        "fetch": "bench.data.ersst.download:FetchErsst",
        "fetch:ersst": "bench.data.ersst.v3b:FetchErsstV3b",
    }

    train_from: date = Field(date(1950, 1, 1), description="training begins; few ships crossed the Pacific before")
    val_from: date = Field(date(1990, 1, 1), description="training ends before this date, validation begins")
    test_from: date = Field(date(2000, 1, 1), description="validation ends before this date, the test begins")
    test_to: date = Field(date(2025, 1, 1), description="the test ends before this date")
    base_from: int = Field(1961, ge=1, le=9999, description="first year of the base period of anomalies")
    base_to: int = Field(1990, ge=1, le=9999, description="last year of the base period")
    nino34_box: Literal["exact", "papers"] = Field(
        "exact", description="5 S..5 N, 170..120 W exactly, or the papers' cells, which reach 2.5 degrees further"
    )

    scale: Literal["icar_enso", "kelvin"] = Field(
        "icar_enso", description="what models see: ICAR-ENSO's 0-1 scale, which its weights need, or anomalies in K"
    )
    variable: str | None = Field(
        None, description="of the temperatures or anomalies; null: the one known by its name or standard_name"
    )
    calendar: bool = Field(
        False, description="two more channels of contexts: sine and cosine of the season of each month"
    )
    folds: int | None = Field(None, description="blocks of whole years that train_from..test_to is cut into")
    fold: int | None = Field(None, description="the block to test on, from 0; the next one is for validation")
    val_years: int | None = Field(
        None, ge=1, description="with folds: years of that block for validation, the rest for training; null: all"
    )

    @model_validator(mode="after")
    def _in_order(self) -> EnsoErsst:
        dates = (self.train_from, self.val_from, self.test_from, self.test_to)
        if list(dates) != sorted(dates) or any(day.day != 1 for day in dates):
            raise ValueError(
                f"train_from, val_from, test_from and test_to are {', '.join(map(str, dates))}; "
                "expected first days of months, in this order"
            )
        return self

    @model_validator(mode="after")
    def _a_fold(self) -> EnsoErsst:
        dates = frozenset({"val_from", "test_from", "base_from", "base_to"})
        check_fold(self.folds, self.fold, dates, self.model_fields_set)
        if self.val_years is not None and self.folds is None:
            raise ValueError(f"val_years={self.val_years} needs folds; expected val_from and test_from without")
        return self

    def fields(self) -> dict[str, Any]:
        """Returns the options as plain JSON types."""
        found = super().fields()
        return {key: value for key, value in found.items() if key not in _UNSET or value != _UNSET[key]}

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, 24, 48, 1)`, with `calendar` `(T_in, 24, 48, 3)`."""
        *size, channels = super().input_shape
        return (size[0], size[1], size[2], channels + 2 * self.calendar)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns skill and error of the index, and errors of the field in K: of all cells, and by area at sea."""
        errors: dict[str, Any] = {"convention": "correct", "scale": 1.0, "t_out": self.t_out}
        by_area = {**errors, "weights": ["area", "ocean"]}
        return {
            "enso": {"convention": "correct", "t_out": self.t_out, "box": self.nino34_box},
            "mse": errors,
            "mae": errors,
            "mse@ocean": by_area,
            "mae@ocean": by_area,
        }

    def cell_weights(self) -> dict[str, np.ndarray]:
        """Returns `area`, and `ocean`, which is 1 for cells with a known temperature in every month, else 0."""
        from bench.data.ersst.anomalies import anomalies_of, cropped

        if self.data_root is None:
            return super().cell_weights()
        sea = anomalies_of(self.data_root, self._base, self.variable).sea
        return {**super().cell_weights(), "ocean": cropped(sea).astype(np.float64)}

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns temperature anomalies on the scale that models see, float32; channels of the season are unchanged."""
        return physical.float() if self.scale == "kelvin" else self._first_channel(physical, super().normalise)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns temperature anomalies in K, float32; channels of the season are unchanged."""
        return normalised.float() if self.scale == "kelvin" else self._first_channel(normalised, super().denormalise)

    @staticmethod
    def _first_channel(values: Tensor, rescaled: Callable[[Tensor], Tensor]) -> Tensor:
        if values.dim() == 0 or values.shape[-1] == 1:
            return rescaled(values)
        import torch

        return torch.cat([rescaled(values[..., :1]), values[..., 1:].float()], -1)

    def stretches(self) -> dict[Split, tuple[Months, ...]]:
        """Returns the months of each split; those of a fold end with the record."""
        dates = (self.train_from, self.val_from, self.test_from, self.test_to)
        begin, val, test, end = (np.datetime64(day, "M") for day in dates)
        if self.folds is None or self.fold is None:
            return {"train": ((begin, val),), "val": ((val, test),), "test": ((test, end),), "all": ((begin, end),)}
        from bench.data.ersst.anomalies import monthly_means

        assert self.data_root is not None
        months = monthly_means(self.data_root, self.variable).months
        begin, end = max(begin, months[0]), min(end, months[-1] + 1)
        first, last = begin.astype("datetime64[Y]"), (end - 1).astype("datetime64[Y]")
        years = blocks(int((last - first).astype(int)) + 1, self.folds)
        return {
            split: tuple(
                (max(begin, (first + a).astype("datetime64[M]")), min(end, (first + b).astype("datetime64[M]")))
                for a, b in parts
            )
            for split, parts in leave_out(years, self.fold, self.val_years).items()
        }

    @property
    def _base(self) -> BasePeriod:
        from bench.data.ersst.anomalies import BasePeriod

        if self.folds is None:
            return BasePeriod.years(self.base_from, self.base_to)
        return BasePeriod(self.stretches()["train"])

    def sequences(self, split: Split) -> ErsstWindows:
        """Returns the stored windows of a split, with the labels of their targets."""
        return self._windows(self.stretches()[split], self.train_gap if split == "train" else self.eval_gap)

    def _windows(self, stretches: tuple[Months, ...], gap: int) -> ErsstWindows:
        from bench.data.ersst.dataset import ErsstWindows

        assert self.data_root is not None
        return ErsstWindows(
            self.data_root,
            stretches=stretches,
            t_in=self.t_in,
            t_out=self.t_out,
            gap=gap,
            base=self._base,
            box=self.nino34_box,
            variable=self.variable,
            calendar=self.calendar,
        )

    def coordinates(self, split: Split, index: int) -> FrameCoordinates:
        """Returns the months and coordinates of a sequence's frames."""
        windows = self.sequences(split)
        return self._coordinates(windows.months[windows.starts_at(index) + self.t_in - 1])

    def latest(self) -> tuple[Tensor, FrameCoordinates]:
        """Returns the newest months of the record, as stored, and their coordinates.

        Raises:
            DataError: the record is shorter than a context.
        """
        from bench.data.ersst.anomalies import monthly_means

        assert self.data_root is not None
        months = monthly_means(self.data_root, self.variable).months
        if len(months) < self.t_in:
            raise DataError(f"{self.data_root}: {len(months)} months of the {self.t_in} that a context needs")
        windows = self._windows(((months[-self.t_in], months[-1] + 1),), 1)
        return windows.context(0), self._coordinates(months[-1])

    def _coordinates(self, newest: np.datetime64) -> FrameCoordinates:
        latitudes, longitudes = self.degrees
        return FrameCoordinates(
            start=newest.astype("M8[s]"),
            names=("lat", "lon"),
            y=np.array(latitudes, np.float64),
            x=np.array(longitudes, np.float64),
            attributes=(
                {"standard_name": "latitude", "units": "degrees_north"},
                {"standard_name": "longitude", "units": "degrees_east"},
            ),
            mapping={},
            variables=("sea-surface temperature anomaly",),
            units=("K",),
        )

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root and their problems."""
        from bench.data.ersst.dataset import describe

        assert self.data_root is not None
        report = super().describe_data()
        try:
            base = self._base
        except DataError as error:  # of folds, which need the record
            if not read_everything:
                raise
            report.problems = [str(error)]
            return report
        return describe(
            self.data_root,
            base,
            report,
            variable=self.variable,
            read_everything=read_everything,
            advance=advance,
        )

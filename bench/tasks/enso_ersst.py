"""Observed sea-surface temperature of the tropical Pacific, and the Nino3.4 index in it.

Source: Huang et al. 2017, ERSSTv5 (NOAA); grid, scale and windows are those of ICAR-ENSO, so that models trained on
climate models can be tried on observations.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.api import Split
from bench.tasks.tropical_pacific import TropicalPacific

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.ersst.dataset import ErsstWindows
    from bench.data.report import Advance, Report


class EnsoErsst(TropicalPacific):
    """Observed SST (NOAA ERSST): 12 months of anomaly in, 14 months out (24x48, every month), split by time.

    Five-degree means by area, 0 on land; anomalies from the mean of each calendar month over a base period; a window
    is in a split only with all of its months, so that no month is in two.  Errors are in K, and C-Nino3.4 is in the
    convention `correct`: a forecast without variance, such as the climatology, has no correlation.

    The base period is 1961-1990, the standard normal that ends before the test and that the shorter records have too.

    Models see the 0-1 scale of ICAR-ENSO, which weights that were trained on climate models need.  Its range
    of 27 K leaves observed anomalies a standard deviation of 0.02: to train on observations, set `scale=kelvin`.
    """

    name: ClassVar[str] = "enso_ersst"
    presets_of: ClassVar[str] = "icar_enso"
    selection_fields: ClassVar[frozenset[str]] = frozenset(
        {"train_gap", "eval_gap", "train_from", "val_from", "test_from", "test_to", "nino34_box"}
    )
    data_verbs: ClassVar[dict[str, str]] = {
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

    @model_validator(mode="after")
    def _in_order(self) -> EnsoErsst:
        dates = (self.train_from, self.val_from, self.test_from, self.test_to)
        if list(dates) != sorted(dates) or any(day.day != 1 for day in dates):
            raise ValueError(
                f"train_from, val_from, test_from and test_to are {', '.join(map(str, dates))}; "
                "expected first days of months, in this order"
            )
        return self

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns skill and error of the index, and errors of the field in K."""
        return {
            "enso": {"convention": "correct", "t_out": self.t_out, "box": self.nino34_box},
            "mse": {"convention": "correct", "scale": 1.0, "t_out": self.t_out},
            "mae": {"convention": "correct", "scale": 1.0, "t_out": self.t_out},
        }

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns temperature anomalies on the scale that models see, float32."""
        return physical.float() if self.scale == "kelvin" else super().normalise(physical)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns temperature anomalies in K, float32."""
        return normalised.float() if self.scale == "kelvin" else super().denormalise(normalised)

    def split_dates(self) -> dict[Split, tuple[date, date]]:
        """Returns the first day of each split, and the first day after it."""
        return {
            "train": (self.train_from, self.val_from),
            "val": (self.val_from, self.test_from),
            "test": (self.test_from, self.test_to),
            "all": (self.train_from, self.test_to),
        }

    def sequences(self, split: Split) -> ErsstWindows:
        """Returns the stored windows of a split, with the labels of their targets."""
        from bench.data.ersst.dataset import ErsstWindows

        assert self.data_root is not None
        start, end = self.split_dates()[split]
        return ErsstWindows(
            self.data_root,
            start=start,
            end=end,
            t_in=self.t_in,
            t_out=self.t_out,
            gap=self.train_gap if split == "train" else self.eval_gap,
            base=(self.base_from, self.base_to),
            box=self.nino34_box,
        )

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns what is under the data root and what is wrong with it."""
        from bench.data.ersst.dataset import describe

        assert self.data_root is not None
        return describe(
            self.data_root,
            (self.base_from, self.base_to),
            super().describe_data(),
            read_everything=read_everything,
            advance=advance,
        )

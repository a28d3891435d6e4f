"""ICAR-ENSO: sea-surface temperature of the tropical Pacific from climate models, and the Nino3.4 index in it.

Source: Gao et al. 2022, Earthformer (12 -> 14 months, split by climate model, 0-1 scale, C-Nino3.4-M and -WM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bench.api import MONTH_MINUTES, Palette, Shape, Split
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.icar_enso import IcarEnsoWindows
    from bench.data.leaks import SplitEvents
    from bench.data.report import Advance, Report

# Extremes of the release's data in K: they become 0 and 1.
SST_MIN, SST_MAX = -16.549121856689453, 10.198975563049316
_RANGE = SST_MAX - SST_MIN
_FRAME_SIZE = (24, 48)


class IcarEnso(Task):
    """ICAR-ENSO: 12 months of sea-surface temperature anomaly in, 14 months out (24x48, every month).

    Train, validation and test are different climate models: 15 of CMIP6 and 15 of CMIP5, the 16th and the 17th of
    CMIP5.  A tree with one observed record (`SODA_train.nc`) has the split `all` only.

    The release's config has a window at every month: 52,350, 1,679 and 1,679 sequences, which is the default here.
    The paper's 5,205, 334 and 1,667 are those of `t_out=26`, `train_gap=10` and a gap of 5 in validation, 1 in test.
    """

    name: ClassVar[str] = "icar_enso"
    units: ClassVar[str] = "sea-surface temperature anomaly, K"
    published_sequences: ClassVar[dict[str, int]] = {"train": 52_350, "val": 1_679, "test": 1_679}
    palette: ClassVar[Palette] = Palette(
        colours="RdBu_r", levels=(-2.75, -2.25, -1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75)
    )

    t_in: int = Field(12, ge=1, description="months of the context")
    t_out: int = Field(14, ge=3, description="months of the target (14 or 26); the index has two fewer")
    train_gap: int = Field(1, ge=1, description="months between the starts of a model's windows, in training")
    eval_gap: int = Field(1, ge=1, description="the same in validation, test and all")
    cmip6_rows: int = Field(151, ge=1, description="rows of each CMIP6 model in CMIP_train.nc")
    cmip5_rows: int = Field(140, ge=1, description="rows of each CMIP5 model in CMIP_train.nc")

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the metrics of the paper's table, in the paper's convention; errors on its 0-1 scale."""
        return {
            "nino34": {"convention": "upstream", "t_out": self.t_out},
            "mse": {"convention": "upstream", "scale": _RANGE, "t_out": self.t_out},
            "mae": {"convention": "upstream", "scale": _RANGE, "t_out": self.t_out},
        }

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, 24, 48, 1)`."""
        return (self.t_in, *_FRAME_SIZE, 1)

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, 24, 48, 1)`."""
        return (self.t_out, *_FRAME_SIZE, 1)

    @property
    def cadence_minutes(self) -> float:
        """Returns the mean length of a month of the Gregorian calendar, 30.436875 days: 43,829.1 minutes."""
        return MONTH_MINUTES

    def sequences(self, split: Split) -> IcarEnsoWindows:
        """Returns the stored windows of a split, with the labels of their targets."""
        from bench.data.icar_enso import IcarEnsoWindows

        assert self.data_root is not None
        return IcarEnsoWindows(
            self.data_root,
            split=split,
            t_in=self.t_in,
            t_out=self.t_out,
            gap=self.train_gap if split == "train" else self.eval_gap,
            cmip6_rows=self.cmip6_rows,
            cmip5_rows=self.cmip5_rows,
        )

    def events(self, split: Split) -> SplitEvents:
        """Returns the records of a split, without reading them; none where there is one observed record."""
        from bench.data.icar_enso import cmip_members, family_of, members_of_split
        from bench.data.leaks import SplitEvents

        assert self.data_root is not None
        if family_of(self.data_root) == "SODA":
            return SplitEvents(())
        members = members_of_split(cmip_members(self.cmip6_rows, self.cmip5_rows), split)
        return SplitEvents(tuple(member.id for member in members))

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns what is under the data root and what is wrong with it."""
        from bench.data.icar_enso_report import describe

        assert self.data_root is not None
        return describe(
            self.data_root,
            window=self.t_in + self.t_out,
            train_gap=self.train_gap,
            eval_gap=self.eval_gap,
            cmip6_rows=self.cmip6_rows,
            cmip5_rows=self.cmip5_rows,
            read_everything=read_everything,
            advance=advance,
        )

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns temperature anomalies on the 0-1 scale, float32."""
        import torch

        return (physical.to(torch.float32) - SST_MIN) / _RANGE

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns temperature anomalies in K, float32, for the 0-1 scale."""
        import torch

        return normalised.to(torch.float32) * _RANGE + SST_MIN

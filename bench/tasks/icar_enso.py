"""ICAR-ENSO: sea-surface temperature of the tropical Pacific from climate models, and the Nino3.4 index in it.

Source: Gao et al. 2022, Earthformer (12 -> 14 months, split by climate model, 0-1 scale, C-Nino3.4-M and -WM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from bench.api import Split
from bench.tasks.tropical_pacific import SST_RANGE, TropicalPacific

if TYPE_CHECKING:
    from bench.data.icar_enso.dataset import IcarEnsoWindows
    from bench.data.leaks import SplitEvents
    from bench.data.report import Advance, Report


class IcarEnso(TropicalPacific):
    """ICAR-ENSO: 12 months of sea-surface temperature anomaly in, 14 months out (24x48, every month).

    Train, validation and test are different climate models: 15 of CMIP6 and 15 of CMIP5, the 16th and the 17th of
    CMIP5.  A tree with one observed record (`SODA_train.nc`) has the split `all` only.

    The release's config has a window at every month: 52,350, 1,679 and 1,679 sequences, which is the default here.
    The paper's 5,205, 334 and 1,667 are those of `t_out=26`, `train_gap=10` and a gap of 5 in validation, 1 in test.
    """

    name: ClassVar[str] = "icar_enso"
    published_sequences: ClassVar[dict[str, int]] = {"train": 52_350, "val": 1_679, "test": 1_679}
    selection_fields: ClassVar[frozenset[str]] = frozenset({"train_gap", "eval_gap", "cmip6_rows", "cmip5_rows"})

    cmip6_rows: int = Field(151, ge=1, description="rows of each CMIP6 model in CMIP_train.nc")
    cmip5_rows: int = Field(140, ge=1, description="rows of each CMIP5 model in CMIP_train.nc")

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the metrics of the paper's table, in the paper's convention; errors on its 0-1 scale."""
        return {
            "enso": {"convention": "upstream", "t_out": self.t_out},
            "mse": {"convention": "upstream", "scale": SST_RANGE, "t_out": self.t_out},
            "mae": {"convention": "upstream", "scale": SST_RANGE, "t_out": self.t_out},
        }

    def cell_weights(self) -> dict[str, np.ndarray]:
        """Returns `area`, and `ocean`, which is 1 for cells that are not always 0 in the test or observed record."""
        from bench.data.icar_enso.dataset import family_of

        if self.data_root is None:
            return super().cell_weights()
        windows = self.sequences("test" if family_of(self.data_root) == "CMIP" else "all")
        sea = np.any([(record != 0).any(0) for record in windows.sst], 0)
        return {**super().cell_weights(), "ocean": sea.astype(np.float64)}

    def sequences(self, split: Split) -> IcarEnsoWindows:
        """Returns the stored windows of a split, with the labels of their targets."""
        from bench.data.icar_enso.dataset import IcarEnsoWindows

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
        """Returns the records of a split, without reading them; none for a tree with one observed record."""
        from bench.data.icar_enso.dataset import cmip_members, family_of, members_of_split
        from bench.data.leaks import SplitEvents

        assert self.data_root is not None
        if family_of(self.data_root) == "SODA":
            return SplitEvents(())
        members = members_of_split(cmip_members(self.cmip6_rows, self.cmip5_rows), split)
        return SplitEvents(tuple(member.id for member in members))

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root and their problems."""
        from bench.data.icar_enso.check import describe

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

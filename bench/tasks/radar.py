"""Observed radar of any place and cadence, in SEVIR's format.

Source: Veillette et al. 2020 (the format); the composites are of national weather services, see each folder's README.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.api import Split
from bench.data.sevir.splits import TEST_FROM, VAL_FROM
from bench.tasks.sevir import Sevir

if TYPE_CHECKING:
    from bench.data.sevir.catalogue import Part


class Radar(Sevir):
    """Observed radar in SEVIR's format: 13 -> 12 frames at the cadence, size and length that the files have.

    Any folder with `CATALOG.csv` and `data/vil/` will do.  Lead times are frames: a tree with a frame every 2 minutes
    is forecast 24 minutes ahead, one with a frame every 10 minutes two hours, so that scores of different folders are
    of different tasks.  The split is by date, as SEVIR's; a folder of one day has the split `all`, and `task.val_from`
    and `task.test_from` cut elsewhere.  With `folds` and `fold`, blocks of whole days are left out in turn.  With
    `split_by=folder`, files below `data/train/`, `data/val/` and `data/test/` are the splits, as `data convert sevir
    radar` lays those of folders of these names.
    """

    name: ClassVar[str] = "radar"
    units: ClassVar[str] = "VIL code 0..255, from reflectivity or rain rate"
    published_sequences: ClassVar[dict[str, int]] = {}
    data_verbs: ClassVar[dict[str, str]] = {
        "fetch:radar_open": "bench.data.radar_open.fetch:FetchRadarOpen",
        "convert:sevir": "bench.data.sevir.join:JoinTrees",
        "convert:radar_files": "bench.data.grid.radar_events:ConvertRadarEvents",
    }

    split_by: Literal["date", "folder"] = Field(
        "date", description="folder: the splits are the files below data/train/, data/val/ and data/test/"
    )

    @model_validator(mode="after")
    def _one_rule_of_splitting(self) -> Radar:
        if self.split_by == "folder" and (self.val_from, self.test_from) != (VAL_FROM, TEST_FROM):
            raise ValueError("split_by=folder: the folders are the splits; leave val_from and test_from out")
        return self

    def part(self, split: Split) -> Part:
        """Returns the rule that selects the events of a split: dates, or the folder with the split's name."""
        if self.split_by == "date":
            return super().part(split)
        return {} if split == "all" else {"folder": split}

    def fields(self) -> dict[str, Any]:
        """Returns the task's options; without `split_by` if it is `date`, as in records from before this option."""
        return {key: value for key, value in super().fields().items() if (key, value) != ("split_by", "date")}

"""Observed radar of any place and cadence, in SEVIR's format.

Source: Veillette et al. 2020 (the format); the composites are of national weather services, see each folder's README.
"""

from __future__ import annotations

from typing import ClassVar

from bench.tasks.sevir import Sevir


class Radar(Sevir):
    """Observed radar in SEVIR's format: 13 -> 12 frames at the cadence, size and length that the files have.

    Any folder with `CATALOG.csv` and `data/vil/` will do.  Lead times are frames: a tree with a frame every 2 minutes
    is forecast 24 minutes ahead, one with a frame every 10 minutes two hours, so that scores of different folders are
    of different tasks.  The split is by date, as SEVIR's; a folder of one day has the split `all`, and `task.val_from`
    and `task.test_from` cut elsewhere.
    """

    name: ClassVar[str] = "radar"
    units: ClassVar[str] = "VIL code 0..255, from reflectivity or rain rate"
    published_sequences: ClassVar[dict[str, int]] = {}
    data_verbs: ClassVar[dict[str, str]] = {
        "fetch:radar_open": "bench.data.radar_open.fetch:FetchRadarOpen",
        "convert:sevir": "bench.data.sevir.join:JoinTrees",
        "convert:radar_files": "bench.data.grid.radar_events:ConvertRadarEvents",
    }

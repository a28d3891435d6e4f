"""Radar archives of weather services as events in SEVIR's format: rain rates re-coded as vertically integrated liquid.

Sources: Greene and Clark 1972, Mon. Weather Rev. 100, 548-552 (liquid water of a reflectivity, 3.44e-6 Z^(4/7) kg/m3);
Marshall and Palmer 1948 (Z = 200 R^1.6); the SEVIR project's tutorial (codes of VIL).
"""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from pydantic import Field

from bench.data.grid.radar_files import ConvertRadarFiles, Frame, dated_files
from bench.data.grid.times import time_axis
from bench.data.sevir.catalogue import COLUMNS, MISSING
from bench.data.verbs import AdvanceLabel
from bench.errors import ConfigError, DataError
from bench.files import replacing

_DEPTH = 4500.0
"""Metres: of one level there is no column, so that its liquid water is taken over a fixed equivalent depth."""
_METRES = {"m": 1.0, "km": 1000.0, "degree": 111_195.0}


class ConvertRadarEvents(ConvertRadarFiles):
    """Original radar files to events of VIL codes that tasks `radar` and `sevir` read."""

    summary: ClassVar[str] = "read a radar archive with pySTEPS and cut it into events in SEVIR's format"

    frames: int = Field(49, ge=2, description="frames of an event")
    size: int = Field(384, ge=1, description="height and width of an event, from the middle of the image")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Writes one event after the other, and the catalogue last."""
        if (self.out / "CATALOG.csv").exists():
            raise DataError(f"{self.out} already holds a data set (CATALOG.csv); choose another folder")
        files = dated_files(self.inputs)
        axis = time_axis(np.array([time for time, _ in files], "datetime64[s]"), f"--in {self.inputs}: times")
        starts = [
            first + number * self.frames
            for first, last in axis.stretches(0, len(files))
            for number in range((last - first) // self.frames)
        ]
        if not starts:
            raise DataError(
                f"--in {self.inputs}: no {self.frames} of {len(files)} frames follow each other without a gap: "
                "--frames N"
            )
        first = self._read(files[0][1])
        name = f"vil/{axis.times[0].item():%Y}/RADAR_VIL_{axis.times[0].item():%Y%m%d%H%M}.h5"
        rows = []
        with replacing(self.out / "data" / name) as part, h5py.File(part, "w") as file:
            shape = (len(starts), self.size, self.size, self.frames)
            array = file.create_dataset("vil", shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip")
            ids = file.create_dataset("id", (len(starts),), "S18")
            for index, start in enumerate(starts):
                codes = np.empty(shape[1:], np.uint8)
                for at in range(self.frames):
                    codes[..., at] = self._codes(files[start + at][1], first)
                    advance("radar files", index * self.frames + at + 1, len(starts) * self.frames)
                middle = axis.times[start + self.frames // 2].item()
                event = f"R{middle:%y%m%d%H%M}{index:04d}"
                array[index], ids[index] = codes, event.encode()
                times = axis.times[start : start + self.frames]
                offsets = (times - times[self.frames // 2]).astype(int) / 60
                rows.append(self._row(event, name, index, middle, offsets, codes, first))
        with replacing(self.out / "CATALOG.csv") as part, part.open("w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        root, missing = shlex.quote(str(self.out)), sum(row["pct_missing"] > 0 for row in rows)
        return [
            f"{len(rows)} events of {self.frames} frames of {self.size}x{self.size} in {self.out}, {missing} of them "
            "with missing pixels",
            f"try: earthbench data info radar --root {root}"
            + " task.admit_missing=true task.mask_missing=true" * (missing > 0),
        ]

    def _codes(self, path: Path, first: Frame) -> np.ndarray:
        frame = self._read(path)
        if frame.grid != first.grid:
            raise DataError(f"{path}: another grid than the first file's")
        height, width = frame.rates.shape
        if min(height, width) < self.size:
            raise ConfigError(f"--size {self.size}: the images have {height}x{width} pixels")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        # a frame's first row is the southernmost in SEVIR
        return vil_codes(frame.rates[top : top + self.size, left : left + self.size])[::-1]

    def _row(
        self, event: str, name: str, index: int, middle: Any, offsets: np.ndarray, codes: np.ndarray, first: Frame
    ) -> dict[str, Any]:
        known = codes[codes != MISSING]
        metres = _METRES.get(first.units, 1.0) * self.size
        return dict.fromkeys(COLUMNS, "") | {
            "id": event, "file_name": name, "file_index": index, "img_type": "vil",
            "time_utc": middle.isoformat(sep=" "), "minute_offsets": ":".join(f"{minutes:g}" for minutes in offsets),
            "proj": first.projection, "size_x": self.size, "size_y": self.size,
            "height_m": abs(float(first.y[1] - first.y[0])) * metres,
            "width_m": abs(float(first.x[1] - first.x[0])) * metres,
            "data_min": float(known.min(initial=MISSING)), "data_max": float(known.max(initial=0)),
            "pct_missing": float(100 * (codes == MISSING).mean()),
        }  # fmt: skip


def vil_codes(rates: np.ndarray) -> np.ndarray:
    """Returns SEVIR's codes of vertically integrated liquid, uint8: 0..254, 255 where the rate is NaN.

    Args:
        rates: mm/h.
    """
    reflectivity = 200.0 * np.maximum(rates.astype(np.float64), 0.0) ** 1.6
    liquid = 3.44e-6 * reflectivity ** (4 / 7) * _DEPTH
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(liquid <= (18 - 2) / 90.66, 90.66 * liquid + 2, 38.9 * np.log(liquid) + 83.9)
    codes = np.where(np.rint(codes) > 5, np.clip(np.rint(codes), 0, 254), 0)
    return np.where(np.isnan(rates), MISSING, codes).astype(np.uint8)

"""Makes `bench/tables/coastlines.npz` from Natural Earth's land: `python make_coastlines.py package/land-50m.json`.

The file is that of the npm package world-atlas 2.0.2, Natural Earth 4.1 at 1:50m (public domain).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[3] / "bench" / "tables" / "coastlines.npz"


def main(source: Path) -> None:
    """Writes the arcs of a TopoJSON file in hundredths of a degree, without the edges that close polygons."""
    topology = json.loads(source.read_text(encoding="utf-8"))
    scale, shift = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    lines = []
    for arc in topology["arcs"]:
        points = np.rint(100 * (np.cumsum(np.array(arc), 0) * scale + shift)).astype(np.int16)
        points = points[np.r_[True, (np.diff(points, axis=0) != 0).any(1)]]
        edge = (np.abs(points[:, 0]) >= 17_990) | (points[:, 1] <= -8_990)
        across = np.abs(np.diff(points[:, 0].astype(int))) > 18_000
        lines += np.split(points, np.flatnonzero((edge[1:] & edge[:-1]) | across) + 1)
    lines = [line for line in lines if len(line) > 1]
    np.savez_compressed(
        OUT, steps=np.concatenate([np.diff(line, axis=0, prepend=0) for line in lines]).astype(np.int16),
        lengths=np.array([len(line) for line in lines], np.int32),
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))

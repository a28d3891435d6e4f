"""The figures of docs/which_csi.md."""

from __future__ import annotations

import math
from pathlib import Path

from bench.metrics.skill import skill_scores

PAGE = Path(__file__).resolve().parents[2] / "docs" / "which_csi.md"
COUNTS = {
    "hits": [[90, 0], [1, 0]], "misses": [[10, 0], [9, 0]],
    "false_alarms": [[0, 0], [0, 0]], "correct_negatives": [[0, 100], [90, 100]],
}  # fmt: skip


def _row(name: str) -> str:
    return next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} "))


def test_the_figures_of_the_page() -> None:
    correct, upstream = (skill_scores(COUNTS, [16, 219], convention) for convention in ("correct", "upstream"))
    assert math.isnan(correct["csi_219"]) and "undefined" in _row("`csi_219`, `correct`")
    figures = {
        "`csi_16`": correct["csi_16"],
        "`csi_16_per_lead_mean`": correct["csi_16_per_lead_mean"],
        "`csi_219`, `upstream`": upstream["csi_219"],
        "`csi_m`, `correct`": correct["csi_m"],
        "`csi_m`, `upstream`": upstream["csi_m"],
    }
    for name, value in figures.items():
        assert _row(name).endswith(f"| {value:.4f} |"), name
    leads = f"{correct['csi_16_lead_1']:.4f}, {correct['csi_16_lead_2']:.4f}"
    assert leads in _row("`csi_16_lead_1`, `csi_16_lead_2`")
    perfect = {name: [[100]] if name == "hits" else [[0]] for name in COUNTS}
    assert f"{skill_scores(perfect, [16], 'upstream')['bias_16']:.4f}" in PAGE.read_text()

"""Errors per pixel and per frame, SSIM and PSNR, from sums per lead time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.metrics.means import quotient, with_leads

_POWERS = {"mse": 2, "mae": 1}
FRAME_MEANS = ("ssim", "psnr", "lpips")


def error_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns one of the errors per pixel, see `bench.metrics.errors.metric.PixelwiseScore`.

    Args:
        statistics: `error_sum` and `pixel_count`, each `(..., T)`; for weighted errors also `weight_sum`.
        options: `score` (`mse` or `mae`), `scale`, `convention`.
    """
    score = options["score"]
    scaled = statistics["error_sum"] / options["scale"] ** _POWERS[score]
    count = statistics["pixel_count"]
    weight = statistics.get("weight_sum", count)
    found = with_leads(score, quotient(scaled.sum(-1), weight.sum(-1)), quotient(scaled, weight))
    if options["convention"] == "correct":
        found[f"{score}_pixel_count"] = count.sum(-1).astype(np.float64)
    return found


def frame_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns every score of `bench.metrics.frames.metric.FrameScores`.

    Args:
        statistics: `mse_sum`, `mae_sum`, `pixel_count`, and `S_sum`, `S_count` for SSIM, PSNR and, if computed, LPIPS,
            each `(..., T)`.
        options: `scale`, `convention`, `frame_pixels` (H x W x C).
    """
    found: dict[str, np.ndarray] = {}
    for score in _POWERS:
        errors = {"error_sum": statistics[f"{score}_sum"], "pixel_count": statistics["pixel_count"]}
        per_pixel = error_values(errors, {**options, "score": score})
        found |= per_pixel
        for name, value in per_pixel.items():
            if not name.endswith("_count"):
                found[name.replace(score, f"{score}_frame_sum")] = value * options["frame_pixels"]
    for score in FRAME_MEANS:
        if f"{score}_sum" in statistics:
            total, count = statistics[f"{score}_sum"], statistics[f"{score}_count"]
            found |= with_leads(score, quotient(total.sum(-1), count.sum(-1)), quotient(total, count))
            if options["convention"] == "correct":
                found[f"{score}_frame_count"] = count.sum(-1).astype(np.float64)
    return found

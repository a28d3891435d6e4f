"""Names of scores: their parts, and their direction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

PER_LEAD = re.compile(r"^(?P<score>.+)_lead_(?P<lead>\d+)$")
MEMBERS = "_members"
"""Suffix of a deterministic score over all members, each as a separate forecast."""


ADDED = "@"
"""Separates a registered metric from a suffix that distinguishes it from the task's own: `skill@own`."""
OWN = "own"
"""Suffix of a metric that the command line adds under its registered name."""


def metric_of(name: str) -> str:
    """Returns the registered metric of a name in `conventions`: `skill` of `skill_members` and of `skill@own`."""
    return name.partition(ADDED)[0].removesuffix(MEMBERS)


def with_ending(name: str, ending: str) -> str:
    """Returns a score's name with an ending, which is inserted before `_lead_L`."""
    match = PER_LEAD.match(name) if ending else None
    return f"{match['score']}{ending}_lead_{match['lead']}" if match else f"{name}{ending}"


Better = Literal["higher", "lower"] | float
"""A number is the value of a perfect forecast; deviations in both directions are worse."""

BIAS_UPSTREAM_PERFECT = 1 / math.log(2) ** 2
"""Value of `bias_upstream`, and of `bias` in the upstream convention, for a forecast without bias: 2.08."""

BETTER: dict[str, Better] = {
    # skill
    "csi": "higher", "pod": "higher", "sucr": "higher", "hss": "higher", "fss": "higher", "far": "lower",
    "bias": 1.0, "bias_upstream": BIAS_UPSTREAM_PERFECT,
    # errors and likeness of frames
    "mse": "lower", "mae": "lower", "ssim": "higher", "psnr": "higher", "lpips": "lower",
    # Nino3.4 index
    "c_nino34": "higher", "rmse_nino34": "lower",
    # energy of N-body motion
    "e_mse": "lower", "e_mae": "lower",
    # ensembles
    "crps": "lower", "brier": "lower", "bss": "higher", "rmse_of_mean": "lower", "spread_skill_ratio": 1.0,
    # distances of distributions
    "fvd": "lower", "frechet": "lower",
    "loss": "lower",
}  # fmt: skip
"""Direction by prefix of a score's name; the longest prefix counts."""

BETTER_UPSTREAM: dict[str, Better] = {**BETTER, "bias": BIAS_UPSTREAM_PERFECT}
"""The same for skill in the upstream convention, whose `bias` is another quantity."""

# Counts, and properties of the data alone, which have no direction.
_NO_SCORE = re.compile(rf"_(count|target)({MEMBERS}|_{OWN})?(_lead_\d+)?$")


def better_of(score: str, known: Mapping[str, Better] = BETTER) -> Better | None:
    """Returns the direction of a score, or None if it is unknown or the score has none.

    Args:
        score: Its full name, e.g. `csi_m_pool4_members_lead_3`.
        known: Directions by prefix of a name.
    """
    if _NO_SCORE.search(score):
        return None
    stems = [stem for stem in known if score == stem or score.startswith(f"{stem}_")]
    return known[max(stems, key=len)] if stems else None

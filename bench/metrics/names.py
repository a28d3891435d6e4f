"""How the name of a score is put together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

PER_LEAD = re.compile(r"^(?P<score>.+)_lead_(?P<lead>\d+)$")
MEMBERS = "_members"
"""Ends the name of a deterministic score that was counted over all members, each as a forecast of its own."""


ADDED = "@"
"""Stands between a registered metric and what tells it from the task's own of that name: `skill@own`."""
OWN = "own"
"""What a metric is called that the command line added under its registered name."""


def metric_of(name: str) -> str:
    """Returns the registered metric of a name in `conventions`: `skill` of `skill_members` and of `skill@own`."""
    return name.partition(ADDED)[0].removesuffix(MEMBERS)


def with_ending(name: str, ending: str) -> str:
    """Returns a score's name with an ending, which stands before `_lead_L`."""
    match = PER_LEAD.match(name) if ending else None
    return f"{match['score']}{ending}_lead_{match['lead']}" if match else f"{name}{ending}"


Better = Literal["higher", "lower"] | float
"""A number is the value of a perfect forecast, from which either side is worse."""

BIAS_UPSTREAM_PERFECT = 1 / math.log(2) ** 2
"""What `bias_upstream`, and `bias` in the upstream convention, is of a forecast without bias: 2.08."""

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
"""By what a score's name begins with; the longest counts."""

BETTER_UPSTREAM: dict[str, Better] = {**BETTER, "bias": BIAS_UPSTREAM_PERFECT}
"""The same for skill in the upstream convention, whose `bias` is another quantity."""

# Says how many, or something of the data alone: no forecast is better for it.
_NO_SCORE = re.compile(rf"_(count|target)({MEMBERS}|_{OWN})?(_lead_\d+)?$")


def better_of(score: str, known: Mapping[str, Better] = BETTER) -> Better | None:
    """Returns which way a score is better, or None where that is not known or neither way is.

    Args:
        score: Its whole name, e.g. `csi_m_pool4_members_lead_3`.
        known: The direction by what a name begins with.
    """
    if _NO_SCORE.search(score):
        return None
    stems = [stem for stem in known if score == stem or score.startswith(f"{stem}_")]
    return known[max(stems, key=len)] if stems else None

"""Categorical skill of precipitation forecasts at intensity thresholds: CSI, POD, SUCR, FAR, BIAS, HSS and FSS.

Sources: definitions in Wilks (2011), Statistical Methods in the Atmospheric Sciences, ch. 8; the thresholds and the
'upstream' convention are those of the Earthformer release's `SEVIRSkillScore` (Gao et al. 2022, section 4.2); scores
after max-pooling are those of PreDiff (Gao et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bench.metrics.names import BETTER, BETTER_UPSTREAM, Better
from bench.metrics.pairs import check_convention, check_pair, widen
from bench.metrics.skill.contingency import INTEGER_TOLERANCE, count_events
from bench.metrics.skill.formulas import COUNTS, FSS_SUMS, SCORES, VIL_THRESHOLDS, Convention, skill_scores
from bench.metrics.skill.neighbourhood import fraction_sums, max_pool
from bench.metrics.states import EventMetric, tell_apart

__all__ = ["SCORES", "VIL_THRESHOLDS", "Skill", "skill_scores"]


class Skill(EventMetric):
    """CSI, POD, SUCR, FAR, BIAS and HSS at thresholds, pooled and per lead time, from exact int64 counts.

    `compute()` gives, for each score S and threshold K: `S_K` from counts pooled over sequences, leads and pixels
    (the papers' tables), `S_m`, its mean over thresholds, `S_K_lead_L` and `S_m_lead_L` for lead L = 1.., and
    `S_K_per_lead_mean`, `S_m_per_lead_mean`, the mean over leads of the scores per lead, which differs from `S_K`.
    After max-pooling to cells of n x n pixels, they are called `S_K_pooln`, `S_m_pooln`, `S_K_pooln_lead_L`, ...

    Two conventions:

    * `upstream`, as the papers print them: 1e-4 is added to denominators, so 0/0 is 0 and enters the means; 'bias' is
      ((H+F)/(H+M)/ln 2)^2, whose perfect value is 2.08; a target code of 255 is an event.
    * `correct`: no epsilon; an undefined score is NaN, is left out of means and counted in `S_undefined_count`;
      BIAS is (H+F)/(H+M) and its mean geometric; values within 5e-5 of an integer are rounded; a target of 255
      (missing) is ignored, and so is a pooled cell that contains one.

    In both, an event is a value >= the threshold, a pair with NaN on either side is ignored, and `bias_upstream`
    is the upstream 'bias'.

    Args:
        thresholds: In the units of the data.
        convention: `upstream` or `correct`.
        t_out: Number of lead times, if known; else taken from the first update.
        missing_value: Targets of this value are ignored; `default` is 255 for `correct`, None for `upstream`.
        pool: Width of the cells of the max-pooling before counting, 1 for none; or several widths.
        fss_windows: Odd widths w in pixels of neighbourhoods for the fractions skill score `fss_K_windoww`.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    family = "skill"
    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = VIL_THRESHOLDS,
        convention: Convention = "upstream",
        t_out: int | None = None,
        missing_value: float | Literal["default"] | None = "default",
        pool: int | Sequence[int] = 1,
        fss_windows: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_convention(convention)
        if not thresholds or not all(math.isfinite(t) for t in thresholds):
            raise ValueError(f"thresholds {thresholds!r}; expected one or more finite numbers")
        pools = (pool,) if isinstance(pool, int) else tuple(pool)
        if not pools or len(set(pools)) < len(pools) or not all(isinstance(p, int) and p >= 1 for p in pools):
            raise ValueError(f"pool {pool!r}; expected a whole number >= 1, or several, each once")
        if not all(isinstance(w, int) and w >= 1 and w % 2 for w in fss_windows):
            raise ValueError(f"fss_windows {fss_windows!r}; expected odd whole numbers: a window is centred on a pixel")
        self.thresholds = tuple(thresholds)
        self.convention = convention
        self.pools, self.fss_windows = pools, tuple(fss_windows)
        self.missing_value = (255 if convention == "correct" else None) if missing_value == "default" else missing_value
        columns = len(self.thresholds)
        for name in COUNTS:
            self.add_statistic(name, (t_out or 0, columns * len(pools)), torch.int64)
        for name in FSS_SUMS if self.fss_windows else ():
            self.add_statistic(name, (t_out or 0, columns * len(self.fss_windows)), torch.float64)
        tell_apart(self, **self.score_options(), missing_value=self.missing_value)

    def update(self, forecast: Tensor, target: Tensor, events: Tensor | None = None) -> None:
        """Adds the counts of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape; bytes or floats.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, the number of lead times changed, or frames are smaller than a pooled cell.
        """
        check_pair(forecast, target)
        integer_rule = self.convention == "correct"
        counts = []
        cells: dict[int, tuple[Tensor, Tensor]] = {}
        for pool in self.pools:
            if pool == 1:
                side_by_side, missing = (forecast, target), self.missing_value
            else:
                if not cells:
                    cells[1] = widen(forecast.detach()), missing_as_nan(target, self.missing_value, integer_rule)
                finest = max(size for size in cells if pool % size == 0)
                side_by_side = max_pool(cells[finest][0], pool // finest), max_pool(cells[finest][1], pool // finest)
                cells[pool], missing = side_by_side, None
            counts.append(
                count_events(*side_by_side, self.thresholds, integer_rule=integer_rule, missing_value=missing)
            )
        found = dict(zip(COUNTS, torch.cat(counts, 2).unbind(-1), strict=True))
        if self.fss_windows:
            known = missing_as_nan(target, self.missing_value, integer_rule)
            sums = fraction_sums(
                forecast, known.to(forecast.device), self.thresholds, self.fss_windows, integer_rule=integer_rule
            )
            found |= dict(zip(FSS_SUMS, sums, strict=True))
        self.add(found, events)

    @property
    def better(self) -> dict[str, Better]:
        """Returns the direction of scores by prefix of their names."""
        return BETTER if self.convention == "correct" else BETTER_UPSTREAM

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the counts."""
        return {
            "thresholds": list(self.thresholds),
            "convention": self.convention,
            "pools": list(self.pools),
            "fss_windows": list(self.fss_windows),
        }

    def counts(self) -> dict[str, list[list[int]]] | None:
        """Returns hits, misses, false alarms and correct negatives as lists `[lead][threshold]`, of single pixels."""
        if 1 not in self.pools:
            return None
        at = self.pools.index(1) * len(self.thresholds)
        return {name: getattr(self, name)[:, at : at + len(self.thresholds)].tolist() for name in COUNTS}


def missing_as_nan(target: Tensor, missing_value: float | None, integer_rule: bool) -> Tensor:
    """Returns the target with NaN for the missing value, half precision widened to float32.

    It is returned unchanged if its maximum shows that nothing is missing.
    """
    target = widen(target.detach())
    if missing_value is None or not target.numel():
        return target
    tolerance = INTEGER_TOLERANCE if integer_rule and target.is_floating_point() else 0.0
    if bool(target.max() < missing_value - tolerance):
        return target
    wide = target.double() if not target.is_floating_point() else target
    return wide.masked_fill((wide.double() - missing_value).abs() <= tolerance, math.nan)

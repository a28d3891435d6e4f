"""Scores of ensembles: CRPS, Brier score and skill, reliability, rank histogram, spread and error.

Sources: Gneiting and Raftery (2007), JASA 102, 359-378; Ferro (2014), Q. J. R. Meteorol. Soc. 140, 1917-1923 (fair
scores); Hamill (2001), Mon. Wea. Rev. 129, 550-560 (rank histogram); Fortin et al. (2014), J. Hydrometeor. 15,
1708-1713 (spread and error).  PreDiff (Gao et al. 2023) reports CRPS, but its release has no code for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.errors import ContractError
from bench.metrics.ensemble.sums import ensemble_sums
from bench.metrics.errors.metric import check_convention_and_scale
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_members
from bench.metrics.skill.metric import VIL_THRESHOLDS, missing_as_nan
from bench.metrics.states import EventMetric, tell_apart

_ERRORS = ("distance", "pair_distance", "variance", "mean_error")
_EVENTS = ("brier_sum", "brier_spread", "observed_count", "brier_count")


class Probabilistic(EventMetric):
    """CRPS, Brier scores, reliability, ranks, spread and error of M members, overall and per lead time.

    `compute()` gives, over everything and as `NAME_lead_L` for lead L = 1..:

    * `crps`, on the 0-1 scale: mean over pixels of mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M^2), which for one
      member is the mean absolute error; `crps_fair` with 2 M (M-1) instead of 2 M^2, undefined for one member;
    * `brier_K` at threshold K: mean of (P - O)^2 with P the share of members >= K and O = 1 if the target is >= K;
      `brier_debiased_K`, the same minus the mean of P (1-P) / (M-1); `bss_K` = 1 - brier_K / that of the reference,
      undefined if the reference is never wrong; `brier_m`, `brier_debiased_m`, `bss_m`, means over the thresholds for
      which they are defined;
    * `spread`, the root of the mean unbiased variance of members; `rmse_of_mean`, that of the ensemble mean;
      `spread_skill_ratio` = sqrt((M+1)/M) spread / rmse_of_mean, 1 if truth and members are interchangeable;
    * `crps_pixel_count`, the number of pixels used (not per lead).

    `curves()` gives the reliability curve of each threshold and the rank histogram.  A pixel with a NaN in any member
    or in the target is ignored; one with an infinity has no distances.  The two conventions differ as in `Skill`:
    `correct` rounds values within 5e-5 of an integer, and treats a target of 255 as missing.

    Args:
        thresholds: In the units of the data.
        convention: `upstream` or `correct`.
        scale: Physical value that becomes 1, for CRPS, spread and error.
        t_out: Number of lead times, if known; else taken from the first update.
        members: Number of members, if known; else taken from the first update.
        reference: Reference of the Brier skill: `sample`, the event frequency in the verified sample, for each
            threshold and, in scores per lead, for each lead; or frequencies of a climatology, e.g. of the training
            split, `[threshold]` or `[threshold][lead]`.
        missing_value: Targets of this value are ignored; `default` is 255 for `correct`, None for `upstream`.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    takes_members = True
    family = "probabilistic"
    reliability: Tensor
    ranks: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = VIL_THRESHOLDS,
        convention: Literal["upstream", "correct"] = "upstream",
        scale: float = 255.0,
        t_out: int | None = None,
        members: int | None = None,
        reference: Literal["sample"] | Sequence[Any] = "sample",
        missing_value: float | Literal["default"] | None = "default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_convention_and_scale(convention, scale)
        if not all(math.isfinite(t) for t in thresholds):
            raise ValueError(f"thresholds {thresholds!r}; expected finite numbers")
        if members is not None and members < 1:
            raise ValueError(f"members {members!r}; expected a whole number >= 1")
        self.convention, self.scale, self.members = convention, scale, members
        self.thresholds = tuple(thresholds)
        self.reference = _checked_reference(reference, len(self.thresholds), t_out)
        self.missing_value = (255 if convention == "correct" else None) if missing_value == "default" else missing_value
        k = len(self.thresholds)
        for name in _ERRORS:
            self.add_statistic(name, (t_out or 0,), torch.float64)
        self.add_statistic("pixel_count", (t_out or 0,), torch.int64)
        for name in _EVENTS:
            self.add_statistic(name, (t_out or 0, k), torch.int64)
        bins = (members or -1) + 1
        self.add_state("reliability", torch.zeros((k, bins, 2), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("ranks", torch.zeros((bins, bins), dtype=torch.int64), dist_reduce_fx="sum")
        settings = {key: value for key, value in self.score_options().items() if key != "members"}
        tell_apart(self, **settings, convention=convention, missing_value=self.missing_value)

    def update(self, forecast: Tensor, target: Tensor, events: Tensor | None = None) -> None:
        """Adds the ensembles of a batch.

        Args:
            forecast: Members in physical units, `(M,B,T,H,W,C)`.
            target: `(B,T,H,W,C)`.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, or the number of members or lead times changed.
        """
        check_members(forecast, target)
        if self.members is not None and len(forecast) != self.members:
            raise ContractError(f"probabilistic counts {self.members} members, this batch has {len(forecast)}")
        self.members = len(forecast)
        integer_rule = self.convention == "correct"
        known = missing_as_nan(target.to(forecast.device), self.missing_value, integer_rule)
        sums = ensemble_sums(forecast, known, self.thresholds, integer_rule=integer_rule)
        self.add({**sums.errors, **sums.events}, events)
        for name, added in (("reliability", sums.reliability), ("ranks", sums.ranks)):
            state = getattr(self, name)
            state = state.new_zeros(added.shape) if not state.numel() else state
            setattr(self, name, state + added.to(state.device))

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the sums."""
        return {
            "members": max(len(self.ranks) - 1, 1),
            "scale": self.scale,
            "thresholds": list(self.thresholds),
            "reference": self.reference,
        }

    def curves(self) -> dict[str, dict[str, list[float | None]]]:
        """Returns `reliability_K` of each threshold, and `rank_histogram`.

        Reliability has, for each probability k/M, the number of pairs forecast with it, and the share of them in which
        the event was observed (None if there are none).  The rank histogram has the share of pairs by the number of
        members below the truth; a truth that equals some members is distributed evenly over its possible ranks.
        """
        found: dict[str, dict[str, list[float | None]]] = {}
        m = self.reliability.shape[1] - 1
        if m < 1:
            return found
        for threshold, table in zip(self.thresholds, self.reliability.tolist(), strict=True):
            counts = [sum(pair) for pair in table]
            found[f"reliability_{threshold:g}"] = {
                "probability": [k / m for k in range(m + 1)],
                "count": [float(count) for count in counts],
                "frequency": [hits / count if count else None for (_, hits), count in zip(table, counts, strict=True)],
            }
        shares = rank_histogram(self.ranks.cpu().numpy())
        found["rank_histogram"] = {"rank": [float(k) for k in range(m + 1)], "frequency": shares}
        return found


def rank_histogram(ranks: np.ndarray) -> list[float | None]:
    """Returns the share of pairs of each rank 0..M, from counts by numbers of members below and not above the truth."""
    shares = np.zeros(len(ranks))
    for below, not_above in zip(*np.nonzero(ranks), strict=True):
        shares[below : not_above + 1] += ranks[below, not_above] / (not_above - below + 1)
    total = ranks.sum()
    return [float(share / total) if total else None for share in shares]


def _checked_reference(reference: Any, thresholds: int, t_out: int | None) -> Any:
    if isinstance(reference, str):
        if reference != "sample":
            raise ValueError(f"reference {reference!r}; expected 'sample' or frequencies")
        return reference
    table = np.asarray(reference, np.float64)
    fits = table.ndim in (1, 2) and len(table) == thresholds and (table.ndim == 1 or t_out in (None, table.shape[1]))
    if not fits or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(
            f"reference of shape {table.shape}; expected frequencies in 0..1, [threshold] or [threshold][lead], "
            f"for {thresholds} thresholds"
        )
    return table.tolist()

"""Skill of the Nino3.4 index: correlation and error per lead time over all windows of a split.

Source: Gao et al. 2022, Earthformer, table of ICAR-ENSO results; the weights of C-Nino3.4-WM are those of its release
and of the Tianchi competition that the data come from.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.data.area_means import box_weights
from bench.errors import ContractError
from bench.metrics.enso.formulas import lead_weights, moments
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_convention, check_pair
from bench.metrics.states import ExactMetric, tell_apart

# 5 S..5 N, 190..240 E on the grid of ICAR-ENSO's crop: 24 latitudes 55 S..60 N, 48 longitudes 95..330 E.
_GRID = (24, 48, 1)
_BOX = (slice(10, 13), slice(19, 30))
_LATITUDES, _LONGITUDES = np.arange(-55, 61, 5)[_BOX[0]], np.arange(95, 331, 5)[_BOX[1]]
Box = Literal["papers", "exact"]
# The exact box ends in the middle of the outermost of the papers' cells; weights are the shares inside.
_EXACT = box_weights(_LATITUDES, _LONGITUDES, (-5, 5), (190, 240))
_MEAN_MONTHS = 3
_UPSTREAM_EPS = 1e-6


class Nino34(ExactMetric):
    """Correlation skill and RMSE of the Nino3.4 index, computed once over all windows.

    The index of lead k is the mean over months k, k+1, k+2 of the unweighted box mean: T months give K = T-2 leads.
    `compute()` gives `c_nino34_m`, the mean of the correlations c_k over leads; `c_nino34_wm`, the mean of
    b_k ln(k) c_k with b_k = 1.5 up to lead 4, 2 up to 11, 3 up to 18, then 4 (3.405859 for a perfect forecast of
    K = 12: it is not normalised); `rmse_nino34`, the mean over leads of the RMSE in K; and `c_nino34_lead_L` and
    `rmse_nino34_lead_L` for lead L = 1...

    The observed index is that of the labels if the task has them, else the box mean of the target.

    Two conventions:

    * `upstream`, as the paper prints it: 1e-6 is added to the denominator of the correlation, so zero variance gives
      zero correlation; one NaN in a lead makes every mean over leads NaN.
    * `correct`: no epsilon; the correlation of a lead is undefined (NaN) where a window is not finite or either side
      has no variance (fewer than two windows included), is left out of both means (the weighted one still divides
      by K) and counted in `c_nino34_undefined_count`; `rmse_nino34_undefined_count` counts leads with a window that
      is not finite, and one makes `rmse_nino34` NaN; `nino34_label_difference` is the largest difference of a label
      from the target's own index in K, NaN without labels.

    Args:
        convention: `upstream` or `correct`.
        t_out: Months of a target, if known; else taken from the first update.
        box: Box of the forecast's index, and of the observed one without labels.  `papers`: the plain mean of the 3x11
            cells centred within 5 S..5 N and 190..240 E, which reach 2.5 degrees further out and damp peaks.
            `exact`: exactly 5 S..5 N and 190..240 E, each cell weighted by its area inside.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    takes_labels = True
    takes_events = True
    family = "correlation"
    event_count = 0
    forecast_index: list[Tensor]
    observed_index: list[Tensor]
    window_event: list[Tensor]
    label_difference: Tensor

    def __init__(
        self,
        convention: Literal["upstream", "correct"] = "upstream",
        t_out: int | None = None,
        box: Box = "papers",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_convention(convention)
        if t_out is not None and t_out < _MEAN_MONTHS:
            raise ValueError(f"t_out {t_out!r}; expected {_MEAN_MONTHS} months or more, which the index averages")
        if box not in ("papers", "exact"):
            raise ValueError(f"box {box!r}; expected 'papers' or 'exact'")
        self.convention, self.t_out, self.box = convention, t_out, box
        # a correlation is not a sum over batches: the K indices of every window are kept, about 100 bytes each
        self.add_state("forecast_index", [], dist_reduce_fx="cat")
        self.add_state("observed_index", [], dist_reduce_fx="cat")
        self.add_state("window_event", [], dist_reduce_fx="cat")
        self.add_state("label_difference", torch.tensor(-1.0, dtype=torch.float64), dist_reduce_fx="max")
        tell_apart(self, convention=convention, box=box)

    def update(
        self, forecast: Tensor, target: Tensor, labels: Tensor | None = None, events: Tensor | None = None
    ) -> None:
        """Adds the windows of a batch.

        Args:
            forecast: Sea-surface temperature in K, `(B,T,24,48,1)`.
            target: The same shape.
            labels: The observed index of each lead in K, `(B,T-2)`.
            events: The event of each window, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, the grid is not that of ICAR-ENSO, or the number of months changed.
        """
        check_pair(forecast, target)
        months = forecast.shape[1]
        if tuple(forecast.shape[2:]) != _GRID or months < _MEAN_MONTHS:
            raise ContractError(f"nino34 takes (B, T >= {_MEAN_MONTHS}, 24, 48, 1), found {tuple(forecast.shape)}")
        if self.t_out is not None and months != self.t_out:
            raise ContractError(f"nino34 counts {self.t_out} months, this batch has {months}")
        predicted, observed = (nino34_index(side, self.box) for side in (forecast, target.to(forecast.device)))
        if labels is not None:
            if labels.shape != observed.shape:
                raise ContractError(f"labels have shape {tuple(labels.shape)}; expected (B, T-2) {observed.shape}")
            labels = labels.to(observed)
            if labels.numel():
                worst = (labels - observed).abs().max().to(self.label_difference)
                self.label_difference = torch.maximum(self.label_difference, worst)
            observed = labels
        self.t_out = months
        self.forecast_index.append(predicted)
        self.observed_index.append(observed)
        if events is not None:
            self.window_event.append(events.to(observed.device))

    def track_events(self, count: int) -> None:
        """Keeps the event of every window from now on."""
        self.event_count = count

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the moments."""
        return {"convention": self.convention}

    def event_statistics(self) -> dict[str, np.ndarray]:
        """Returns the moments of the indices of each event, `(events, K)`; empty if events are not tracked."""
        if not self.event_count or not len(self.window_event):
            return {}
        predicted, observed, events = (
            torch.cat(_as_list(part)).cpu().numpy()
            for part in (self.forecast_index, self.observed_index, self.window_event)
        )
        return moments(predicted, observed, events, self.event_count)

    def compute(self) -> dict[str, float]:
        """Returns the scores by name; see the class."""
        empty = np.empty((0, (self.t_out or _MEAN_MONTHS) - 2 if self.t_out else 0))
        # a list after local updates, one tensor after processes were joined
        predicted, observed = (
            torch.cat(list(parts)).cpu().numpy() if len(parts) else empty
            for parts in (_as_list(self.forecast_index), _as_list(self.observed_index))
        )
        found = index_scores(predicted, observed, self.convention)
        if self.convention == "correct":
            worst = float(self.label_difference)
            found["nino34_label_difference"] = math.nan if worst < 0 else worst
        return found


def nino34_index(sst: Tensor, box: Box = "papers") -> Tensor:
    """Returns the three-month mean Nino3.4 index `(B,T-2)`, float64, of sea-surface temperature `(B,T,24,48,1)`."""
    inside = sst[:, :, _BOX[0], _BOX[1], 0].detach().double()
    if box == "papers":
        monthly = inside.mean((2, 3))
    else:
        monthly = (inside * torch.from_numpy(_EXACT).to(inside.device)).sum((2, 3))
    return monthly.unfold(1, _MEAN_MONTHS, 1).mean(-1)


def index_scores(
    predicted: np.ndarray, observed: np.ndarray, convention: Literal["upstream", "correct"]
) -> dict[str, float]:
    """Returns the scores of `Nino34.compute`, without the labels' difference, for indices `(N,K)` in K."""
    correct = convention == "correct"
    leads = predicted.shape[1]
    pairs = list(zip(predicted.T.astype(np.float64), observed.T.astype(np.float64), strict=True))
    correlation = np.array([_correlation(p, o) if correct else _upstream_correlation(p, o) for p, o in pairs])
    rmse = np.array([_rmse(p, o) for p, o in pairs])
    defined = ~np.isnan(correlation)
    counted = defined if correct else np.ones(leads, bool)
    if counted.any():
        mean = float(correlation[counted].mean())
        weighted = float((lead_weights(leads) * correlation)[counted].sum() / leads)
    else:
        mean = weighted = math.nan
    found = {"c_nino34_m": mean, "c_nino34_wm": weighted, "rmse_nino34": float(rmse.mean()) if leads else math.nan}
    for lead in range(leads):
        found[f"c_nino34_lead_{lead + 1}"] = float(correlation[lead])
        found[f"rmse_nino34_lead_{lead + 1}"] = float(rmse[lead])
    if correct:
        found["c_nino34_undefined_count"] = float((~defined).sum())
        found["rmse_nino34_undefined_count"] = float(np.isnan(rmse).sum())
    return found


def _upstream_correlation(predicted: np.ndarray, observed: np.ndarray) -> float:
    if not len(predicted):
        return math.nan
    with np.errstate(invalid="ignore"):
        p, o = predicted - predicted.mean(), observed - observed.mean()
        return float(p @ o / (math.sqrt((p @ p) * (o @ o)) + _UPSTREAM_EPS))


def _correlation(predicted: np.ndarray, observed: np.ndarray) -> float:
    sides = []
    for side in (predicted, observed):
        # compare the extremes: the mean of equal floats need not equal them, and round-off would be correlated
        if not len(side) or not np.isfinite(side).all() or side.max() == side.min():
            return math.nan
        anomaly = side - side.mean()
        anomaly /= np.abs(anomaly).max()  # squares of small anomalies must not vanish
        sides.append(anomaly / math.sqrt(anomaly @ anomaly))
    return float(np.clip(sides[0] @ sides[1], -1.0, 1.0))


def _rmse(predicted: np.ndarray, observed: np.ndarray) -> float:
    if not len(predicted):
        return math.nan
    with np.errstate(invalid="ignore"):
        error = math.sqrt(np.square(predicted - observed).mean())
    return error if math.isfinite(error) else math.nan


def _as_list(state: list[Tensor] | Tensor) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else state

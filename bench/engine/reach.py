"""Whether the forecasts of a model, which may end in a sigmoid, can reach the values that it is trained on."""

from __future__ import annotations

from torch import Tensor, nn

from bench.api import model_traits
from bench.logs import log

_MARGIN = 0.05
"""Tolerance as a share of the range's width, for values on a scale from a training split."""
_MAX_SHARE = 0.01


def warn_of_values_out_of_reach(model: nn.Module, target: Tensor) -> None:
    """Warns if a model declares a `forecast_range` and more than 1 % of a target's known values are outside.

    Args:
        model: Model, or the module of a stage.
        target: Target on the scale that models see; missing pixels are NaN.
    """
    limits = model_traits(model).forecast_range
    if limits is None:
        return
    low, high = limits
    margin = _MARGIN * (high - low)
    known = target[~target.isnan()]
    outside = ((known < low - margin) | (known > high + margin)).float().mean() if len(known) else known.new_zeros(())
    if outside > _MAX_SHARE:
        log.warning(
            f"warning: forecasts of {type(model).__name__} lie between {low:g} and {high:g}, and {float(outside):.0%} "
            f"of the values of the first batch, {float(known.min()):.3g} to {float(known.max()):.3g}, lie outside: it "
            "cannot forecast them. Choose another scale of the task (`earthbench show task NAME`), or another model"
        )

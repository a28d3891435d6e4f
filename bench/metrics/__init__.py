"""Scores: exact counts and sums that add up over batches and processes, and pure functions of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import registry
from bench.cards import Card
from bench.contract import check_metric_members
from bench.errors import BrokenPluginError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["load_metric"]


def load_metric(name: str, **options: Any) -> Metric:
    """Returns the metric registered as `name`: a `torchmetrics.Metric`.

    `update(forecast, target)` takes physical units, `(B,T,H,W,C)`; `compute()` returns a flat dict of floats.  See
    `bench.api.MetricTraits` and `METRIC_CAPABILITIES` for optional arguments and methods.

    Raises:
        UnknownNameError: no metric has this name.
        ConfigError: an option that the metric does not have, or a value that it refuses.
        ContractError: a member of the metric misspells one of `bench.api`.
    """
    from torchmetrics import Metric

    from bench.metrics.states import SETTINGS, tell_apart

    entry = registry.find("metric", name)
    card: Card = entry.card()
    for key in options:
        if key not in card.parameters and not card.accepts_any_parameter:
            raise ConfigError(f"metric {name!r} has no option {key!r}. {did_you_mean(key, card.parameters)}")
    metric_class = entry.load()
    if not (isinstance(metric_class, type) and issubclass(metric_class, Metric)):
        raise BrokenPluginError(f"metric {name!r} from {entry.origin} is not a subclass of torchmetrics.Metric")
    try:
        metric: Metric = metric_class(**options)
    except (TypeError, ValueError) as error:
        unknown = next((key for key in options if key not in card.parameters), None)  # passed through `**kwargs`
        hint = f". {did_you_mean(unknown, card.parameters)}" if unknown else ""
        raise ConfigError(f"metric {name!r} cannot be made with {options}: {error}{hint}") from error
    check_metric_members(metric)
    if SETTINGS not in metric._defaults:
        tell_apart(metric, **options)
    return metric

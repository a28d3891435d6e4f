"""The metrics of an evaluation, updated with each batch, and their results for the record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import Metric

from bench.api import HasCounts, HasCurves, metric_traits
from bench.engine.ensembles import Scoring, Sees
from bench.metrics.names import Better, better_of, with_ending
from bench.metrics.pairs import shared_work
from bench.records.schema import MetricStatistics


@dataclass(frozen=True)
class Scored:
    """What an evaluation found, of all processes, as plain numbers and arrays: nothing of it is on a device."""

    scores: dict[str, float]
    counts: dict[str, list[list[int]]] | None
    curves: dict[str, dict[str, list[float | None]]]
    statistics: dict[str, tuple[MetricStatistics, dict[str, Any]]]


class Scorer(nn.ModuleDict):
    """The metrics of an evaluation by name.

    Args:
        scorings: How each is used, by name; see `scorings_of`.
        metrics: By the same names.
        cell_weights: Gives the task's, for metrics that take them.
    """

    def __init__(
        self,
        scorings: Mapping[str, Scoring],
        metrics: Mapping[str, Metric],
        cell_weights: Callable[[], Mapping[str, np.ndarray]] = dict,
    ) -> None:
        self.scorings = dict(scorings)
        self._cell_weights = functools.cache(cell_weights)
        super().__init__(metrics)

    def named(self) -> list[tuple[str, Metric]]:
        """Returns the metrics with their names."""
        return [(name, metric) for name, metric in self.items() if isinstance(metric, Metric)]

    def track_events(self, count: int) -> None:
        """Keeps statistics of each of `count` events from now on, in the metrics that can."""
        for metric in self._tracking().values():
            metric.track_events(count)

    def _tracking(self) -> dict[str, Any]:
        """Returns the metrics that keep statistics per event."""
        return {name: metric for name, metric in self.named() if metric_traits(metric).takes_events}

    def reset(self) -> None:
        """Starts the scores afresh."""
        for _, metric in self.named():
            metric.reset()

    def add(
        self, seen: Mapping[Sees, Iterable[Tensor]], target: Tensor, labels: Sequence[Tensor], events: Tensor | None
    ) -> None:
        """Adds a batch to all metrics.

        Args:
            seen: Physical values by what a metric sees of them, one or more of each.
            target: Physical values `(B,T,H,W,C)`.
            labels: What the data hold besides.
            events: The event of each sequence, `(B,)`, once events are tracked.
        """
        with shared_work():
            for name, metric in self.named():
                takes = metric_traits(metric)
                own = labels if takes.takes_labels else ()
                options: dict[str, Any] = {"events": events} if events is not None and takes.takes_events else {}
                options |= {"cells": self._cell_weights()} if takes.takes_cells else {}
                channel = self.scorings[name].channel
                of = slice(None) if channel is None else slice(channel, channel + 1)
                for given in seen[self.scorings[name].sees]:
                    metric.update(given[..., of], target[..., of], *own, **options)

    def scored(self) -> Scored:
        """Returns all that was found; every process has to ask, while the group still takes the metrics' states."""
        return Scored(self.computed(), self.counts(), self.curves(), self.statistics())

    def computed(self) -> dict[str, float]:
        """Returns all scores of what was evaluated since the last start, by name."""
        found: dict[str, float] = {}
        for name, metric in self.named():
            ending = self.scorings[name].ending
            found |= {with_ending(score, ending): value for score, value in metric.compute().items()}
        return found

    def directions(self) -> dict[str, Better | None]:
        """Returns which way each score of `computed` is better, as its metric says; None where it says nothing.

        A metric says so by `better`, which has the direction by what a score's name begins with, or, where all its
        scores have the same one, by torchmetrics' `higher_is_better`.
        """
        found: dict[str, Better | None] = {}
        for name, metric in self.named():
            scores = list(metric.compute())
            known = metric_traits(metric).better
            if known is None and metric.higher_is_better is not None:
                known = dict.fromkeys(scores, "higher" if metric.higher_is_better else "lower")
            ending = self.scorings[name].ending
            found |= {with_ending(score, ending): better_of(score, known or {}) for score in scores}
        return found

    def conventions(self) -> dict[str, dict[str, Any]]:
        """Returns the options of every metric."""
        return {name: dict(how.options) for name, how in self.scorings.items()}

    def statistics(self) -> dict[str, tuple[MetricStatistics, dict[str, Any]]]:
        """Returns, of the metrics that keep any, the statistics per event and how they become scores."""
        found = {}
        for name, metric in self._tracking().items():
            with metric.sync_context():  # over all processes
                arrays = metric.event_statistics()
                options = metric.score_options()
            if arrays:
                found[name] = (
                    MetricStatistics(family=metric.family, options=options, ending=self.scorings[name].ending),
                    arrays,
                )
        return found

    def curves(self) -> dict[str, dict[str, list[float | None]]]:
        """Returns reliability curves and rank histograms, where a metric has them."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for _, metric in self.named():
            if isinstance(metric, HasCurves):
                with metric.sync_context():
                    found |= metric.curves()
        return found

    def counts(self) -> dict[str, list[list[int]]] | None:
        """Returns the contingency counts, where a metric of the task keeps them."""
        for _, metric in self.named():
            if isinstance(metric, HasCounts):
                with metric.sync_context():  # over all processes
                    return metric.counts()
        return None

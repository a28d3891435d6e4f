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
    """The results of an evaluation over all processes, as plain numbers and numpy arrays."""

    scores: dict[str, float]
    counts: dict[str, list[list[int]]] | None
    curves: dict[str, dict[str, list[float | None]]]
    statistics: dict[str, tuple[MetricStatistics, dict[str, Any]]]


class Scorer(nn.ModuleDict):
    """The metrics of an evaluation by name.

    Args:
        scorings: How each metric is used, by name; see `scorings_of`.
        metrics: The metrics, by the same names.
        cell_weights: Returns the task's weights of cells, for metrics that take them.
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
        """Resets the scores."""
        for _, metric in self.named():
            metric.reset()

    def add(
        self, seen: Mapping[Sees, Iterable[Tensor]], target: Tensor, labels: Sequence[Tensor], events: Tensor | None
    ) -> None:
        """Adds a batch to all metrics.

        Args:
            seen: Physical values by what a metric sees of them (`Sees`), each one or more tensors.
            target: Physical values `(B,T,H,W,C)`.
            labels: Labels of the data.
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
        """Returns all results; every process must call it, while the group can still gather the metrics' states."""
        return Scored(self.computed(), self.counts(), self.curves(), self.statistics())

    def computed(self) -> dict[str, float]:
        """Returns all scores since the last reset, by name."""
        found: dict[str, float] = {}
        for name, metric in self.named():
            ending = self.scorings[name].ending
            found |= {with_ending(score, ending): value for score, value in metric.compute().items()}
        return found

    def directions(self) -> dict[str, Better | None]:
        """Returns the direction of each score of `computed` as declared by its metric; None if undeclared.

        A metric declares it by `better`, with directions by prefix of a score's name, or, if all its scores have the
        same direction, by torchmetrics' `higher_is_better`.
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
        """Returns the statistics per event of metrics that keep any, and how they become scores."""
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
        """Returns reliability curves and rank histograms, if a metric has them."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for _, metric in self.named():
            if isinstance(metric, HasCurves):
                with metric.sync_context():
                    found |= metric.curves()
        return found

    def counts(self) -> dict[str, list[list[int]]] | None:
        """Returns the contingency counts of the first metric that keeps them, or None."""
        for _, metric in self.named():
            if isinstance(metric, HasCounts):
                with metric.sync_context():  # over all processes
                    return metric.counts()
        return None

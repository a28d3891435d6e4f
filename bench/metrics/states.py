"""States of exact metrics beyond torchmetrics: sizes inferred from the first batch, fixed dtypes, a digest."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from bench.errors import ContractError

SETTINGS = "settings_digest"
"""Name of the state that distinguishes metrics with different settings."""


def tell_apart(metric: Metric, **settings: Any) -> None:
    """Adds a state that is equal only for metrics of the same class and settings.

    A `MetricCollection` lets metrics share their states permanently if these are equal after the first batch, as those
    of two thresholds are in dry weather, or those of MSE and MAE after a perfect forecast.

    Args:
        metric: The metric.
        **settings: All settings that its states depend on.
    """
    words = f"{type(metric).__module__}.{type(metric).__qualname__} {_plain(sorted(settings.items()))!r}"
    digest = hashlib.sha256(words.encode()).digest()[:16]
    # as bytes, because torchmetrics compares with a tolerance, under which large integers count as equal
    metric.add_state(SETTINGS, torch.tensor(list(digest), dtype=torch.int64), dist_reduce_fx=_the_same)


def _plain(value: Any) -> Any:
    """Returns a setting in canonical form: 16 equals 16.0, and lists equal tuples."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _the_same(digests: Tensor) -> Tensor:
    if bool((digests != digests[0]).any()):
        raise ContractError("the states of metrics with different settings cannot be joined: make both with the same")
    return digests[0]


class ExactMetric(Metric):
    """A metric whose states are int64 counts and float64 sums, or lists of tensors.

    An empty tensor is a sum whose shape, e.g. the number of lead times, is not known yet.
    """

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Metric:
        """Moves the states and keeps their dtypes: neither `to(torch.float16)` nor `set_dtype` may reach the sums."""

        def moved(state: Tensor) -> Tensor:
            found = fn(state)
            return found if found.dtype == state.dtype else state.to(found.device)

        super()._apply(moved, exclude_state)
        return self

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds the state of another metric of the same class and settings, or its `metric_state`."""
        super().merge_state(incoming_state)
        # torchmetrics would return the cached result, and warn that nothing was added
        self._computed = None
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Adds states, as `forward` and `merge_state` do.

        Raises:
            ContractError: the numbers of lead times, thresholds or members, or the settings, differ.
        """
        incoming = dict(incoming_state)
        for name in self._defaults:
            own, other = getattr(self, name), incoming.get(name)
            if not (isinstance(own, Tensor) and isinstance(other, Tensor)) or own.shape == other.shape:
                continue
            if not own.numel():
                setattr(self, name, torch.zeros_like(other))
            elif not other.numel():
                incoming[name] = torch.zeros_like(own)
            else:
                raise ContractError(
                    f"{type(self).__name__}: {name} of shape {tuple(other.shape)} cannot be added to "
                    f"{tuple(own.shape)}: lead times, thresholds or members differ"
                )
        super()._reduce_states(incoming)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        """Joins the states of all processes, some of which may not have seen a batch."""
        if dist_sync_fn is gather_all_tensors:
            self._agree_on_lists(process_group or self.process_group)
        names = iter(self._reductions)  # states are joined in this order, each list as one tensor

        def sized(state: Tensor, group: Any = None) -> list[Tensor]:
            parts: list[Tensor] = dist_sync_fn(state, group=group)
            if isinstance(getattr(self, next(names)), list):
                return parts
            largest = max(parts, key=Tensor.numel)
            return [part if part.numel() else torch.zeros_like(largest) for part in parts]

        super()._sync_dist(sized, process_group)

    def _agree_on_lists(self, group: Any) -> None:
        """Fills empty lists with an empty tensor of the others' dtype: torchmetrics' float32 would make gloo abort."""
        lists = {name: state for name, state in self.metric_state.items() if isinstance(state, list)}
        if not lists:
            return
        mine = {name: (parts[0].dtype, parts[0].shape[1:]) for name, parts in lists.items() if parts}
        everyone: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(everyone, mine, group)
        for name, (dtype, shape) in {name: form for forms in everyone for name, form in forms.items()}.items():
            if not lists[name]:
                setattr(self, name, [torch.empty((0, *shape), dtype=dtype, device=self.device)])


class EventMetric(ExactMetric):
    """A metric that is a pure function, `bench.metrics.families.FAMILIES[family]`, of sums over sequences.

    After `track_events(n)`, it also keeps these sums per event, if `update` gets the event of each sequence.  Both are
    plain sums, so they do not depend on batches, order or processes.
    """

    takes_events = True
    family: ClassVar[str]
    event_count: int = 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._statistics: list[str] = []

    @abstractmethod
    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the statistics, as JSON types."""

    def add_statistic(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Declares a sum `(T, ...)`; T may be 0 and is then that of the first update."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        self._statistics.append(name)

    def track_events(self, count: int) -> None:
        """Keeps the statistics of each of `count` events from now on."""
        self.event_count = count
        for name in self._statistics:
            total = self._defaults[name]
            assert isinstance(total, Tensor)
            self.add_state(_by_event(name), total.new_zeros((count, *total.shape)), dist_reduce_fx="sum")

    def add(self, found: Mapping[str, Tensor], events: Tensor | None) -> None:
        """Adds statistics of sequences, each `(B, T, ...)`.

        Args:
            found: By name, all that were declared.
            events: The event of each sequence, `(B,)`; None if unknown.

        Raises:
            ContractError: the number of lead times changed.
        """
        for name, each in found.items():
            total = self._sized(name, each.shape[1:])
            setattr(self, name, total + each.sum(0).to(total, non_blocking=total.is_cuda))
            if self.event_count and events is not None:
                by_event = self._sized(_by_event(name), (self.event_count, *each.shape[1:]))
                by_event.index_add_(0, events.to(by_event.device), each.to(by_event))
                setattr(self, _by_event(name), by_event)

    def _sized(self, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
        state: Tensor = getattr(self, name)
        if state.shape != torch.Size(shape):
            if state.numel():
                lead = -len(shape) if name in self._statistics else 1 - len(shape)
                raise ContractError(
                    f"{self.family} counts {state.shape[lead]} lead times, this batch has {shape[lead]}"
                )
            state = state.new_zeros(shape)
        return state

    def statistics(self) -> dict[str, np.ndarray]:
        """Returns the sums over everything, `(T, ...)`, by name."""
        return {name: getattr(self, name).cpu().numpy() for name in self._statistics}

    def event_statistics(self) -> dict[str, np.ndarray]:
        """Returns the sums of each event, `(events, T, ...)`, by name; empty if events are not tracked."""
        if not self.event_count:
            return {}
        return {name: getattr(self, _by_event(name)).cpu().numpy().copy() for name in self._statistics}

    def compute(self) -> dict[str, float]:
        """Returns the scores by name; see the class."""
        from bench.metrics.families import FAMILIES

        found = FAMILIES[self.family](self.statistics(), self.score_options())
        return {name: float(value) for name, value in found.items()}


def _by_event(name: str) -> str:
    return f"{name}_by_event"

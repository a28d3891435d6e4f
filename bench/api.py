"""The contracts between the packages, as types; nothing here imports torch at run time.

Layout at every border is `(B, T, H, W, C)`, float32.  A model sees normalised units; a metric sees physical units.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Real
    from torch import Tensor, nn

_Traits = TypeVar("_Traits", "ModelTraits", "MetricTraits")
Shape = tuple[int, int, int, int]
"""`(T, H, W, C)` of one context or target."""

Split = Literal["train", "val", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "all")

MONTH_MINUTES = 43_829.1
"""A month of 30.436875 days, the mean of the Gregorian calendar's: the cadence of monthly data."""
TimeUnit = Literal["month", "day", "h", "min"]
_UNIT_MINUTES: dict[TimeUnit, float] = {"month": MONTH_MINUTES, "day": 24 * 60, "h": 60}
"""The units of which a cadence is to be a whole number, the longest first."""


def in_longest_unit(minutes: float) -> tuple[float, TimeUnit]:
    """Returns a cadence in the longest unit of which it is a whole number; else in minutes."""
    for unit, length in _UNIT_MINUTES.items():
        whole = round(minutes / length)
        if whole and abs(minutes / length - whole) < 1e-6:
            return whole, unit
    return minutes, "min"


def cadence_text(minutes: float) -> str:
    """Returns a cadence in its longest unit: `5 min`, `6 h`, `2 months`."""
    number, unit = in_longest_unit(minutes)
    return f"{number:g} {unit}{'s' if unit in ('month', 'day') and number != 1 else ''}"


@dataclass(frozen=True)
class Palette:
    """How the frames of a task are coloured in pictures."""

    colours: str | tuple[str, ...] = "viridis"
    """A colour map of matplotlib, or one colour per interval between levels and a last one above them."""
    levels: tuple[float, ...] = ()
    """In physical units, ascending; without any, the colours span the range of what is drawn."""
    first_row: Literal["lower", "upper"] = "lower"
    """Where a frame's first row is drawn: at the bottom for maps from the south, at the top for images."""


class Model(Protocol):
    """A forecasting model: `Model(input_shape, target_shape, **hyperparameters)`, an `nn.Module`.

    It may have any of the methods of `MODEL_CAPABILITIES` and any of the attributes of `ModelTraits`.
    """

    def __call__(self, context: Float[Tensor, "b t_in h w c_in"]) -> Float[Tensor, "b t_out h w c_out"]:
        """Returns the forecast for a context, both normalised."""
        ...


class _Methods(type(Protocol)):  # type: ignore[misc]
    """Makes `isinstance` look for methods: a module or a number that is called `stages` is no `HasStages`."""

    def __instancecheck__(cls, thing: object) -> bool:
        found = {name: getattr(thing, name, None) for name in methods_of(cls)}
        # A loss may be a layer of its own.
        return all(callable(v) and (n.endswith("_loss") or not hasattr(v, "named_modules")) for n, v in found.items())


def methods_of(capability: type) -> list[str]:
    """Returns the names of the public methods of a capability."""
    return [name for name, member in vars(capability).items() if not name.startswith("_") and inspect.isroutine(member)]


@runtime_checkable
class TrainsWithOwnLoss(Protocol, metaclass=_Methods):
    """A model with another loss than the mean squared error."""

    def training_loss(
        self,
        context: Float[Tensor, "b t_in h w c_in"],
        target: Float[Tensor, "b t_out h w c_out"],
        *,
        step: int,
        total_steps: int,
        **options: Any,
    ) -> Float[Tensor, ""] | Mapping[str, Float[Tensor, ""]]:
        """Returns the loss of a batch, or its terms by name.

        Args:
            context: Normalised.
            target: Normalised, with NaN for missing pixels: the loss is the mean over the known ones.
            step: Optimiser steps done so far.
            total_steps: Optimiser steps of the whole training.
            **options: With `verifies_context`, `context_known`, bool `(B,T_in,H,W,C)`, false where a missing pixel of
                the context was filled; with `takes_labels`, the data's `labels`.
        """
        ...


@runtime_checkable
class ValidatesWithOwnLoss(Protocol, metaclass=_Methods):
    """A stage that is validated by a loss, because it gives no forecast."""

    def validation_loss(
        self,
        context: Float[Tensor, "b t_in h w c_in"],
        target: Float[Tensor, "b t_out h w c_out"],
        **options: Any,
    ) -> Float[Tensor, ""]:
        """Returns the loss of a batch; arguments are those of `training_loss`."""
        ...


@runtime_checkable
class HasOptimizers(Protocol, metaclass=_Methods):
    """A model with parameter groups that have their own learning rates."""

    def optimizers(self) -> Iterable[tuple[Iterable[nn.Parameter], float, tuple[float, float]]]:
        """Returns `(parameters, lr, betas)` of Adam for each group; together, the groups have each parameter once.

        The schedule of `train` multiplies each learning rate.  Groups may take turns: a group that the loss of a step
        does not reach is not updated, and every group must be reached within the first ten steps.
        """
        ...


@runtime_checkable
class FitsInOnePass(Protocol, metaclass=_Methods):
    """A model that learns in closed form instead of by gradients."""

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Learns from normalised `(context, target)` batches, each read once; missing pixels are NaN."""
        ...


@runtime_checkable
class Samples(Protocol, metaclass=_Methods):
    """A model that draws the members of a probabilistic forecast."""

    def sample(
        self, context: Float[Tensor, "b t_in h w c_in"], *, members: int, **options: Any
    ) -> Float[Tensor, "m b t_out h w c_out"]:
        """Returns the members of the forecast, normalised.

        Args:
            context: Normalised.
            members: How many.
            **options: `generator`, a `torch.Generator` on the CPU from which it draws there
                (`device=generator.device`), so that the members are the same on every device; it is then called for
                one sequence at a time. A model that takes `seeds`, int64 `(B,)`, gets these instead, with whole
                batches: what it draws for a sequence must depend on its seed alone. For models that take them,
                `advance(done, total)`, called after each step, and `control`, the strength of the knowledge control.
        """
        ...


@runtime_checkable
class HasStages(Protocol, metaclass=_Methods):
    """A model that is trained in stages."""

    def stages(self) -> Sequence[Stage]:
        """Returns its stages in the order of training."""
        ...


@runtime_checkable
class HasReference(Protocol, metaclass=_Methods):
    """A model with a faster formulation than the published one."""

    def reference(self) -> AbstractContextManager[Any]:
        """Returns a context in which `forward` runs the plain formulation, on which FLOPs are counted."""
        ...


MODEL_CAPABILITIES: tuple[type, ...] = (
    TrainsWithOwnLoss, ValidatesWithOwnLoss, HasOptimizers, FitsInOnePass, Samples, HasStages, HasReference,
)  # fmt: skip


@dataclass(frozen=True)
class ModelTraits:
    """Optional attributes by which a model, or the module of a stage, declares its traits."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Hyperparameters by task, applied before the caller's own; on the class, a literal. `tiny` is for checks."""
    of_task: Mapping[str, str] = field(default_factory=dict)
    """Hyperparameters whose default is an attribute of the task, e.g. its cadence: `{hyperparameter: attribute}`."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Hyperparameters that `target_params` scales by a common factor, each with its divisor; a literal."""
    options_class: str | None = None
    """`"module:Class"`, the dataclass whose fields `**kwargs` are; on the class."""
    size_multiple: int | Callable[[Mapping[str, Any]], int] = 1
    """Divisor of the frames' height and width, a number or a static method of the hyperparameters: other frames are
    padded for the model and the modules of its stages, and its forecasts are cropped."""
    evaluation_only: tuple[str, ...] = ()
    """Hyperparameters that trained weights do not depend on."""
    fitted_on: Literal["train", "val"] = "train"
    """The split that `fit` gets; `val` falls back to the training split if there is no validation split."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """How `training_loss` reduces over the sequences of a batch, and so how micro-batches are accumulated."""
    forecast_range: tuple[float, float] | None = None
    """Range that its forecasts cannot leave, on the scale that models see: a sigmoid's is 0 to 1."""
    verifies_context: bool = False
    """Whether its losses take `context_known`."""
    takes_labels: bool = False
    """Whether its losses take `labels`."""
    uses_batch_statistics: bool | None = None
    """Whether a sequence's loss depends on the others of its micro-batch, whose size is then part of a training's
    identity; None: true if the model has a batch-norm module."""
    parameters_without_gradient: tuple[str, ...] = ()
    """Glob patterns of parameters that no loss reaches."""
    uncountable: str = ""
    """Why its multiply-adds cannot be counted: the work is done outside of torch."""
    degraded: Counter[str] = field(default_factory=Counter)
    """Number of forecasts that fell back to a simpler method, by reason; an evaluation warns once and records them."""
    trivial: bool = False
    """Whether it is a trivial reference: tables measure skill against the best of these."""
    members: int = 1
    """Number of members whose mean `forward` returns."""


class Metric(Protocol):
    """A score: a `torchmetrics.Metric` that adds up int64 counts or float64 sums, in physical units.

    It may have any of the methods of `METRIC_CAPABILITIES` and any of the attributes of `MetricTraits`.
    """

    def update(
        self, forecast: Real[Tensor, "*m b t h w c"], target: Real[Tensor, "b t h w c"], *labels: Tensor, **options: Any
    ) -> None:
        """Adds a batch.

        Args:
            forecast: Without `m`; with `takes_members`, all members.
            target: Missing pixels are NaN and must be ignored.
            *labels: With `takes_labels`, the data's labels.
            **options: With `takes_events`, `events`, int64 `(B,)`; with `takes_cells`, `cells`, the task's weights
                `(H,W)` by name.
        """
        ...

    def compute(self) -> dict[str, float]:
        """Returns the scores by name; undefined ones are NaN."""
        ...


@runtime_checkable
class HasCurves(Protocol, metaclass=_Methods):
    """A metric with curves for plots beside its scores."""

    def curves(self) -> dict[str, dict[str, list[float | None]]]:
        """Returns reliability curves and rank histograms by name."""
        ...


@runtime_checkable
class HasCounts(Protocol, metaclass=_Methods):
    """A metric of contingency counts."""

    def counts(self) -> dict[str, list[list[int]]] | None:
        """Returns them by name, `[lead][threshold]`."""
        ...


@runtime_checkable
class TracksEvents(Protocol, metaclass=_Methods):
    """A metric that keeps its statistics per event, and says so by `takes_events = True`."""

    family: str
    """Name in `bench.metrics.families.FAMILIES` of the functions that compute its scores from the statistics."""

    def track_events(self, count: int) -> None:
        """Keeps the statistics of each of `count` events from now on; `update` then takes `events`, int64 `(B,)`."""
        ...

    def event_statistics(self) -> dict[str, np.ndarray]:
        """Returns the statistics of each event, `(events, ...)`, by name."""
        ...

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the statistics, as JSON types."""
        ...


METRIC_CAPABILITIES: tuple[type, ...] = (HasCurves, HasCounts, TracksEvents)


@dataclass(frozen=True)
class MetricTraits:
    """What a metric declares by attributes of these names."""

    takes_events: bool = False
    """Whether `update` takes `events`; see `TracksEvents`."""
    takes_labels: bool = False
    """Whether `update` takes the data's labels after forecast and target."""
    takes_members: bool = False
    """Whether `update` takes all members of an ensemble, `(M,B,T,H,W,C)`."""
    takes_cells: bool = False
    """Whether `update` takes `cells`, the result of `Task.cell_weights`."""
    better: Mapping[str, Any] | None = None
    """Direction of the scores by prefix of their names; None: torchmetrics' `higher_is_better`."""


def samples_with(model: object, option: str) -> bool:
    """Returns whether a model draws members by a `sample` that takes an option, such as `seeds`."""
    return isinstance(model, Samples) and option in inspect.signature(model.sample).parameters


def model_traits(model: object) -> ModelTraits:
    """Returns the attributes that a model, or its class, declares, with defaults for the others."""
    return _declared(model, ModelTraits)


def metric_traits(metric: object) -> MetricTraits:
    """Returns the attributes that a metric, or its class, declares, with defaults for the others."""
    return _declared(metric, MetricTraits)


def _declared(thing: object, traits: type[_Traits]) -> _Traits:
    found = {one.name: getattr(thing, one.name, None) for one in fields(traits)}  # a class's property has no value yet
    return traits(**{name: value for name, value in found.items() if not isinstance(value, NoneType | property)})


class Stage(Protocol):
    """One training of a model that is trained in stages; it shares its networks with the model."""

    name: str
    module: nn.Module
    """The module to train: it has `training_loss` and `validation_loss`, and may have attributes of `ModelTraits`."""
    depends_on: Mapping[str, Any]
    """Hyperparameters that its weights depend on, besides those of earlier stages (JSON types)."""
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None
    """Called before the training with normalised contexts and targets of the whole training split, and labels."""

    def load(self, path: str | Path) -> None:
        """Takes weights from a file instead of the training; raises OSError or ValueError."""
        ...


class Picture(Protocol):
    """Drawings of one kind of model component, shown by `earthbench show PICTURE NAME`."""

    def names(self) -> list[str]:
        """Returns the names of what can be drawn."""
        ...

    def describe(self, name: str, size: Sequence[int] = ...) -> dict[str, Any]:
        """Returns facts about `name` on a grid of `size` (T, H, W), as JSON types; `ValueError` for a wrong size."""
        ...

    def draw(self, name: str, form: str = "png", size: Sequence[int] = ...) -> bytes:
        """Returns the bytes of a drawing in format `form` (png, svg, pdf); `ValueError` if it cannot be drawn."""
        ...

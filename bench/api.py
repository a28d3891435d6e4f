"""The contracts between the rooms of the house, as types; nothing here imports torch at run time.

Layout at every border is `(B, T, H, W, C)`, float32.  A model sees normalised units; a metric sees physical units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, int, int, int]
"""`(T, H, W, C)` of one context or target."""

Split = Literal["train", "val", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "all")

MONTH_MINUTES = 43_829.1
"""A month of 30.436875 days, the mean of the Gregorian calendar's: the cadence of monthly data."""


@dataclass(frozen=True)
class Palette:
    """How the frames of a task are coloured in pictures."""

    colours: str | tuple[str, ...] = "viridis"
    """A colour map of matplotlib, or one colour for each interval between levels and a last one for what is above."""
    levels: tuple[float, ...] = ()
    """In physical units, ascending; without any, they span what is drawn."""
    first_row: Literal["lower", "upper"] = "lower"
    """Where a frame's first row is drawn: maps begin in the south, images at the top."""


@runtime_checkable
class Model(Protocol):
    """A forecasting model: `Model(input_shape, target_shape, **hyperparameters)`, an `nn.Module`.

    Optional members, used where they exist:
        `training_loss(context, target, *, step, total_steps)` -> loss or `{name: summand}`; default: squared error.
            A target is NaN where it is missing: the loss is the sum over known pixels over their number.
        `verifies_context`: class attribute; if true, the loss takes `context_known` too: `(B,T_in,H,W,C)`, false where
            a missing pixel of the context was filled.
        `loss_reduction`: `"mean"` (default) or `"sum"`, what `training_loss` makes of the sequences of a batch: how
            those of micro-batches add up to that of an optimiser step.
        `uses_batch_statistics`: whether a sequence's loss depends on the others of its micro-batch; default: whether
            there is a module of batch normalisation. The micro-batch then is part of what a training is.
        `optimizers()` -> `[(parameters, lr, betas), ...]`: what Adam does to each group of parameters, which together
            name every trained parameter once; by default all have `train.lr`. The schedule of `train` multiplies each
            learning rate. Groups may take turns: those that the loss of a step does not reach stay as they are, and
            every group has its turn within the first ten steps.
        `fit(batches)`: learns from `(context, target)` batches in one pass, in closed form, instead of by gradients.
            Both are NaN where they are missing.
        `sample(context, *, members, generator)` -> `(M,B,T_out,H,W,C)`: members of a probabilistic forecast. Called
            for one sequence at a time with a `torch.Generator` of its own on the CPU, from which it draws there
            (`device=generator.device`), so that the members are the same on every device. If it takes `seeds`, it is
            called with `seeds`, int64 `(B,)`, instead of the generator, for whole batches: what it draws for a sequence
            must follow from its seed alone.
        `stages()` -> the trainings of a model that is trained in stages, in their order; see `Stage`.
        `fitted_on`: class attribute, `"val"` where `fit` gets the validation split; without one, it gets the training
            split as every other `fit` does.
        `trivial`: class attribute, true for a forecast that takes no skill: tables measure skill against the best one.
        `of_task`: class attribute, `{hyperparameter: attribute of the task}`: what a model takes from the task, such as
            the time between frames, unless it is given.
        `degraded`: a `collections.Counter` of forecasts that it could not make as it should, by reason: an evaluation
            warns once and records them.
        `reference()` -> context manager under which `forward` runs the plain formulation that FLOPs are counted on.
        `parameters_without_gradient`: class attribute, glob patterns of parameters that no loss reaches.
        `uncountable`: class attribute, why its multiply-adds cannot be counted: the work is done outside of torch.
        `options_class`: class attribute, `"module:Class"`, the dataclass whose fields `**kwargs` are.
        `presets`: class attribute, `{task name: hyperparameters}`, applied before the caller's own.
        `size_multiple`: class attribute or static method of the hyperparameters, a number that the height and width of
            frames must be divisible by: others are padded before the model, and its forecasts cropped.
        `evaluation_only`: class attribute, names of hyperparameters that trained weights do not depend on.
    """

    def __call__(self, context: Tensor) -> Tensor:
        """Returns the forecast `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`, both normalised."""
        ...


class Stage(Protocol):
    """One training of a model that is trained in stages; it shares its networks with the model."""

    name: str
    module: nn.Module
    """What is trained: `training_loss` as of a model, and `validation_loss(context, target)` -> loss.  If it has a true
    `takes_labels`, both take the data's `labels` too, and `context_known` with a true `verifies_context`."""
    depends_on: Mapping[str, Any]
    """Hyperparameters that its weights depend on, besides those of earlier stages (JSON types)."""
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None
    """Called before the training with normalised contexts and targets of the whole training split, and labels."""

    def load(self, path: str | Path) -> None:
        """Takes weights from a file instead of the training; raises OSError or ValueError."""
        ...


class Dataset(Protocol):
    """A map-style data set of one split: `dataset[i]` -> `(context, target)`, float32 `(T,H,W,C)`, normalised."""

    ids: tuple[str, ...]
    """One identifier per independent event (not per sequence): splits must not share any."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns sequence `index` in normalised units."""
        ...

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns sequence `index` in the units and dtype it is stored in, `(T,H,W,C)`.

        Behind context and target there may be labels, of any shape: metrics with `takes_labels = True` get them.
        """
        ...

    def identity(self) -> Mapping[str, Any]:
        """Returns what identifies the data (JSON types): equal for equal data wherever it lies."""
        ...


class Picture(Protocol):
    """Drawings of one kind of thing a model is built of, shown by `earthbench show PICTURE NAME`."""

    def names(self) -> list[str]:
        """Returns the names of what can be drawn."""
        ...

    def describe(self, name: str, size: Sequence[int] = ...) -> dict[str, Any]:
        """Returns what `name` is on a grid of `size` (T, H, W), as JSON types; `ValueError` for a wrong size."""
        ...

    def draw(self, name: str, form: str = "png", size: Sequence[int] = ...) -> bytes:
        """Returns the file of a drawing in format `form` (png, svg, pdf); `ValueError` for what cannot be drawn."""
        ...

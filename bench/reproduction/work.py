"""The cost of a row: operations and bytes of its trainings and forecasts, from traces without values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.api import HasOptimizers, HasStages, model_traits
from bench.config import Config, Train
from bench.errors import NotCountableError
from bench.tables.settings import stage_settings, total_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.cost.tracing import StepTrace
    from bench.tasks import Task


@dataclass(frozen=True)
class Training:
    """One training of a row: of the whole model, or of a stage."""

    stage: str
    """Empty for a model that is trained at once."""
    module: nn.Module
    settings: Train
    prepare: Callable[..., None] | None
    """See `bench.api.Stage.prepare`."""


@dataclass(frozen=True)
class TrainingWork:
    """Operations and memory of one training."""

    stage: str
    settings: Train
    total_batch: int
    epochs: float
    """Number of epochs without early stopping."""
    step_flops: int
    """Operations of a training step per sequence (a multiply-add is two); the mean if parts alternate."""
    forward_flops: int
    """Operations of a validation per sequence."""
    state_bytes: int
    """Bytes of parameters, buffers, gradients, the optimiser's state and a running average."""
    fixed_bytes: int
    """Further bytes of a step, independent of the batch."""
    activation_bytes: int
    """Bytes that a step keeps per sequence."""

    def epoch_flops(self, counts: dict[str, int]) -> float:
        """Returns the operations of an epoch without validation."""
        return float(self.step_flops * counts["train"])

    def flops(self, counts: dict[str, int]) -> float:
        """Returns the operations of all epochs with their validations."""
        count = validations_of(self.settings, self.epochs, counts, self.total_batch)
        return self.epochs * self.epoch_flops(counts) + count * self.forward_flops * counts["val"]


def trainings_of(model: nn.Module, config: Config) -> list[Training]:
    """Returns the trainings of a trainable model, in order."""
    if not isinstance(model, HasStages):
        return [Training("", model, config.train, None)]
    settings = stage_settings(config)
    return [Training(s.name, s.module, settings.get(s.name, config.train), s.prepare) for s in model.stages()]


def epochs_of(config: Config, train: Train, counts: dict[str, int], stage: str = "") -> float:
    """Returns the epochs of a training, or of a stage with its settings, without early stopping."""
    steps = max(1, counts["train"] // total_batch(config, stage))
    return min(train.max_epochs, train.max_steps / steps) if train.max_steps is not None else float(train.max_epochs)


def budget_wall_s(train: Train) -> float | None:
    """Returns the least wall time of a training with a compute budget, in seconds; None without one.

    At best, all threads spend processor time at once.
    """
    import torch

    if train.budget is None:
        return None
    key, seconds = train.budget
    return seconds / torch.get_num_threads() if key == "max_cpu_s" else seconds


def validations_of(train: Train, epochs: float, counts: dict[str, int], batch: int) -> float:
    """Returns the number of validations in `epochs` epochs."""
    if train.val_every_steps is None:
        return epochs / train.val_every_epochs
    return epochs * max(1, counts["train"] // batch) / train.val_every_steps


def training_loss_of(module: nn.Module, step: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function from context and target to a module's loss `()`: its own, else the squared error."""
    from bench.engine.losses import training_loss

    return partial(training_loss, module, step=step, total_steps=100)


def works_of(model: nn.Module, task: Task, config: Config, counts: dict[str, int]) -> list[TrainingWork]:
    """Returns operations and memory of each training of a model.

    Args:
        model: Model of the run; it is left on the meta device, without its values.
        task: Task with the shapes.
        config: Config of the run.
        counts: Sequences per split.

    Raises:
        NotCountableError: a training step depends on more than shapes.
    """
    from bench.cost.tracing import state_bytes

    model.to("meta")
    found = []
    for training in trainings_of(model, config):
        module, train = training.module.to("meta"), training.settings
        try:
            ones = _traced_alternation(module, task)
            pairs = [(one, _traced(module, task, 2, step)) for step, one in enumerate(ones)]
        except Exception as error:  # a model may fail in any way without values
            raise NotCountableError(
                f"{type(module).__name__}: a training step cannot be traced without values: {error}. "
                "--measure runs a few real ones"
            ) from error
        activations = max(two.saved_bytes - one.saved_bytes for one, two in pairs)
        found.append(
            TrainingWork(
                stage=training.stage,
                settings=train,
                total_batch=total_batch(config, training.stage),
                epochs=epochs_of(config, train, counts, training.stage),
                step_flops=sum(two.step_flops - one.step_flops for one, two in pairs) // len(pairs),
                forward_flops=sum(two.forward_flops - one.forward_flops for one, two in pairs) // len(pairs),
                state_bytes=state_bytes(module, train.optimizer, averaged=train.ema_decay is not None),
                fixed_bytes=max(0, max(one.saved_bytes for one in ones) - activations),
                activation_bytes=activations,
            )
        )
    return found


def _traced(module: nn.Module, task: Task, size: int, step: int) -> StepTrace:
    from bench.cost.tracing import traced_step

    return traced_step(module, training_loss_of(module, step), task.input_shape, task.target_shape, size)


def _traced_alternation(module: nn.Module, task: Task) -> list[StepTrace]:
    """Returns traces of steps until each group of parameters has been trained once; one step for most models."""
    from bench.engine.optimizers import MAX_ALTERNATION

    groups = [{id(p) for p in group[0]} for group in module.optimizers()] if isinstance(module, HasOptimizers) else []
    found: list[StepTrace] = []
    while not found or (groups and len(found) < MAX_ALTERNATION):
        found.append(_traced(module, task, 1, len(found)))
        groups = [group for group in groups if not group & found[-1].reached]
    return found


def forecast_flops_of(model: nn.Module, task: Task, config: Config) -> int | None:
    """Returns the operations of the forecast of one sequence, with all members; None if it cannot be traced.

    Models that do not compute with torch, and say so in `uncountable`, cannot be traced either.

    Args:
        model: Model of the run; it is left on the meta device, without its values.
        task: Task with the shapes.
        config: Config of the run.
    """
    from bench.cost.tracing import traced_forecast, traced_sampling

    if model_traits(model).uncountable:
        return None
    member = traced_sampling(model.to("meta"), task.input_shape)
    if member is not None:
        return member * members_of(model, config)
    return traced_forecast(model, task.input_shape)


def members_of(model: nn.Module, config: Config) -> int:
    """Returns how many members an evaluation draws per sequence."""
    return config.evaluate.members or model_traits(model).members

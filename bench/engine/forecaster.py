"""The LightningModule that trains and evaluates a model on a task: losses, scores, optimiser."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from bench.api import Shape, TrainsWithOwnLoss, ValidatesWithOwnLoss, model_traits
from bench.config import Train
from bench.contract import check_model_members
from bench.data.sequences import Example
from bench.engine.accumulation import Accumulation, known_pixels, loss_options, scale_gradients, total_loss
from bench.engine.compiling import FullBatches
from bench.engine.degraded import Degraded
from bench.engine.ensembles import Ensemble, Sees, can_draw, check_can_draw, draw_members, scorings_of
from bench.engine.hardware import ScoresWithFloat64
from bench.engine.independence import dependence
from bench.engine.losses import Losses, WeightedMean, masked_mse
from bench.engine.optimizers import can_fuse, has_own_optimizers, parameter_groups
from bench.engine.pictured import Pictured
from bench.engine.randomness import random_states, restore_random_states
from bench.engine.reach import warn_of_values_out_of_reach
from bench.engine.scorer import Scored, Scorer
from bench.engine.weights import WARMUP, WARMUP_LAG, RunningAverage, number_as_in_module, shard
from bench.errors import ContractError, RunFailedError
from bench.metrics import load_metric
from bench.metrics.names import Better
from bench.tasks.task import Task


class Forecaster(ScoresWithFloat64):
    """Joins a model and a task: stored batches in, losses in normalised units, scores in physical units.

    Args:
        model: Follows the contract in `bench.api`.
        task: Normalises, denormalises and names the metrics.
        train: Optimiser settings; None for evaluation only.
        total_steps: Optimiser steps of the whole training, which the schedule and some losses span.
        accumulation: How micro-batches add up in training; None if a step has one.
        ensemble: The ensemble to score in tests; None for the forecast of `forward`.
        added_metrics: `evaluate.metrics`, see `scorings_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        train: Train | None = None,
        total_steps: int = 1,
        ensemble: Ensemble | None = None,
        accumulation: Accumulation | None = None,
        added_metrics: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        check_model_members(model)
        self.accumulation = accumulation
        self._full_batches = FullBatches()
        self.model = model
        self.task = task
        self.train_config = train
        self.total_steps = total_steps
        decay = train.ema_decay if train else None
        self._average_lag = WARMUP_LAG if train and train.ema_warmup else 0
        warmup = WARMUP if train and train.ema_warmup else {}
        self.average = RunningAverage(model, decay=decay, **warmup) if decay else None
        if ensemble is not None:
            check_can_draw(model, ensemble)
        self.ensemble = ensemble
        scorings = scorings_of(task, ensemble, added_metrics)
        metrics = {name: load_metric(how.metric, **how.options) for name, how in scorings.items()}
        self.scores = Scorer(scorings, metrics, task.cell_weights)
        self.degraded = Degraded()
        self.scored: Scored | None = None
        """The results of a test."""
        self.first: dict[str, Tensor] | None = None
        """The first sequence of a validation, for pictures `(1,T,H,W,C)`: `context`, normalised, and in physical units
        `target` and, of a model that is validated by its forecasts, `forecast`."""
        self.losses = Losses(task.name, type(model).__name__, train.divergence_factor if train else None)
        self.validation_mean = WeightedMean()
        self.other_numbers: str | None = None
        """Why a resumed training draws other random numbers than an uninterrupted one, if it does."""
        self._event_of_sequence: Tensor | None = None
        self._updates_seen = 0
        self._trained_before_s, self._started = 0.0, time.perf_counter()

    def configure_model(self) -> None:
        """Shards the model over the processes if the strategy does so; Lightning calls it once they are joined."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    @property
    def evaluated(self) -> nn.Module:
        """Returns the model that is validated and tested: the running average, if there is one."""
        return self.average.module if self.average is not None else self.model

    def forecast(self, context: Tensor) -> Tensor:
        """Returns the evaluated model's forecast after checking it against the contract.

        Raises:
            ContractError: wrong type, shape, dtype or device, or the model refuses.
            RunFailedError: the model reports that its numbers diverged.
        """
        name = type(self.model).__name__
        try:
            forecast = self._full_batches(self.evaluated, context)
        except ArithmeticError as error:
            raise RunFailedError(f"{name}: {error}") from error
        except ValueError as error:
            raise ContractError(f"{name} gives no forecast: {error}") from error
        check_forecast(forecast, context, self.task.target_shape, type(self.model).__name__)
        return forecast

    # Training

    def training_step(self, batch: Example, batch_index: int) -> Tensor:
        """Returns the loss of a batch: the model's own, else the mean squared error on the normalised scale."""
        context = self.task.to_context(batch.context)
        target = self.task.normalise(self.task.to_target(batch.target))
        if self.global_step == batch_index == 0:
            warn_of_values_out_of_reach(self.model, target)
        own = isinstance(self.model, TrainsWithOwnLoss)
        losses: Tensor | Mapping[str, Tensor]
        if isinstance(self.model, TrainsWithOwnLoss):
            options = loss_options(self.model, self.task, batch)
            losses = self.model.training_loss(
                context, target, step=self.global_step, total_steps=self.total_steps, **options
            )
        else:
            forecast = self._full_batches(self.model, context)
            check_forecast(forecast, context, self.task.target_shape, type(self.model).__name__)
            losses = masked_mse(forecast, target)
        parts = {} if isinstance(losses, Tensor) else losses
        loss = total_loss(losses).float()
        self.losses.add(
            loss,
            parts,
            step=self.global_step,
            epoch=self.current_epoch,
            batch=batch_index,
            missing=(torch.isnan(context).any(), torch.isnan(target).any() if own else None),
        )
        if self.accumulation is None or not self.accumulation.needed:
            return loss
        known = known_pixels(target, loss_options(self.model, self.task, batch))
        return self.accumulation.weighted(loss, batch_index, known, self._pixels)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scales the accumulated gradients to those of the whole batch, before they are clipped."""
        factor = self.accumulation.correction() if self.accumulation is not None else None
        if factor is not None:
            scale_gradients(optimizer, factor)

    @property
    def _pixels(self) -> int:
        """Returns the number of pixels of a sequence that a loss averages, missing ones included."""
        context = self.task.input_shape if model_traits(self.model).verifies_context else (0,)
        return math.prod(context) + math.prod(self.task.target_shape)

    def update_average(self) -> None:
        """Updates the running average of the weights, once per optimiser step."""
        if self.average is not None and self.global_step > self._updates_seen:
            self.average.update(self.model, step=self.global_step + self._average_lag)
        self._updates_seen = self.global_step

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the config's optimiser with its schedule per optimiser step.

        For a model with its own parameter groups, the schedule multiplies their learning rates and keeps their betas.
        """
        assert self.train_config is not None
        config = self.train_config
        parameters, lr = parameter_groups(self.model, config)
        optimizer = create_optimizer_v2(
            parameters,
            opt=config.optimizer,
            lr=lr,
            weight_decay=config.weight_decay,
            **({"betas": config.betas} if config.betas else {}),
            **({"fused": True} if can_fuse(self.model, config, sharded=self.device_mesh is not None) else {}),
        )  # timm exempts norms and biases from decay
        if config.schedule == "onecycle":
            rates = [lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
            one_cycle = OneCycleLR(
                optimizer, max_lr=rates, total_steps=self.total_steps, cycle_momentum=not has_own_optimizers(self.model)
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}
        if config.schedule == "plateau":
            scheduler = ReduceLROnPlateau(optimizer, patience=config.plateau_patience)
            # `Validations` steps it; with this frequency, Lightning never does.
            how: Any = {"interval": "epoch", "frequency": sys.maxsize, "monitor": "val/loss"}
            return {"optimizer": optimizer, "lr_scheduler": {**how, "scheduler": scheduler}}
        warmup = int(config.warmup_fraction * self.total_steps)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=max(1, self.total_steps - warmup),
            lr_min=lr * config.min_lr_ratio,
            warmup_t=warmup,
            warmup_lr_init=config.warmup_start_ratio * lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Sets the learning rate of the next optimiser step."""
        if isinstance(scheduler, OneCycleLR):
            scheduler.step()
        elif isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step_update(num_updates=self.global_step)

    # Validation and test

    def track_events(self, of_sequence: Sequence[int], count: int) -> None:
        """Keeps statistics per event in tests.

        Args:
            of_sequence: The number of each sequence's event.
            count: Number of events.
        """
        self._event_of_sequence = torch.as_tensor(of_sequence, dtype=torch.int64)
        self.scores.track_events(count)

    def _log_validation(self, loss: Tensor, known: Tensor) -> None:
        """Adds the loss of a batch to the split's mean, weighted by its number of known pixels `()`."""
        self.validation_mean.update(self.for_scores(loss), self.for_scores(known))
        self.log("val/loss", self.validation_mean, prog_bar=True, on_step=False, on_epoch=True, logger=False)

    def _score(self, batch: Example, *, test: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Adds a batch to the scores; returns forecast (an ensemble's mean), the same in physical units, and target.

        Args:
            batch: As stored.
            test: Draw the members of an ensemble; a validation uses the forecast of `forward`.
        """
        context = self.task.to_context(batch.context)
        target = self.task.to_target(batch.target)
        events = None if self._event_of_sequence is None else self._event_of_sequence[batch.index.cpu()]
        if not test or self.ensemble is None or not can_draw(self.evaluated):
            forecast = self.forecast(context)
            physical = self.task.denormalise(forecast)
            seen: dict[Sees, Iterable[Tensor]] = {"forecast": [physical], "ensemble": [physical[None]]}
        else:
            drawn = draw_members(self.evaluated, context, batch.index, self.ensemble, self.task.target_shape)
            members = torch.stack([self.task.denormalise(member) for member in drawn])
            forecast, physical = drawn.mean(0), members.mean(0)
            seen = {"forecast": [physical], "ensemble": [members], "each member": members}
            self.pictured.see_members(members)
        seen = {how: [*map(self.for_scores, values)] for how, values in seen.items()}
        self.scores.add(seen, self.for_scores(target), [*map(self.for_scores, batch.labels)], events)
        if not test:
            self._keep_first(context=context, target=target, forecast=physical)
        return forecast, physical, target

    def _keep_first(self, **parts: Tensor) -> None:
        if self.first is None and len(parts["target"]):
            self.first = {name: part[:1].detach().cpu().clone() for name, part in parts.items()}

    def on_validation_epoch_start(self) -> None:
        """Resets the scores."""
        self.scores.reset()
        self.first = None

    def validation_step(self, batch: Example, batch_index: int) -> None:
        """Adds a batch to the validation scores, in float32 whatever the precision of the training.

        Tests are in float32, and weights must be selected by the score that is reported: bfloat16 would round values
        of 128 to 256 to whole numbers.
        """
        with torch.autocast(self.device.type, enabled=False):
            self._validate(batch)

    def _validate(self, batch: Example) -> None:
        if isinstance(self.evaluated, ValidatesWithOwnLoss):
            context, physical = self.task.to_context(batch.context), self.task.to_target(batch.target)
            self._keep_first(context=context, target=physical)
            target, options = self.task.normalise(physical), loss_options(self.evaluated, self.task, batch)
            loss = self.evaluated.validation_loss(context, target, **options)
            self._log_validation(loss, known_pixels(target, options))
            return
        forecast, _, target = self._score(batch)
        target = self.task.normalise(target)
        self._log_validation(masked_mse(forecast, target), (~torch.isnan(target)).sum())

    def on_validation_epoch_end(self) -> None:
        """Gives `TrainingLog` the overall validation scores; a model with its own validation loss has none."""
        if isinstance(self.evaluated, ValidatesWithOwnLoss):
            return
        overall = {name: value for name, value in self.computed().items() if "_lead" not in name}
        self.log_dict({f"val/{name}": value for name, value in overall.items()}, logger=False)

    def on_test_epoch_start(self) -> None:
        """Resets the scores."""
        self.scores.reset()
        events = self._event_of_sequence if self.trainer.world_size == 1 else None
        self.pictured = Pictured(self.task, None if events is None else len(events))

    def test_step(self, batch: Example, batch_index: int) -> None:
        """Adds a batch to the scores, and keeps the sequences that are drawn."""
        with self.degraded.counted(self.evaluated):
            forecast, physical, target = self._score(batch, test=True)
        if not bool(torch.isfinite(forecast).all()):
            raise RunFailedError(
                f"the forecast of {type(self.model).__name__} has NaN or infinite values in test batch {batch_index}"
            )
        if batch_index == 0 and len(target):
            self._check_independence(self.task.to_context(batch.context), forecast, batch.index)
        self.pictured.add(batch, target, physical)

    def on_test_epoch_end(self) -> None:
        """Computes the results now, because Lightning then moves the metrics to the CPU, where NCCL cannot gather."""
        self.scored = self.scores.scored()

    def _check_independence(self, context: Tensor, forecast: Tensor, indices: Tensor) -> None:
        """Refuses a model whose scores would change with the batch size or the order of the data."""
        ensemble = self.ensemble
        if ensemble is not None and can_draw(self.evaluated):

            def drawn(one: Tensor) -> Tensor:  # one sequence suffices, because each is drawn by itself
                return draw_members(self.evaluated, one, indices[-1:], ensemble, self.task.target_shape).mean(0)

            found = dependence(drawn, context[-1:], forecast[-1:])
        else:
            found = dependence(self.forecast, context, forecast)
        if found:
            name = type(self.model).__name__
            raise ContractError(
                f"the forecast of {name} depends {found}. Expected: on its own context alone, else scores change with "
                "data.batch_size. In evaluation mode, batch norm uses its running statistics, forward() keeps no "
                "state, and sample() draws from its generator alone; `earthbench check NAME` looks at more"
            )

    def computed(self) -> dict[str, float]:
        """Returns all scores since the last reset, by name."""
        return self.scores.computed()

    def directions(self) -> dict[str, Better | None]:
        """Returns the direction of each score, see `Scorer.directions`."""
        return self.scores.directions()

    # Resume

    @property
    def trained_s(self) -> float:
        """Returns the wall time of this training in seconds, including its parts before each resume."""
        return self._trained_before_s + time.perf_counter() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds random states and counters, so that a resumed run is bit-identical to an uninterrupted one."""
        if self.device_mesh is None:
            number_as_in_module(checkpoint["optimizer_states"], self.trainer.optimizers, self)
        checkpoint["earthbench"] = {
            "random_states": random_states(self.trainer.strategy.root_device),
            "updates_seen": self._updates_seen,
            "trained_s": self.trained_s,
            "last_finite_loss": self.losses.last,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores random states and counters from a checkpoint."""
        state = checkpoint["earthbench"]
        self._updates_seen = state["updates_seen"]
        self._trained_before_s = state["trained_s"]
        self.losses.last = state.get("last_finite_loss")  # older code did not write it
        if "random_states" in state:  # older code did not write them; train.resume=anyway allows that
            self.other_numbers = restore_random_states(state["random_states"], self.trainer.strategy.root_device)


def check_forecast(forecast: Any, context: Tensor, target_shape: Shape, model: str) -> None:
    """Refuses a result that is not a forecast for a context.

    Args:
        forecast: Result of the model.
        context: `(B,T_in,H,W,C)`.
        target_shape: `(T_out,H,W,C)`.
        model: Its name, for messages.

    Raises:
        ContractError: the type, shape, dtype or device is wrong.
    """
    expected = (len(context), *target_shape)
    if not isinstance(forecast, Tensor):
        raise ContractError(f"{model} returned {type(forecast).__name__}; expected a tensor of shape {expected}")
    if tuple(forecast.shape) != expected:
        raise ContractError(f"{model} returned shape {tuple(forecast.shape)}; expected (B, T, H, W, C) = {expected}")
    if not forecast.is_floating_point() or forecast.device != context.device:
        raise ContractError(
            f"{model} returned {forecast.dtype} on {forecast.device}; expected floats on {context.device}"
        )

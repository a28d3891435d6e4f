"""Monitoring of a training's losses and gradients, which are logged; a training that diverges is ended."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.engine.forecaster import Forecaster
from bench.errors import RunFailedError


class DivergenceMonitor(Callback):
    """Ends a run whose loss, gradients or validation loss are not finite, or whose loss diverges.

    `Losses.checked_steps` checks losses and gradients, some steps late on a GPU, but before anything is saved or
    validated: no checkpoint has the weights after a bad step.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._training: tuple[lightning.Trainer, Forecaster] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the first loss, after checking all steps that the checkpoint would contain.

        Raises:
            RunFailedError: a number is not finite, or the loss diverged; no checkpoint is written.
        """
        if self._training is None:
            return {"first": self._before}
        self._check_losses()
        return {"first": self._training[1].losses.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the first loss from a checkpoint."""
        self._before = state_dict["first"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Passes the restored first loss on; a checkpoint is loaded by now."""
        assert isinstance(pl_module, Forecaster)
        pl_module.losses.first = self._before
        self._training = trainer, pl_module

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keeps the norm of the gradients; not with a gradient scaler, which skips bad steps and lowers its scale.

        If gradients are clipped, the norm is computed twice, because Lightning does not expose its own.
        """
        assert isinstance(pl_module, Forecaster)
        norm = None if trainer.precision == "16-mixed" else _norm(optimizer)
        groups = optimizer.param_groups
        stepped = (group for group in groups if any(one.grad is not None for one in group["params"]))
        rate = float(next(stepped, groups[0])["lr"])
        pl_module.losses.add_step(norm, step=trainer.global_step, epoch=trainer.current_epoch, lr=rate)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks the steps so far if that is due.

        Raises:
            RunFailedError: a number is not finite, or the loss diverged.
        """
        assert isinstance(pl_module, Forecaster)
        if pl_module.losses.is_due():
            self._check_losses()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the remaining steps of the epoch."""
        self._check_losses()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the steps before anything is scored."""
        self._check_losses()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the remaining steps."""
        self._check_losses()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the validation loss.

        Raises:
            RunFailedError: it is not finite.
        """
        assert isinstance(pl_module, Forecaster)
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not bool(torch.isfinite(loss)):
            raise RunFailedError(
                f"the validation loss is {float(loss)} after step {trainer.global_step} (epoch {trainer.current_epoch})"
                f"{'' if pl_module.validation_mean.count else ': no pixel of the validation split is known'}"
            )

    def _check_losses(self) -> None:
        if self._training is None:
            return
        trainer, module = self._training
        for step in module.losses.checked_steps():
            how = {"train/lr": step.lr, "train/epoch": float(step.epoch)}
            for logger in trainer.loggers:
                logger.log_metrics({**step.losses, **how}, step.step)


def _norm(optimizer: torch.optim.Optimizer) -> Tensor | None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return None
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # a DTensor if the model is sharded

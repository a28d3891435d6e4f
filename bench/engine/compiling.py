"""Compiled models: the same module with the same weights, whose forward pass `torch.compile` has rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.accumulation import uses_batch_statistics

BACKEND = "inductor"


@contextmanager
def compiled(*models: nn.Module) -> Iterator[None]:
    """Compiles models in place within a block: weights keep their names, and the models' own losses are compiled, too.

    Shapes are static, for the fastest kernels; `FullBatches` handles the last batch.
    """
    for model in models:
        model.compile(backend=BACKEND, dynamic=False)
    try:
        yield
    finally:
        for model in models:
            for part in model.modules():  # a model may compile its parts instead
                part._compiled_call_impl = None


def is_compiled(model: nn.Module) -> bool:
    """Returns whether a model is compiled now."""
    return getattr(model, "_compiled_call_impl", None) is not None


class FullBatches:
    """Calls a compiled model with batches of one size, so that a smaller last batch causes no new compilation."""

    def __init__(self) -> None:
        self._size = 0

    def __call__(self, model: nn.Module, context: Tensor) -> Any:
        """Returns the forecast of a context `(B,T,H,W,C)`; a smaller batch is filled up with its last sequence.

        A training with batch statistics is not filled up: the smaller batch is compiled once.
        """
        count = len(context)
        self._size = max(self._size, count)
        if not is_compiled(model) or count == self._size or (model.training and uses_batch_statistics(model)):
            return model(context)
        filled = torch.cat((context, context[-1:].expand(self._size - count, *context.shape[1:])))
        forecast = model(filled)
        return forecast[:count] if isinstance(forecast, Tensor) else forecast

"""Devices that have no float64, which scores are summed in: there they are summed on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
_STAY = ("scores", "validation_mean")


class ScoresWithFloat64(lightning.LightningModule):
    """A module whose metrics stay on the CPU when it moves to a device without float64, such as Apple's `mps`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        stay = {}
        if fn(torch.empty(0)).device.type in WITHOUT_FLOAT64:
            stay = {name: self._modules.pop(name) for name in _STAY if name in self._modules}
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules.update(stay)

    def for_scores(self, tensor: Tensor) -> Tensor:
        """Returns a tensor where the metrics are."""
        return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor

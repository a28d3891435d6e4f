"""Full-size models that have shapes but no values: made in a fraction of the time, for counts and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn


@contextmanager
def on_meta() -> Iterator[None]:
    """Makes modules on the meta device; spectral norms leave out their first iterations, which find nothing there."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr("baselines.dgmr.blocks._ITERATIONS_AT_START", 0)
        yield


def uninitialised(cls: type[nn.Module], *shapes: Any, **options: Any) -> nn.Module:
    """Returns a model on the CPU whose weights hold whatever the memory held."""
    with on_meta():
        model = cls(*shapes, **options)
    return model.to_empty(device="cpu")

"""Checks of what metrics are given, a batch as pairs of flat rows (a frame of a sequence each), and shared work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import ContractError


def check_convention(convention: str) -> None:
    """Refuses an unknown convention.

    Raises:
        ValueError: names the expected values.
    """
    if convention not in ("upstream", "correct"):
        raise ValueError(f"convention {convention!r}; expected 'upstream' or 'correct'")


def check_pair(forecast: Tensor, target: Tensor) -> None:
    """Refuses a pair that is not two tensors `(B,T,H,W,C)` of one shape.

    Raises:
        ContractError: names both shapes.
    """
    if forecast.shape != target.shape or forecast.dim() != 5:
        raise ContractError(
            f"forecast has shape {tuple(forecast.shape)} and target {tuple(target.shape)}; "
            "expected the same (B, T, H, W, C)"
        )


def check_members(members: Tensor, target: Tensor) -> None:
    """Refuses an ensemble that is not a tensor `(M,B,T,H,W,C)` for a target `(B,T,H,W,C)`.

    Raises:
        ContractError: names both shapes.
    """
    if members.dim() != 6 or target.dim() != 5 or members.shape[1:] != target.shape or not len(members):
        raise ContractError(
            f"forecast has shape {tuple(members.shape)} and target {tuple(target.shape)}; "
            "expected (M, B, T, H, W, C) with one member or more, and (B, T, H, W, C)"
        )


def rows_of(forecast: Tensor, target: Tensor) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Yields `((sequence, lead), forecast pixels, target pixels)` of a batch on the CPU, flat, of the dtypes given.

    Half precision is widened to float32, which is exact.
    """
    batch, leads = forecast.shape[:2]
    if not forecast.numel():
        return
    flat = [widen(tensor.detach()).reshape(batch, leads, -1).numpy() for tensor in (forecast, target)]
    for at in np.ndindex(batch, leads):
        yield at, flat[0][at], flat[1][at]


def widen(tensor: Tensor) -> Tensor:
    """Returns half precision as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


Result = TypeVar("Result")
_known: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("_known", default=None)


@contextmanager
def shared_work() -> Iterator[None]:
    """Caches results of `@shared` functions for the same tensors within a block.

    The caller must not change the tensors in the block; they are kept until it ends.
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def shared(function: Callable[..., Result]) -> Callable[..., Result]:
    """Returns a function of tensors and hashable values that caches its results within `shared_work()`."""

    @functools.wraps(function)
    def remembered(*arguments: Any) -> Result:
        known = _known.get()
        if known is None:
            return function(*arguments)
        key = (function, *((Tensor, id(a)) if isinstance(a, Tensor) else a for a in arguments))
        if key not in known:
            # the arguments are kept with the result, because the id of a deleted tensor may be reused
            known[key] = arguments, function(*arguments)
        found: Result = known[key][1]
        return found

    return remembered

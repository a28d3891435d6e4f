"""Runs a model on shapes alone, so that it can be traced and counted quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

_CONVOLUTIONS = {getattr(torch, f"conv{n}d"): n for n in (1, 2, 3)}
_TRANSPOSED = {getattr(torch, f"conv_transpose{n}d"): n for n in (1, 2, 3)}


class ValuesNeededError(Exception):
    """A model does something that depends on values, or that a trace would not show."""


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Returns a context in which floating-point operations return tensors of the right shape without values.

    Memory is reserved but never written; `tolist()` and `numpy()` are not intercepted and return whatever it holds. A
    `torch.jit` trace made inside has the same operations as one made outside.

    Raises:
        ValuesNeededError: (in the context) an operation would be missing in a trace.
        NotImplementedError: (in the context) the model reads a value, or a shape depends on one.
    """
    with _RecordedConvolutions(), _NoArithmetic():
        yield


class _NoArithmetic(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        unknown = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor) and _is_unknown(value)]
        if not unknown:
            return func(*args, **kwargs)  # arithmetic on indices and traced sizes
        if func.is_view:
            return tree_map_only(Tensor, _marked, func(*args, **kwargs))
        if func._schema.is_mutable:
            return args[0]
        if torch._C._get_tracing_state() is not None:
            # The tracer is off while it runs an operation that it knows. It does not know this one, and would have
            # recorded its parts in a plain run.
            raise ValuesNeededError(f"{func} would not be in the trace")
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        on_meta = tree_map_only(Tensor, lambda tensor: _without_values(tensor, torch.device("meta")), (args, kwargs))
        made = func(*on_meta[0], **on_meta[1])
        return tree_map_only(Tensor, lambda tensor: _marked(_without_values(tensor, unknown[0].device)), made)


def _is_unknown(tensor: Tensor) -> bool:
    """Returns whether the values of a tensor are floating-point numbers, or derived from such."""
    return tensor.is_floating_point() or tensor.is_complex() or hasattr(tensor, "depends_on_unknown")


def _marked(tensor: Tensor) -> Tensor:
    tensor.depends_on_unknown = True  # type: ignore[attr-defined]
    return tensor


def _without_values(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


class _RecordedConvolutions(TorchFunctionMode):
    """Calls the operation that a trace shows for a convolution, which a dispatch mode would otherwise hide."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(_CONVOLUTIONS[func], *args, **kwargs)
        if func in _TRANSPOSED:
            return _transposed_convolution(_TRANSPOSED[func], *args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Tensor:
    if isinstance(padding, str) or input.dim() != axes + 2:
        raise ValuesNeededError("a convolution without batch axis, or whose padding is a string")
    sizes = (stride, padding, dilation, output_padding)
    stride, padding, dilation, output_padding = (
        [size] * axes if isinstance(size, int) else list(size) * (axes // len(size)) for size in sizes
    )
    rest = (transposed, output_padding, groups, False, False, True, True)  # the last four choose a kernel
    return torch._convolution(input, weight, bias, stride, padding, dilation, *rest)


def _transposed_convolution(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return _convolution(
        axes, input, weight, bias, stride, padding, dilation, groups, transposed=True, output_padding=output_padding
    )

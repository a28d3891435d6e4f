"""Operations and memory of a training step, from a trace without values on torch's meta device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.api import Shape, samples_with

Loss = Callable[[Tensor, Tensor], Tensor]
"""From context and target, `(B,T,H,W,C)`, to the loss `()`."""

_MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
"""Tensors of a parameter's size that an optimiser keeps per trained parameter."""


@dataclass(frozen=True)
class StepTrace:
    """One training step."""

    forward_flops: int
    """Floating-point operations of matrix products and convolutions (a multiply-add is two) up to the loss."""
    step_flops: int
    """The same with the backward pass."""
    saved_bytes: int
    """Bytes that autograd keeps between forward and backward pass: each storage once, no parameters and buffers."""
    reached: frozenset[int]
    """`id` of each parameter that the step gives a gradient."""


def traced_step(
    module: nn.Module, loss: Loss, context_shape: Shape, target_shape: Shape, batch_size: int, *, device: str = "meta"
) -> StepTrace:
    """Returns the operations and the saved memory of a training step on random sequences.

    Attention by torch's `scaled_dot_product_attention` keeps as much as a fused kernel does; models that write it out
    on devices other than GPUs keep more, and are counted as written.

    Args:
        module: On `device` already; its gradients are discarded.
        loss: Runs the module.
        context_shape: `(T, H, W, C)`.
        target_shape: `(T, H, W, C)`.
        batch_size: Sequences of the step.
        device: `meta`, or a real one to compare with.
    """
    own = {_storage_id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no later storage gets the same id

    def keep(tensor: Tensor) -> Tensor:
        if tensor.device.type == device and (number := _storage_id(tensor)) not in own:
            kept[number] = tensor.untyped_storage()
        return tensor

    context, target = (torch.rand((batch_size, *shape), device=device) for shape in (context_shape, target_shape))
    was_training = module.training
    module.train()
    try:
        with _Counting() as counter, _Fused(counter):
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                value = loss(context, target)
            forward_flops = counter.flops
            value.backward()
        reached = frozenset(id(parameter) for parameter in module.parameters() if parameter.grad is not None)
    finally:
        module.train(was_training)
        module.zero_grad(set_to_none=True)
    saved = sum(storage.nbytes() for storage in kept.values())
    return StepTrace(forward_flops, counter.flops, saved, reached)


def traced_forecast(model: nn.Module, context_shape: Shape) -> int | None:
    """Returns the floating-point operations of one forecast; None if it depends on more than shapes.

    Args:
        model: On the meta device.
        context_shape: `(T, H, W, C)`.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _Counting() as counter, _Fused(counter):
            model(torch.rand((1, *context_shape), device="meta"))
    except Exception:  # any error of the model, e.g. numpy reading values
        return None
    finally:
        model.train(was_training)
    return counter.flops


def traced_sampling(model: nn.Module, context_shape: Shape) -> int | None:
    """Returns the floating-point operations of one member that a model draws step by step; None for other models.

    The model's `sample` must take `advance`. Two steps are traced, because all steps after the first are alike.

    Args:
        model: On the meta device.
        context_shape: `(T, H, W, C)`.
    """
    if not samples_by_steps(model):
        return None
    totals: list[int] = []

    def note(_done: int) -> bool:
        totals.append(counter.flops)
        return len(totals) < 2

    context = torch.rand((1, *context_shape), device="meta")
    with torch.no_grad(), _Counting() as counter, _Fused(counter):
        steps = first_steps(model, context, note)
    return totals[0] + (steps - 1) * (totals[1] - totals[0]) if len(totals) == 2 else counter.flops


def samples_by_steps(model: nn.Module) -> bool:
    """Returns whether a model draws members step by step and reports each step."""
    return samples_with(model, "advance")


def first_steps(model: nn.Module, context: Tensor, note: Callable[[int], bool], *, members: int = 1) -> int:
    """Draws members until `note` returns False, and returns the number of steps that all of them would take.

    Args:
        model: A model for which `samples_by_steps` is true.
        context: `(B,T,H,W,C)`.
        note: Called after each step with the number of steps done; returns whether to continue.
        members: How many.
    """
    steps = 0

    def advance(done: int, total: int) -> None:
        nonlocal steps
        steps = total
        if not note(done):
            raise _StopForwardError

    with contextlib.suppress(_StopForwardError):
        model.sample(context, members=members, advance=advance)  # type: ignore[operator]
    return steps


def state_bytes(module: nn.Module, optimizer: str, *, averaged: bool) -> int:
    """Returns the bytes of parameters, buffers, gradients, the optimiser's state and a running average of the weights.

    Args:
        module: The module that is trained.
        optimizer: adamw, adam or sgd (with momentum).
        averaged: Whether a running average is kept.
    """
    parameters = {id(p): p for p in module.parameters()}.values()
    buffers = {id(b): b for b in module.buffers()}.values()
    weights = sum(t.numel() * t.element_size() for t in [*parameters, *buffers])
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return weights * (2 if averaged else 1) + trained * (1 + _MOMENTS[optimizer])


class _StopForwardError(Exception):
    """Ends a trace that has seen enough."""


class _Counting(TorchDispatchMode):
    """Adds up floating-point operations by torch's own formulas.

    Reading a value of the meta device gives zero, e.g. for an index into a table or a test for missing values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            device = torch.device(kwargs.get("device") or "meta")
            if device.type != "meta":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=device)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out


class _Fused(TorchFunctionMode):
    """Counts attention on the meta device as one fused kernel, which it is on GPUs and mostly on CPUs."""

    def __init__(self, counter: _Counting) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            return _FusedAttention.apply(*args[:3], mask, self.counter)
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values, mask, the output and a 32-bit number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counter: _Counting) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device="meta")
        ctx.counter, ctx.masked = counter, mask is not None
        ctx.save_for_backward(query, key, value, out, sums, *([mask] if mask is not None else []))
        counter.flops += int(sdpa_flop_count(*map(_by_heads, (query, key, value))))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors
        ctx.counter.flops += int(sdpa_backward_flop_count(*map(_by_heads, (gradients[0], query, key, value))))
        of_mask = torch.empty_like(rest[2]) if ctx.masked and ctx.needs_input_grad[3] else None
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_mask, None


def _by_heads(x: Tensor) -> tuple[int, int, int, int]:
    """Returns the shape of attention's input (..., L, D) with one batch axis and one head axis."""
    return math.prod(x.shape[:-2]), 1, x.shape[-2], x.shape[-1]


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

"""A simulated GPU: tensors that report cuda:0 but are computed on the CPU, with counts of waits and kernels.

Code takes the branches it would take on a GPU. Counted are waits for the device (values that reach Python, results
whose size depends on values, blocking copies to it) and calls (kernels). Mixing devices and `.numpy()` raise as they
would. Time, memory and rounding are not simulated: it is not a substitute for a GPU.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

CUDA = torch.device("cuda", 0)
_TOP = f"{Path(__file__).parents[1]}/"
_OURS = tuple(f"{_TOP}{name}/" for name in ("bench", "baselines", "earthformer"))
# Nothing runs on the device for these.
_VIEWS = {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze"}
_VIEWS |= {"squeeze", "split", "unbind", "as_strided", "alias", "detach", "unfold", "chunk", "split_with_sizes"}
_VIEWS |= {"lift_fresh", "_reshape_alias", "diagonal"}
# The number of results depends on the values: PyTorch waits for it.
_SIZED_BY_VALUES = frozenset(("nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount"))
_INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
_WHOLE = ("tolist", "equal")


class Log:
    """Counts since the start."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """By where in our code."""
        self.kernels = 0

    def wait(self, what: str) -> None:
        """Counts one wait."""
        ours = [f for f in traceback.extract_stack() if f.filename.startswith(_OURS)]
        where = f"{ours[-1].filename.removeprefix(_TOP)}:{ours[-1].lineno}" if ours else "elsewhere"
        self.waits[f"{what} at {where}"] += 1


class OnGPU(Tensor):
    """A tensor that reports to be on a GPU."""

    log = Log()
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        options = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.size(), device="cpu", requires_grad=False, **options)
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


def _there(value: Any) -> Any:
    return OnGPU(value) if isinstance(value, Tensor) and not isinstance(value, OnGPU) else value


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGPU(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _held(gradient)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        return x.held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return OnGPU(gradient)


def to_gpu(value: Any) -> Any:
    """Returns a tensor on the simulated GPU."""
    return value if isinstance(value, OnGPU) else _Up.apply(value)


def to_cpu(value: Any) -> Any:
    """Returns a tensor on the CPU, which waits for it."""
    if not isinstance(value, OnGPU):
        return value
    OnGPU.log.wait("copy to the CPU")
    return _Down.apply(value)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, log = func._schema.name.split("::")[1], OnGPU.log
    flat = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
    if name == "_local_scalar_dense":
        log.wait("a value")
        return func(args[0].held)
    if name == "copy_":
        if isinstance(args[1], OnGPU) and not isinstance(args[0], OnGPU):
            log.wait("copy to the CPU")
        func(_held(args[0]), _held(args[1]), *args[2:])
        log.kernels += 1
        return args[0]
    masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in _INDEXED else []
    if name in _SIZED_BY_VALUES or masks:
        log.wait(name)
    # an index on the CPU is copied there; the engine makes its zeros where C++ believes the tensors to be
    strangers = [t for t in flat if not isinstance(t, OnGPU) and t.dim()] if name not in _INDEXED else []
    if strangers and torch._C._current_autograd_node() is None:
        shapes = [("cuda" if isinstance(t, OnGPU) else "cpu", tuple(t.shape)) for t in flat]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    log.kernels += name not in _VIEWS
    if func._schema.is_mutable:
        known = {id(_held(t)): t for t in flat}
        return tree_map(lambda t: known.get(id(t), _there(t)) if isinstance(t, Tensor) else t, found)
    return tree_map(_there, found)


class _Mode(TorchFunctionMode):
    """Moves tensors, and makes new tensors on the GPU if requested."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if func in (Tensor.device.__get__, Tensor.is_cuda.__get__) and isinstance(first, OnGPU):
            return CUDA if func is Tensor.device.__get__ else True
        if name in ("numpy", "__array__") and isinstance(first, OnGPU):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name in _WHOLE and isinstance(first, OnGPU):
            OnGPU.log.wait(name)
            return getattr(first.held, name)(*map(_held, args[1:]))
        if name == "cpu" and isinstance(first, OnGPU):
            return to_cpu(first)
        if func is Tensor.to:
            return _moved(first, list(args[1:]), kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("is_causal"):
            # its formulation for CPUs makes the mask where C++ believes the tensors to be
            mask = torch.ones(first.shape[-2], args[1].shape[-2], dtype=torch.bool).tril()
            kwargs |= {"is_causal": False, "attn_mask": OnGPU(mask)}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            made = func(*tree_map(_held, args), **{**kwargs, "device": "cpu"})
            OnGPU.log.kernels += 1
            if func is torch.tensor:
                OnGPU.log.wait("copy to the GPU")
            return tree_map(_there, made)
        return func(*args, **kwargs)


def _moved(tensor: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    device = kwargs.pop("device", None)
    blocks = not kwargs.pop("non_blocking", False)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
        device, kwargs["dtype"] = other.device, other.dtype
    elif rest and isinstance(rest[0], str | torch.device):
        device = rest.pop(0)
    elif rest and rest[0] is None:
        rest.pop(0)
    rest = [value for value in rest if not isinstance(value, bool)]
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if device is not None:
        if torch.device(device).type == "cuda":
            if blocks and not isinstance(tensor, OnGPU):
                OnGPU.log.wait("copy to the GPU")
            tensor = to_gpu(tensor)
        else:
            tensor = to_cpu(tensor)
    return Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor


def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Moves a module like `nn.Module._apply`, which would swap the contents of tensor subclasses."""
    for child in self.children():
        child._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is not parameter:
                self._parameters[key] = nn.Parameter(moved.detach(), parameter.requires_grad)
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


@contextmanager
def simulated_gpu() -> Iterator[Log]:
    """A context in which `.to("cuda")` works, and waits and kernels of a GPU are counted."""
    before, initialise = nn.Module._apply, torch.cuda._lazy_init
    OnGPU.log = log = Log()
    nn.Module._apply, torch.cuda._lazy_init = _apply, lambda: None  # type: ignore[method-assign, assignment]
    try:
        with _Mode():
            yield log
    finally:
        nn.Module._apply, torch.cuda._lazy_init = before, initialise  # type: ignore[method-assign]

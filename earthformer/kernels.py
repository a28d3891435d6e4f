"""Exact, faster formulations of the operations that dominate Earthformer's time.

Each function returns what the plain operations return, to round-off. The choices between formulations are fixed by
device, type, shape and whether gradients are taken, never by a timing: a run that is repeated gives the same bits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Finite, so that a row in which everything is masked gives numbers (they are multiplied by 0) and no NaN.
MASKED_SCORE = -1e18
MASKED_SCORE_FLOAT16 = -1e4

# Rows of torch's CPU softmax that are no multiple of a 512-bit register of float32 end in a slow loop, and shorter
# ones consist of it. In rows of several registers it matters little.
_REGISTER = 16
_LONGEST_LENGTHENED_ROW = 4 * _REGISTER

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# Fewer products alone do not make up for the less regular loops of a transposed convolution.
_COMPOSITION_GAIN = 1.4

# Steps of 1/65536 are what a 16-bit draw resolves: a dropout probability of 0.1 becomes 0.100006.
_DROPOUT_STEPS = 1 << 16
_DRAWS_PER_INT64 = 4


def masked_score(dtype: torch.dtype) -> float:
    """Return the score that stands for "not allowed" in tensors of `dtype`."""
    return MASKED_SCORE_FLOAT16 if dtype == torch.float16 else MASKED_SCORE


def _linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return out


@torch.library.custom_op("earthformer::linear_by_onednn", mutates_args=())
def _compiled_linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Return the same for the compiler, which would replace oneDNN's own operator unless weights are constants."""
    return _linear_by_onednn(x, weight, bias, activation)


@_compiled_linear_by_onednn.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _is_plain_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: nn.Module | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for `x` (..., C_in), behind `activation` if given.

    Without gradients, on a CPU and in float32, oneDNN's product is taken, which takes an exact GELU along: on the
    processors it was tried on it is as fast as torch's own (MKL) or up to twice as fast. With gradients torch's own is.
    """
    # Tracing, to count operations or to export, knows the operators of the plain product only.
    if _HAS_ONEDNN and _is_plain_cpu(x) and not torch.is_grad_enabled() and not torch.jit.is_tracing():
        exact_gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
        product = _compiled_linear_by_onednn if torch.compiler.is_compiling() else _linear_by_onednn
        out = product(x, weight, bias, "gelu" if exact_gelu else "none")
        return out if activation is None or exact_gelu else activate_(out, activation)
    out = F.linear(x, weight, bias)
    return out if activation is None else activate_(out, activation)


def add_residual(x: Tensor, change: Tensor) -> Tensor:
    """Return ``x + change``, written over `change`, which must be a fresh tensor that backward does not need."""
    if change.dtype != x.dtype or torch.compiler.is_compiling():
        return x + change
    return change.add_(x)


class _KeepMask(torch.autograd.Function):
    """Multiply by a 0/1 mask and a scale, remembering only the mask as booleans."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        """Return ``x * keep * scale``."""
        ctx.save_for_backward(keep)
        ctx.scale = scale  # type: ignore[attr-defined]
        return torch.mul(x, keep).mul_(scale)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient with respect to `x`; the mask and the scale have none."""
        (keep,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.mul(grads[0], keep).mul_(ctx.scale), None, None  # type: ignore[attr-defined]


def has_fused_attention(device: torch.device) -> bool:
    """Return whether attention runs as one fused kernel on `device`: on GPUs; on CPUs it was measured to lose."""
    return device.type == "cuda"


def padded_row(length: int, device: torch.device) -> int:
    """Return the length at which softmax of rows of `length` is fast: on the CPU a multiple of 16 for short ones."""
    if device.type != "cpu" or torch.compiler.is_compiling() or length > _LONGEST_LENGTHENED_ROW:
        return length
    return -(-length // _REGISTER) * _REGISTER


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax of `scores` over the last axis; short rows are lengthened with minus infinity meanwhile."""
    length = scores.shape[-1]
    missing = padded_row(length, scores.device) - length
    if not missing:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(F.pad(scores, (0, missing), value=-math.inf), dim=-1)[..., :length]


def dropout(x: Tensor, p: float) -> Tensor:
    """Return `x` with each element zeroed with probability `p` (rounded to 1/65536) and the rest scaled by 1/(1-p).

    On the CPU four draws are cut from every 64 random bits, which is several times cheaper than one Bernoulli
    draw per element; the random stream therefore differs from ``torch.nn.Dropout``'s.
    """
    if p == 0.0:
        return x
    dropped = round(p * _DROPOUT_STEPS)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < _DROPOUT_STEPS:
        return F.dropout(x, p)
    words = -(-x.numel() // _DRAWS_PER_INT64)
    bits = torch.empty(words, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = (bits[: x.numel()] >= dropped - _DROPOUT_STEPS // 2).view(x.shape)
    kept: Tensor = _KeepMask.apply(x, keep, _DROPOUT_STEPS / (_DROPOUT_STEPS - dropped))
    return kept


def activate_(x: Tensor, activation: nn.Module) -> Tensor:
    """Return ``activation(x)``, written over `x` where that is possible and backward does not need `x`."""
    if isinstance(activation, nn.LeakyReLU):
        return F.leaky_relu_(x, activation.negative_slope)
    if isinstance(activation, nn.ReLU):
        return F.relu_(x)
    if isinstance(activation, nn.GELU) and activation.approximate == "none" and not torch.is_grad_enabled():
        written: Tensor = torch.ops.aten.gelu_(x)
        return written
    result: Tensor = activation(x)
    return result


def prefers_transposed_convolution(device: torch.device) -> bool:
    """Return whether up-sampling and the convolutions behind it run as one transposed convolution on `device`."""
    return device.type == "cpu"


def composition_pays(scale: tuple[int, int], c_in: int, c_middle: int, c_out: int) -> bool:
    """Return whether two convolutions 3x3 behind up-sampling by `scale` are worth running as one of 5x5.

    Compares multiply-adds per pixel of the two forms, both with the up-sampling folded in.
    """
    one, two = ((k + scale[0] - 1) * (k + scale[1] - 1) / (scale[0] * scale[1]) for k in (3, 5))
    separate = one * c_in * c_middle + 9 * c_middle * c_out
    return separate > _COMPOSITION_GAIN * two * c_in * c_out


def compose_convolutions(first: Tensor, second: Tensor) -> Tensor:
    """Return the weight (C_out, C_in, K, K) of the convolution `first` followed by `second`, borders aside.

    Weights are (C_middle, C_in, K_1, K_1) and (C_out, C_middle, K_2, K_2); K = K_1 + K_2 - 1.
    """
    return F.conv2d(first.transpose(0, 1), second.flip(-2, -1), padding=second.shape[-1] - 1).transpose(0, 1)


def upsample_weight(weight: Tensor, scale: tuple[int, int]) -> Tensor:
    """Return the transposed-convolution weight of "nearest up-sampling by `scale`, then convolution with `weight`".

    `weight` is (C_out, C_in, K, K) with K odd; the result (C_in, C_out, K + s_h - 1, K + s_w - 1) is used
    with stride `scale` and padding K // 2. Each of its taps is the sum of the taps of `weight` that read the
    same source pixel.
    """
    kernel = weight.shape[-1]
    rows, columns = (_tap_sums(kernel, step, weight) for step in scale)
    return torch.einsum("mk,nl,oikl->iomn", rows, columns, weight)


def _tap_sums(kernel: int, step: int, like: Tensor) -> Tensor:
    place = torch.arange(kernel + step - 1, device=like.device)[:, None]
    first = kernel - 1 - place
    tap = torch.arange(kernel, device=like.device)
    return ((tap >= first) & (tap < first + step)).to(like.dtype)

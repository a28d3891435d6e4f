"""The norms and activations that configs name.

Source: the authors' released code (LeakyReLU slope 0.1, exact GELU, RMSNorm with its epsilon outside the
    root).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from earthformer.initialization import LEAKY_SLOPE, ONLY_MODE, check_mode

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Divide by the root mean square over the channels and scale.

    The epsilon is added to the root, not under it as in ``torch.nn.RMSNorm``: checkpoints depend on that.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        """Start with scale 1 for each of `channels`."""
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` (..., C)."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return self.scale * (x / (root + self.eps))


def make_norm(name: str, channels: int, *, eps: float = NORM_EPS, mode: str = "0") -> nn.Module:
    """Return a norm over `channels`: ``layer_norm`` or ``rms_norm``.

    Raises:
        ValueError: unknown name or initialisation mode.
    """
    check_mode(mode, ONLY_MODE, "norm_init_mode")
    if name == "layer_norm":
        return nn.LayerNorm(channels, eps=eps)
    if name == "rms_norm":
        return RMSNorm(channels, eps=eps)
    raise ValueError(f"norm_layer: expected layer_norm or rms_norm, found {name!r}")


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softrelu": nn.Softplus,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """Return the activation that configs call `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, found {name!r}")
    return _ACTIVATIONS[name]()

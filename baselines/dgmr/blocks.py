"""The building blocks of DGMR's networks: spectral norm, residual blocks, recurrent cell and attention.

Adapted from DeepMind's pseudocode of DGMR, copyright 2021 DeepMind Technologies Limited, licensed under CC BY 4.0
(creativecommons.org/licenses/by/4.0): `pseudocode/{generator,discriminator,layers}.txt` in the history of
github.com/openclimatefix/skillful_nowcasting (commit 1743e060). Changes: rewritten in PyTorch.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

Layer = TypeVar("Layer", nn.Conv2d, nn.Conv3d, nn.Linear)

_EPS = 1e-12
SAMPLER_EPS = 1e-4
_ITERATIONS_AT_START = 5
NORM_MOMENTUM = 0.01
"""Weight of a call in the running statistics. Each lead time is a call: at torch's 0.1, one or two batches decide."""


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    In training, each use of the weight improves the estimate by one power iteration; in eval mode nothing changes.
    Unlike torch's own class it estimates by element-wise products, which autocast keeps in single precision and which
    do not count as operations of a forecast: after training, the norm is a constant.

    Args:
        weight: Weight (C', ...) to be normalised.
        eps: Lower bound of the lengths by which singular vectors are divided.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, eps: float = _EPS) -> None:
        super().__init__()
        self.eps = eps
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0, eps=eps))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0, eps=eps))
        for _ in range(_ITERATIONS_AT_START):
            self._iterate(matrix)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        for a, b, product in ((self.u, self.v, matrix.mT), (self.v, self.u, matrix)):
            torch.mv(product, a, out=b)  # autocast keeps operations with an `out` in single precision
            b.copy_(F.normalize(b, dim=0, eps=self.eps))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the normalised weight."""
        matrix = weight.flatten(1)
        if self.training:
            self._iterate(matrix)
        u, v = (self.u.clone(), self.v.clone()) if self.training else (self.u, self.v)  # a later use changes them
        return weight / ((matrix * v).sum(1) * u).sum()


def normed(layer: Layer, eps: float = _EPS) -> Layer:
    """Returns a layer whose weight is spectrally normalised."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, eps=eps))
    return layer


def conv(c_in: int, c_out: int, kernel: int, *, eps: float = _EPS) -> nn.Conv2d:
    """Returns a spectrally normalised convolution that keeps the grid."""
    return normed(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), eps)


class DBlock(nn.Module):
    """Residual block of the discriminators and of the context stack; its first convolution keeps the channels.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        first: Whether it is the first block of its network, which does not start with a ReLU.
        down: Whether it halves the grid.
        volume: Whether it works on (N, C, T, H, W) and halves time as well, rounding down.
    """

    def __init__(self, c_in: int, c_out: int, *, first: bool = False, down: bool = True, volume: bool = False) -> None:
        super().__init__()
        kind: Any = nn.Conv3d if volume else nn.Conv2d
        self.first, self.down = first, down
        self.pool = F.avg_pool3d if volume else F.avg_pool2d
        self.inner = normed(kind(c_in, c_in, 3, padding=1))
        self.outer = normed(kind(c_in, c_out, 3, padding=1))
        self.shortcut = normed(kind(c_in, c_out, 1)) if down or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C', H/2, W/2) for (N, C, H, W), or the same grid."""
        y = self.outer(F.relu(self.inner(x if self.first else F.relu(x))))
        x = self.shortcut(x)
        return self.pool(y, 2) + self.pool(x, 2) if self.down else y + x


class GBlock(nn.Module):
    """Residual block of the sampler.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        up: Whether it doubles the grid, by repeating pixels.
    """

    def __init__(self, c_in: int, c_out: int, *, up: bool = False) -> None:
        super().__init__()
        self.scale = 2 if up else 1
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, momentum=NORM_MOMENTUM) for c in (c_in, c_out))
        self.inner, self.outer = conv(c_in, c_out, 3, eps=SAMPLER_EPS), conv(c_out, c_out, 3, eps=SAMPLER_EPS)
        self.shortcut = conv(c_in, c_out, 1, eps=SAMPLER_EPS) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C', 2H, 2W) for (N, C, H, W), or the same grid."""
        y = self.inner(self._grown(F.relu(self.norms[0](x))))
        y = self.outer(F.relu(self.norms[1](y)))
        shortcut: Tensor = self.shortcut(self._grown(x))
        return y + shortcut

    def _grown(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(self.scale), mode="nearest") if self.scale > 1 else x


class LBlock(nn.Module):
    """Residual block of the latent stack: no norm, and a shortcut that keeps its input and adds channels to it.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output, at least `c_in`.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.added = nn.Conv2d(c_in, c_out - c_in, 1) if c_out > c_in else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C', H, W) for (N, C, H, W)."""
        y: Tensor = self.outer(F.relu(self.inner(F.relu(x))))
        return y + (x if self.added is None else torch.cat((x, self.added(x)), dim=1))


class Attention(nn.Module):
    """Attention of every pixel to all others, added to the input with a learned factor.

    Args:
        channels: Channels of input and output; queries, keys and values have an eighth of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = channels // 8
        self.query, self.key, self.value = (nn.Conv2d(channels, inside, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inside, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, H, W) for (N, C, H, W)."""
        query, key, value = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # the authors do not scale
        changed: Tensor = self.out(seen.transpose(1, 2).unflatten(2, x.shape[2:]))
        return self.gamma * changed + x


class ConvGRUCell(nn.Module):
    """Convolutional gated recurrent unit whose candidate passes a ReLU.

    Args:
        c_in: Channels of the input.
        channels: Channels of the state.
    """

    def __init__(self, c_in: int, channels: int) -> None:
        super().__init__()
        self.reset, self.update, self.candidate = (
            conv(c_in + channels, channels, 3, eps=SAMPLER_EPS) for _ in range(3)
        )

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Returns the next state (N, C', H, W) for an input (N, C, H, W) and a state."""
        joined = torch.cat((x, state), dim=1)
        kept = torch.sigmoid(self.update(joined))
        read = torch.sigmoid(self.reset(joined)) * state
        return kept * state + (1 - kept) * F.relu(self.candidate(torch.cat((x, read), dim=1)))


class MeanNorm(nn.Module):
    """Batch normalisation that subtracts the mean without dividing by the spread, so that a batch of 1 works.

    Args:
        channels: Channels of the input.
        momentum: Weight of each batch in the running mean.
    """

    running_mean: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.scale, self.offset = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C) for (N, C)."""
        mean = self.running_mean
        if self.training:
            mean = x.mean(0)
            self.running_mean.lerp_(mean.detach().to(self.running_mean), self.momentum)
        return (x - mean) * self.scale + self.offset

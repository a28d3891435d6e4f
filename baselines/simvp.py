"""SimVP and TAU: a convolutional encoder and decoder per frame, and blocks between them with all frames as channels.

Papers: Z. Gao et al., "SimVP: Simpler yet Better Video Prediction", CVPR 2022 (arXiv:2206.05099); C. Tan et al.,
"SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning", 2022 (arXiv:2211.12509), whose gated
spatiotemporal attention (gSTA) is the one here; C. Tan et al., "Temporal Attention Unit: Towards Efficient
Spatiotemporal Predictive Learning", CVPR 2023 (arXiv:2206.12126).  Settings are those of OpenSTL, the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.masking import known_mse
from baselines.shapes import checked_shapes, checked_sizes, require_divisible

_NORM_GROUPS = 2
_MLP_RATIO = 8
_LAYER_SCALE = 1e-2
_FIRST_DROP_PATH = 1e-2  # as in OpenSTL, where the rate rises from this to `drop_path` over the blocks


class GatedSpatiotemporalAttention(nn.Module):
    """gSTA: a large kernel, decomposed into three convolutions, with a gate made from its own output.

    Source: arXiv:2211.12509, section 3.3: 21x21 as 5x5 by channel, 7x7 by channel at dilation 3, and 1x1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.large_kernel = _large_kernel(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns gated features `(N, D, h, w)` of features of that shape."""
        features, gate = self.large_kernel(x).chunk(2, dim=1)
        return torch.sigmoid(gate) * features


class TemporalAttentionUnit(nn.Module):
    """TAU: the input times a large kernel's features (statical) times a gate per channel (dynamical).

    Source: arXiv:2206.12126, section 3.3, in the form of OpenSTL: the gate is computed from the input, with a hidden
    width of `D // max(D // 16, 4)`, which is 16 for every D of 64 or more.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.large_kernel = _large_kernel(dim, dim)
        width = max(1, dim // max(dim // 16, 4))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(dim, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns gated features `(N, D, h, w)` of features of that shape."""
        return self.gate(x)[:, :, None, None] * self.large_kernel(x) * x


def _large_kernel(dim: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
        nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim),
        nn.Conv2d(dim, dim_out, 1),
    )


class TranslatorBlock(nn.Module):
    """An attention and a convolutional MLP, each after a batch norm and with a shortcut.

    Args:
        dim: Channels of the input, at which the block runs.
        dim_out: Channels of the output; if it differs from `dim`, a 1x1 convolution follows.
        attention: Class of the attention.
        drop_path: Probability of skipping either part for a sample in training.
    """

    def __init__(self, dim: int, dim_out: int, attention: type[nn.Module], drop_path: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.attention = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), attention(dim), nn.Conv2d(dim, dim, 1))
        wide = _MLP_RATIO * dim
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, wide, 1),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GELU(),
            nn.Conv2d(wide, dim, 1),
        )
        self.scale_1, self.scale_2 = (nn.Parameter(torch.full((dim, 1, 1), _LAYER_SCALE)) for _ in range(2))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.apply(_initialise_block)
        self.project = nn.Conv2d(dim, dim_out, 1) if dim_out != dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns features `(N, D', h, w)` of features `(N, D, h, w)`."""
        normed = self.norm_1(x)
        x = x + self.drop_path(self.scale_1 * (normed + self.attention(normed)))
        x = x + self.drop_path(self.scale_2 * self.mlp(self.norm_2(x)))
        return self.project(x)


class SimVP(nn.Module):
    """SimVP with gSTA blocks: forecasts all frames at once, without recurrence.

    The encoder halves the grid in every second of its layers, the decoder doubles it.  A pass gives as many frames as
    the context has: a shorter forecast takes the first T_out of them, a longer one feeds the forecast back, with a
    gradient through all passes.  Source: arXiv:2211.12509 in the form of OpenSTL.  There, blocks drop 1 % of their
    samples even if `drop_path` is 0; here 0 means none.

    Args:
        input_shape: `(T_in, H, W, C)`; H and W must be multiples of 2^(`n_s` / 2).
        target_shape: `(T_out, H, W, C)`.
        hid_s: Channels of a frame in encoder and decoder; even.
        hid_t: Channels of the blocks in the middle, which see all frames.
        n_s: Number of layers of the encoder, and of the decoder; even.
        n_t: Number of blocks in the middle; two or more.
        drop_path: Probability of skipping a part of the last block, per sample; it rises from 1 % at the first.

    Raises:
        ValueError: A grid size is not divisible, or sizes do not fit together.
    """

    widths: ClassVar[dict[str, int]] = {"hid_s": 2, "hid_t": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {"n_s": 6},
        "sevir_lr": {},
        "icar_enso": {"hid_s": 32, "hid_t": 256, "n_s": 2, "drop_path": 0.1},
        "nbody_mnist": {},
        "moving_mnist": {},
        "tiny": {"hid_s": 4, "hid_t": 16, "n_s": 2, "n_t": 2},
    }
    attention: ClassVar[type[nn.Module]] = GatedSpatiotemporalAttention

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by: 2^(`n_s` / 2)."""
        return 2 ** (hyperparameters["n_s"] // 2)

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        hid_s: int = 64,
        hid_t: int = 512,
        n_s: int = 4,
        n_t: int = 8,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        longer = target_shape[0] > input_shape[0]
        source, target = checked_shapes(name, input_shape, target_shape, feeds_back=longer)
        self.t_in, self.t_out = source[0], target[0]
        hid_s, hid_t, n_s, n_t = checked_sizes(name, "hid_s, hid_t, n_s and n_t", (hid_s, hid_t, n_s, n_t))
        require_divisible(name, "hid_s", hid_s, _NORM_GROUPS)
        require_divisible(name, "n_s", n_s, 2)
        for axis, size in zip(("height", "width"), source[1:3], strict=True):
            require_divisible(name, f"{axis} (for n_s={n_s}, which halves it {n_s // 2} times)", size, 2 ** (n_s // 2))
        if hid_s == _NORM_GROUPS and source[1] == source[2] == 2 ** (n_s // 2):
            raise ValueError(
                f"{name}: hid_s={hid_s} on a code of one pixel (n_s={n_s}) leaves one value to each norm; "
                f"expected {2 * _NORM_GROUPS} or more"
            )
        if n_t < 2:
            raise ValueError(f"{name}: n_t must be 2 or more, a first and a last block, got {n_t}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"{name}: drop_path must be 0 or more and below 1, got {drop_path}")
        strides = [1, 2] * (n_s // 2)
        inputs = [source[3]] + [hid_s] * (n_s - 1)
        self.encoder = nn.ModuleList(_down(i, hid_s, stride) for i, stride in zip(inputs, strides, strict=True))
        self.decoder = nn.ModuleList(_up(hid_s, factor) for factor in reversed(strides))
        self.apply(_initialise_frames)
        joined = self.t_in * hid_s
        widths = [joined] + [hid_t] * (n_t - 1) + [joined]
        rates = torch.linspace(min(_FIRST_DROP_PATH, drop_path), drop_path, n_t, device="cpu").tolist()
        self.translator = nn.Sequential(
            *(TranslatorBlock(widths[k], widths[k + 1], self.attention, rate) for k, rate in enumerate(rates))
        )
        self.readout = nn.Conv2d(hid_s, target[3], 1)

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        frames = context.permute(0, 1, 4, 2, 3)
        made = []
        for _ in range(math.ceil(self.t_out / self.t_in)):
            frames = self._next(frames)
            made.append(frames)
        return torch.cat(made, dim=1)[:, : self.t_out].permute(0, 1, 3, 4, 2)

    def _next(self, frames: Tensor) -> Tensor:
        """Returns the next T_in frames after T_in frames, both `(B, T_in, C, H, W)`."""
        batch = len(frames)
        x = frames.flatten(0, 1)
        skip = x = self.encoder[0](x)
        for layer in self.encoder[1:]:
            x = layer(x)
        x = self.translator(x.unflatten(0, (batch, self.t_in)).flatten(1, 2))
        x = x.unflatten(1, (self.t_in, -1)).flatten(0, 1)
        for layer in self.decoder[:-1]:
            x = layer(x)
        return self.readout(self.decoder[-1](x + skip)).unflatten(0, (batch, self.t_in))


class TAU(SimVP):
    """SimVP with temporal attention units, trained on the change between frames as well.

    Source: arXiv:2206.12126 in the form of OpenSTL; sizes and everything but the blocks are SimVP's.

    Args:
        input_shape: See `SimVP`.
        target_shape: See `SimVP`.
        divergence_weight: Weight of the divergence of frame differences in the loss.
        **sizes: See `SimVP`.

    Raises:
        ValueError: As `SimVP`, or the weight is negative or not finite.
    """

    attention = TemporalAttentionUnit

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        hid_s: int = 64,
        hid_t: int = 512,
        n_s: int = 4,
        n_t: int = 8,
        drop_path: float = 0.0,
        divergence_weight: float = 0.1,
    ) -> None:
        super().__init__(input_shape, target_shape, hid_s=hid_s, hid_t=hid_t, n_s=n_s, n_t=n_t, drop_path=drop_path)
        if not 0 <= divergence_weight < math.inf:
            raise ValueError(
                f"{type(self).__name__}: divergence_weight must be 0 or a positive number, got {divergence_weight}"
            )
        self.divergence_weight = divergence_weight

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Returns the terms of the loss over known pixels: "mse", and "divergence" times its weight."""
        forecast = self(context)
        divergence = difference_divergence(forecast, target)
        return {"mse": known_mse(forecast, target), "divergence": self.divergence_weight * divergence}


def difference_divergence(forecast: Tensor, target: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Returns how far the changes from frame to frame diverge from those of the target; 0 or more.

    The Kullback-Leibler divergence compares two distributions over the pixels: the softmax of the differences of
    consecutive frames over `temperature`. It is averaged over sequences, pairs of frames and pixels, as in OpenSTL.
    Also as there, two frames or fewer give 0.  A pixel that is missing in either frame of a pair is left out of both
    distributions, and the sum is divided by the share of known pixels, so that batches add up.

    Args:
        forecast: `(B, T, H, W, C)`.
        target: `(B, T, H, W, C)`, NaN where it is missing.
        temperature: Temperature of the softmax, in units of the frames.

    Source: arXiv:2206.12126, equations 6 to 8.
    """
    frames = target.shape[1]
    if frames <= 2:
        return forecast.new_zeros(())
    change = target.diff(dim=1)
    unknown = torch.isnan(change)
    log_p, log_q = (
        F.log_softmax((x / temperature).masked_fill(unknown, torch.finfo(x.dtype).min).flatten(2), dim=-1)
        for x in (forecast.to(target.dtype).diff(dim=1), change)
    )
    known = (~torch.isnan(target)).sum().clamp(min=1)
    return (log_p.exp() * (log_p - log_q)).sum() / (known * (frames - 1) / frames)


def _down(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), nn.GroupNorm(_NORM_GROUPS, c_out), nn.SiLU()
    )


def _up(channels: int, factor: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, factor**2 * channels, 3, padding=1)
    shuffle = [nn.PixelShuffle(factor)] if factor > 1 else []
    return nn.Sequential(conv, *shuffle, nn.GroupNorm(_NORM_GROUPS, channels), nn.SiLU())


def _initialise_frames(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _initialise_block(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        assert module.bias is not None
        nn.init.zeros_(module.bias)

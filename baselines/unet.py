"""UNet: time folded into channels, one encoder-decoder with skip connections.

Veillette, Samsi and Mattioli, "SEVIR: A Storm Event Imagery Dataset for Deep Learning Applications in Radar and
Satellite Meteorology", NeurIPS 2020, the nowcasting baseline of its code release; after Ronneberger et al. 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import ConvNormAct
from torch import Tensor, nn

from baselines.shapes import checked_shapes, checked_sizes, require_divisible

_NORM_EPS = 1e-3  # Keras's default, as the release is Keras code; likewise its momentum of 0.99, torch's 0.01


class UNet(nn.Module):
    """SEVIR's nowcasting U-Net: frames as channels, max-pooled levels, transposed convolutions, no recurrence.

    Source: Veillette et al. 2020, code release (`nowcast_unet`).  ICAR-ENSO frames are too small for four levels;
    three levels match the Earthformer paper's count (12.1 M), which is our reconstruction.

    Args:
        input_shape: `(T_in, H, W, C)`; H and W must be multiples of 2 to the number of levels.
        target_shape: `(T_out, H, W, C)`.
        channels: Width of each encoder level.
        center_channels: Width of the convolutions below the last level.
        norm_momentum: Weight of each batch in the running statistics of batch normalisation.  With the default,
            evaluation mode is useful only after about a thousand steps; use 0.1 for short runs.

    Raises:
        ValueError: A grid size is not divisible by 2 to the number of levels, or sizes do not fit together.
    """

    widths: ClassVar[dict[str, int]] = {"channels": 1, "center_channels": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {},
        "sevir_lr": {},
        "icar_enso": {"channels": [32, 64, 128]},
        "nbody_mnist": {},
        "moving_mnist": {},
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by: 2 to the number of levels."""
        return 2 ** len(hyperparameters["channels"])

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        center_channels: int = 1024,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        (t_in, height, width, c_in), (self.t_out, _, _, self.c_out) = checked_shapes(
            name, input_shape, target_shape, feeds_back=False
        )
        channels = checked_sizes(name, "channels", channels)
        for axis, size in (("height", height), ("width", width)):
            require_divisible(
                name, f"{axis} (for {len(channels)} levels, one per entry of channels)", size, 2 ** len(channels)
            )
        norm: dict[str, Any] = {"eps": _NORM_EPS, "momentum": norm_momentum}
        inputs = [t_in * c_in, *channels[:-1]]
        self.encoder = nn.ModuleList(_two_convs(i, o, norm) for i, o in zip(inputs, channels, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.center = _two_convs(channels[-1], center_channels, norm)
        below = [center_channels, *reversed(channels[1:])]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip(below, reversed(channels), strict=True)
        )
        self.join = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(2 * c, **norm), nn.ReLU()) for c in reversed(channels))
        self.decoder = nn.ModuleList(_two_convs(2 * c, c, norm) for c in reversed(channels))
        self.head = nn.Conv2d(channels[0], self.t_out * self.c_out, 1)
        self.apply(_keras_initialisation)

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        batch, _, height, width, _ = context.shape
        x = context.permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, T_in*C, H, W)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.center(x)
        for up, join, level in zip(self.up, self.join, self.decoder, strict=True):
            x = level(join(torch.cat([skips.pop(), up(x)], dim=1)))
        frames = self.head(x).view(batch, self.t_out, self.c_out, height, width)
        return frames.permute(0, 1, 3, 4, 2)


def _two_convs(c_in: int, c_out: int, norm: dict[str, Any]) -> nn.Sequential:
    def conv(i: int, o: int) -> nn.Module:
        return ConvNormAct(i, o, 3, bias=True, norm_kwargs=norm)

    return nn.Sequential(conv(c_in, c_out), conv(c_out, c_out))


def _keras_initialisation(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)

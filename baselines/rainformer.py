"""Rainformer: a U-shaped stack of blocks that join window attention and convolutions by a gate.

Paper: C. Bai et al., "Rainformer: Features Extraction Balanced Network for Radar-Based Precipitation
Nowcasting", IEEE Geoscience and Remote Sensing Letters 19, 2022 (doi.org/10.1109/LGRS.2022.3162882). The
attention is that of Z. Liu et al., "Swin Transformer", ICCV 2021 (arXiv:2103.14030).
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.masking import known_error, known_mse
from baselines.shapes import checked_shapes, checked_sizes, require_divisible
from baselines.weights import Config, as_mapping, check_config, load_strictly
from baselines.window_attention import SQUEEZE, SwinBlock, WindowAttention, squeezing

Loss: TypeAlias = Literal["mse", "balanced_mae"]

# Thresholds in mm/h, and the weights of the classes between them.
BALANCE_THRESHOLDS = (2.0, 5.0, 10.0, 30.0)
BALANCE_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 30.0)


def balanced_mae(
    forecast: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float] = BALANCE_THRESHOLDS,
    weights: Sequence[float] = BALANCE_WEIGHTS,
    ignores_last_threshold: bool = True,
) -> Tensor:
    """Returns the sum of absolute errors over known pixels, each weighted by the class of its target.

    Args:
        forecast: Forecast of any shape.
        target: Target of that shape, in the unit of the thresholds; NaN where it is missing.
        thresholds: Rising lower bounds of all classes but the first.
        weights: Weights of the classes, one more than thresholds.
        ignores_last_threshold: Whether a target exactly at the last threshold has weight 0, as in the
            authors' code.

    Raises:
        ValueError: The number of weights is not that of thresholds plus one, or the thresholds do not rise.

    Source: the Rainformer paper (balanced loss); the authors' code sums over batch and pixels.
    """
    if len(weights) != len(thresholds) + 1 or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(
            f"balanced_mae needs rising thresholds and one weight more, got {tuple(thresholds)} and {tuple(weights)}"
        )
    bounds = target.new_tensor(thresholds)
    weight = target.new_tensor(weights)[torch.bucketize(target.detach(), bounds, right=True)]
    if ignores_last_threshold:
        weight = weight.masked_fill(target == bounds[-1], 0.0)
    return (weight * known_error(forecast, target).abs()).sum()


class _SharedChannelAttention(nn.Module):
    """Scales channels by their pooled mean and maximum, which pass one shared perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.MLP = squeezing(channels, channels // SQUEEZE or channels)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.MLP(F.adaptive_avg_pool2d(x, 1)) + self.MLP(F.adaptive_max_pool2d(x, 1))
        return x * torch.sigmoid(logits)[:, :, None, None]


class _SpatialAttention(nn.Module):
    """Scales positions by the mean and maximum over their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values), dim=1)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


class _ChannelSpatialAttention(nn.Module):
    """The paper's CASA: channel attention, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ca = _SharedChannelAttention(channels)
        self.sa = _SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.sa(self.ca(x))


class _DoubleConv(nn.Module):
    """Twice a convolution, batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Gate(nn.Module):
    """Weighs global and local features, position by position and channel by channel.

    The authors declare two further convolutions that are never called. They are kept because their norms over
    whole images make up most of the published number of parameters; they never get a gradient.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()

        def convolution(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.LayerNorm((c_out, *grid)))

        self.conv_1 = convolution(2 * channels, 2 * channels)
        self.conv_2 = convolution(channels, channels)
        self.conv_3 = convolution(2 * channels, channels)

    def forward(self, global_x: Tensor, local_x: Tensor) -> Tensor:
        z, r = torch.sigmoid(self.conv_1(torch.cat((global_x, local_x), dim=1))).chunk(2, dim=1)
        return z * global_x + r * local_x


class _Regrid(nn.Module):
    """Folds pixels into channels (by a factor d) or unfolds channels into pixels, then mixes the channels.

    Takes images (N, C, H, W) and returns them channels-last, (N, H', W', C').
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, *, unfolds: bool) -> None:
        super().__init__()
        self.factor = factor
        self.unfolds = unfolds
        self.linear = nn.Linear(in_channels // factor**2 if unfolds else in_channels * factor**2, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        regrid = F.pixel_shuffle if self.unfolds else F.pixel_unshuffle
        return self.linear(regrid(x, self.factor).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    """A change of the grid, then groups: two window blocks beside two convolutions, joined by a gate.

    In the authors' loop every group reads the input of the stage, so the last group's output is the stage's,
    and the other groups exist only as weights.
    """

    def __init__(
        self,
        regrid: _Regrid,
        channels: int,
        grid: tuple[int, int],
        *,
        groups: int,
        heads: int,
        head_dim: int,
        window: int,
        mlp_hidden: int,
    ) -> None:
        super().__init__()
        self.patch_partition = regrid

        def block(*, shifted: bool) -> SwinBlock:
            attention = WindowAttention(channels, heads=heads, head_dim=head_dim, window=window, shifted=shifted)
            return SwinBlock(channels, attention, mlp_hidden)

        self.layers: Sequence[Sequence[nn.Module]] = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleList(
                (
                    block(shifted=False),
                    block(shifted=True),
                    _DoubleConv(channels),
                    _ChannelSpatialAttention(channels),
                    _Gate(channels, grid),
                )
            )
            for _ in range(groups)
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        tokens = self.patch_partition(x)
        if skip is not None:
            tokens = torch.cat((tokens, skip.permute(0, 2, 3, 1)), dim=-1)
        window_block, shifted_block, convolutions, attention, gate = self.layers[-1]
        local_x = attention(convolutions(tokens.permute(0, 3, 1, 2)))
        global_x = shifted_block(window_block(tokens)).permute(0, 3, 1, 2)
        return gate(global_x, local_x)


class Rainformer(nn.Module):
    """Rainformer: window attention beside convolutions in a U-shape, with time folded into channels.

    Source: the Rainformer paper (network structure), in the form of the authors' code, whose attribute names
    are kept (its `stage1`-`stage4` are `down`, `stage5`-`stage7` are `up`, `stage8` is `final`). There the
    last stage returns as many frames as the context has; here it returns those of the forecast. The default
    loss is the mean squared error, since no source maps the thresholds of the balanced loss, in mm/h, to the
    units of other tasks.
    """

    # Two branches of each gate are in the original's state_dict and in its published size, and are never called.
    parameters_without_gradient: ClassVar[tuple[str, ...]] = ("*.layers.*.4.conv_2.*", "*.layers.*.4.conv_3.*")
    widths: ClassVar[dict[str, int]] = {"hidden": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {"hidden": 64, "downscale": (2, 2, 2, 2), "heads": (3, 6, 12, 24), "window": 12},
        "sevir_lr": {"hidden": 32, "downscale": (2, 2, 2, 2), "heads": (4, 4, 8, 16), "window": 8},
        "icar_enso": {"hidden": 32, "downscale": (1, 2, 2, 2), "heads": (4, 4, 8, 16), "window": 3},
        "nbody_mnist": {"hidden": 32, "downscale": (2, 2, 2, 2), "heads": (4, 4, 8, 16), "window": 4},
        "moving_mnist": {"hidden": 32, "downscale": (2, 2, 2, 2), "heads": (4, 4, 8, 16), "window": 4},
        # In shifted and masked windows as large as the grid, each pixel would attend only to itself.
        "tiny": {"hidden": 16, "downscale": (2, 2, 2, 1), "heads": (2, 2, 4, 4), "window": 2},
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by."""
        return math.prod(hyperparameters["downscale"]) * hyperparameters["window"]

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        hidden: int = 32,
        downscale: Sequence[int] = (2, 2, 2, 2),
        layers: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (4, 4, 8, 16),
        head_dim: int = 8,
        window: int = 4,
        loss: Loss = "mse",
        balance_thresholds: Sequence[float] = BALANCE_THRESHOLDS,
    ) -> None:
        """Builds the model; sequence arguments have one entry per stage, from the finest of four to the coarsest.

        Args:
            input_shape: Shape (T, H, W, C) of the context.
            target_shape: Shape (T, H, W, C) of the forecast.
            hidden: Width of the first stage; each further stage doubles it.
            downscale: Downsampling before each stage.
            layers: Window blocks of each stage (even).
            heads: Attention heads of each stage.
            head_dim: Width of each head.
            window: Side of the attention windows.
            loss: "mse", or "balanced_mae" for the paper's loss.
            balance_thresholds: Thresholds of the paper's loss, in the task's normalised units.

        Raises:
            ValueError: A grid size is not divisible by the window at every stage, or sizes do not fit
                together.
        """
        super().__init__()
        name = type(self).__name__
        source, target = checked_shapes(name, input_shape, target_shape, feeds_back=False)
        downscale = checked_sizes(name, "downscale", downscale, count=4)
        layers = checked_sizes(name, "layers", layers, count=4)
        heads = checked_sizes(name, "heads", heads, count=4)
        checked_sizes(name, "hidden, head_dim and window", (hidden, head_dim, window))
        if loss not in ("mse", "balanced_mae"):
            raise ValueError(f"{name}: loss must be mse or balanced_mae, got {loss!r}")
        self.target_shape = target
        self.loss = loss
        self.balance_thresholds = tuple(balance_thresholds)
        strides = list(accumulate(downscale, mul))
        for what, size in (("height", source[1]), ("width", source[2])):
            for number, stride in enumerate(strides, start=1):
                require_divisible(name, f"{what} (for windows of {window} at stage {number})", size, stride * window)
            require_divisible(name, f"{what} (for windows of {window} at the last stage)", size, window)
        for count in layers:
            require_divisible(name, "layers of a stage", count, 2)

        def stage(level: int, regrid: _Regrid, channels: int, stride: int, mlp_hidden: int) -> _Stage:
            return _Stage(
                regrid,
                channels,
                (source[1] // stride, source[2] // stride),
                groups=layers[level] // 2,
                heads=heads[level],
                head_dim=head_dim,
                window=window,
                mlp_hidden=mlp_hidden,
            )

        widths = [hidden * 2**level for level in range(4)]
        self.down = nn.ModuleList()
        channels = source[0] * source[3]
        for level, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            regrid = _Regrid(channels, width, downscale[level], unfolds=False)
            self.down.append(stage(level, regrid, width, stride, 4 * width))
            channels = width
        self.up = nn.ModuleList()
        for level in (3, 2, 1):
            # A stage on the way up has the heads and layers of the stage it comes from, not of the one it joins.
            width = widths[level - 1]
            require_divisible(name, f"width of stage {7 - level}", channels, downscale[level] ** 2)
            regrid = _Regrid(channels, width, downscale[level], unfolds=True)
            channels = 2 * width
            self.up.append(stage(level, regrid, channels, strides[level - 1], 4 * width))
        require_divisible(name, "width of stage 7", channels, downscale[0] ** 2)
        frames = target[0] * target[3]
        self.final = stage(0, _Regrid(channels, frames, downscale[0], unfolds=True), frames, 1, 4 * frames)

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C) of a context (B, T_in, H, W, C)."""
        x = context.permute(0, 1, 4, 2, 3).flatten(1, 2)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = stage(x, skips.pop())
        t_out, height, width, channels = self.target_shape
        return self.final(x).reshape(-1, t_out, channels, height, width).permute(0, 1, 3, 4, 2)

    @property
    def loss_reduction(self) -> str:
        """Returns how the loss reduces over the sequences of a batch."""
        return "sum" if self.loss == "balanced_mae" else "mean"

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        """Returns the chosen loss of the forecast; the balanced one is a sum over batch and pixels."""
        forecast = self(context)
        if self.loss == "balanced_mae":
            return balanced_mae(forecast, target, thresholds=self.balance_thresholds)
        return known_mse(forecast, target)


# Names of the stages in the authors' network, and here.
STAGE_NAMES = {
    **{f"stage{1 + level}": f"down.{level}" for level in range(4)},
    **{f"stage{5 + level}": f"up.{level}" for level in range(3)},
    "stage8": "final",
}


def load_upstream(
    config: Config,
    state_dict: Mapping[str, Tensor],
    *,
    input_shape: Sequence[int],
    target_shape: Sequence[int],
) -> Rainformer:
    """Returns a Rainformer with the weights of the authors' implementation.

    Args:
        config: Hyperparameters `hid`, `ds`, `layers`, `heads`, `hd`, `ws` (width, downscaling, window blocks,
            heads, width of a head, window), and optionally `cin`, `cout`, `h`, `w` (channels and grid).
        state_dict: Weights under the authors' names (`stage1` to `stage8`) or under ours.
        input_shape: Shape (T, H, W, C) of the context.
        target_shape: Shape (T, H, W, C) of the forecast.

    Raises:
        ValueError: The configuration lacks a key or contradicts the shapes; or weights are missing, left over
            or of another shape (all are listed).
    """
    config = as_mapping(config)
    t_in, height, width, channels = input_shape
    check_config(
        config,
        required=("hid", "ds", "layers", "heads", "hd", "ws"),
        implied={"cin": t_in * channels, "cout": target_shape[0] * target_shape[3], "h": height, "w": width},
    )
    model = Rainformer(
        input_shape,
        target_shape,
        hidden=config["hid"],
        downscale=config["ds"],
        layers=config["layers"],
        heads=config["heads"],
        head_dim=config["hd"],
        window=config["ws"],
    )
    named = {
        re.sub(r"^stage\d", lambda match: STAGE_NAMES.get(match[0], match[0]), key): value
        for key, value in state_dict.items()
    }
    load_strictly(model, named)
    return model

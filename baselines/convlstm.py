"""ConvLSTM encoder-forecaster.

Paper: X. Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting",
NeurIPS 2015 (arXiv:1506.04214). The arrangement with strided convolutions between the levels is that of X.
Shi et al., "Deep Learning for Precipitation Nowcasting: A Benchmark and A New Model", NeurIPS 2017
(arXiv:1706.03458).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.convolutions import RepeatedConv
from baselines.rollout import HasReference, each_frame, frames_at_once
from baselines.shapes import checked_shapes, checked_sizes, require_divisible

LEAKY_SLOPE = 0.2

State: TypeAlias = tuple[Tensor, Tensor]


class ConvLSTMCell(nn.Module):
    """A convolutional LSTM cell without peepholes; without input it runs on its state alone.

    Source: arXiv:1506.04214 (the ConvLSTM equations), without peepholes, which no published parameter count
    of this model includes.
    """

    def __init__(self, in_channels: int, hidden: int, kernel_size: int = 3) -> None:
        """Builds a cell whose gates are one convolution over input and hidden state."""
        super().__init__()
        self.in_channels = in_channels
        self.hidden = hidden
        self.padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels + hidden, 4 * hidden, kernel_size, padding=self.padding)

    def zeros(self, like: Tensor) -> State:
        """Returns zeros (B, hidden, H, W) as both states, on the batch and grid of `like` (B, any, H, W)."""
        empty = like.new_zeros(like.shape[0], self.hidden, *like.shape[2:])
        return empty, empty

    def forward(self, x: Tensor | None, state: State) -> State:
        """Returns the state after one step on input (B, C, H, W), or on None without input channels."""
        h, c = state
        return self._gate(self.conv(h if x is None else torch.cat((x, h), dim=1)), c)

    def run(self, inputs: Tensor | None, state: State | None, steps: int) -> tuple[Tensor, State]:
        """Returns the hidden states (T, B, hidden, H, W) of several steps, and the last state.

        The convolution is split: the part over the inputs (T, B, C, H, W), which are all known, is computed for
        all steps at once, and the part over a zero state (None) is skipped.

        Raises:
            ValueError: There is neither an input nor a state to run on.
        """
        if inputs is None:
            if state is None:
                raise ValueError("ConvLSTMCell: a run without inputs needs a state")
            recur = RepeatedConv(self.conv.weight, self.conv.bias)
            hidden = []
            for _ in range(steps):
                state = self._gate(recur(state[0]), state[1])
                hidden.append(state[0])
            return torch.stack(hidden), state
        if steps == 1:
            state = self(inputs[0], self.zeros(inputs[0]) if state is None else state)
            return state[0].unsqueeze(0), state
        conv = self.conv
        over_x, over_h = (part.contiguous() for part in conv.weight.split((self.in_channels, self.hidden), dim=1))
        from_x = each_frame(lambda x: F.conv2d(x, over_x, conv.bias, padding=self.padding), inputs)
        recur = RepeatedConv(over_h)
        hidden = []
        for z in from_x.unbind(0):
            if state is None:
                state = self._gate(z, None)
            else:
                h, c = state
                state = self._gate(z + recur(h), c)
            hidden.append(state[0])
        assert state is not None
        return torch.stack(hidden), state

    @staticmethod
    def _gate(z: Tensor, c: Tensor | None) -> State:
        i, f, o, g = z.chunk(4, dim=1)
        new = torch.sigmoid(i) * torch.tanh(g)
        if c is not None:
            new = torch.sigmoid(f) * c + new
        return torch.sigmoid(o) * torch.tanh(new), new


def _upsampling(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Returns a transposed convolution that multiplies the grid by exactly its stride, with its activation."""
    excess = kernel_size - stride
    padding = math.ceil(excess / 2)
    return nn.Sequential(
        nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=padding,
            output_padding=2 * padding - excess,
        ),
        nn.LeakyReLU(LEAKY_SLOPE),
    )


class ConvLSTM(HasReference):
    """ConvLSTM encoder-forecaster: strided levels read the context, their mirror image unrolls the forecast.

    Level 1 is the finest. The forecaster starts from the encoder's states; its top cell runs on its state
    alone, and no forecast frame is fed back.

    Source: arXiv:1706.03458 (encoding-forecasting structure), with ConvLSTM cells (3 x 3) in place of its
    TrajGRU. The widths and kernels are fitted to the sizes published in the Earthformer paper
    (arXiv:2207.05833); many structures fit those equally, so this is the least certain of the
    reconstructions.
    """

    widths: ClassVar[dict[str, int]] = {"hidden": 1, "head_channels": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {"strides": (3, 2, 4)},
        "sevir_lr": {"strides": (2, 2, 2)},
        "icar_enso": {"strides": (2, 2, 2)},
        "nbody_mnist": {"strides": (2, 2, 2)},
        "moving_mnist": {"strides": (2, 2, 2)},
        "tiny": {"hidden": (8, 8, 8), "head_channels": 4},
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by."""
        return math.prod(hyperparameters["strides"])

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (96, 128, 256),
        strides: Sequence[int] = (2, 2, 2),
        conv_kernels: Sequence[int] = (5, 5, 5),
        deconv_kernels: Sequence[int] = (6, 4, 4),
        head_channels: int = 16,
    ) -> None:
        """Builds the model; sequences go from the finest level to the coarsest.

        Args:
            input_shape: Shape (T, H, W, C) of the context.
            target_shape: Shape (T, H, W, C) of the forecast.
            hidden: Width of each level: of its convolution, its cells and its transposed convolution.
            strides: Downsampling before each level.
            conv_kernels: Kernel of the strided convolution before each level (odd).
            deconv_kernels: Kernel of the transposed convolution after each level, at least its stride.
            head_channels: Width at full resolution.

        Raises:
            ValueError: A grid size is not divisible by the product of the strides, or sizes do not fit
                together.
        """
        super().__init__()
        name = type(self).__name__
        source, target = checked_shapes(name, input_shape, target_shape, feeds_back=False)
        hidden = checked_sizes(name, "hidden", hidden)
        levels = len(hidden)
        strides = checked_sizes(name, "strides", strides, count=levels)
        conv_kernels = checked_sizes(name, "conv_kernels", conv_kernels, count=levels)
        deconv_kernels = checked_sizes(name, "deconv_kernels", deconv_kernels, count=levels)
        total_stride = math.prod(strides)
        require_divisible(name, "height", source[1], total_stride)
        require_divisible(name, "width", source[2], total_stride)
        for kernel, stride in zip(conv_kernels, strides, strict=True):
            if kernel % 2 == 0 or kernel < stride:
                raise ValueError(
                    f"{name}: conv_kernels must be odd and cover their strides {strides}, got {conv_kernels}"
                )
        for kernel, stride in zip(deconv_kernels, strides, strict=True):
            # An output padding of one pixel must be smaller than the stride.
            if kernel < stride or (stride == 1 and kernel % 2 == 0):
                raise ValueError(
                    f"{name}: deconv_kernels must cover their strides, and be odd at stride 1; "
                    f"got kernels {deconv_kernels}, strides {strides}"
                )
        self.t_out = target[0]
        grids = [source[1] * source[2] // stride**2 for stride in accumulate(strides, mul)]
        self.largest_frame = max(4 * width * grid for width, grid in zip(hidden, grids, strict=True))
        self.downsampling: Sequence[nn.Module] = nn.ModuleList(  # type: ignore[assignment]
            nn.Sequential(
                nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2),
                nn.LeakyReLU(LEAKY_SLOPE),
            )
            for (c_in, c_out), kernel, stride in zip(pairwise((source[3], *hidden)), conv_kernels, strides, strict=True)
        )
        self.encoder: Sequence[ConvLSTMCell] = nn.ModuleList(  # type: ignore[assignment]
            ConvLSTMCell(width, width) for width in hidden
        )
        # A transposed convolution keeps the width of the level it leaves, so a forecaster cell reads the
        # width above.
        self.forecaster: Sequence[ConvLSTMCell] = nn.ModuleList(  # type: ignore[assignment]
            ConvLSTMCell(above, width) for width, above in zip(hidden, (*hidden[1:], 0), strict=True)
        )
        self.upsampling: Sequence[nn.Module] = nn.ModuleList(  # type: ignore[assignment]
            _upsampling(width, width if level else head_channels, kernel, stride)
            for level, (width, kernel, stride) in enumerate(zip(hidden, deconv_kernels, strides, strict=True))
        )
        self.head = nn.Sequential(
            nn.Conv2d(head_channels, head_channels, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(head_channels, target[3], 1),
        )

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C) of a context (B, T_in, H, W, C)."""
        frames = context.permute(1, 0, 4, 2, 3)  # T B C H W
        forecast = self._forward_plain(frames) if self.plain else self._forward_by_level(frames)
        return forecast.permute(1, 0, 3, 4, 2)

    def _forward_by_level(self, frames: Tensor) -> Tensor:
        """Returns the forecast, time first, with each level taken through many steps before the next one.

        Nothing flows from a coarse level to a finer one within the encoder, nor back within the forecaster,
        so every layer but the recurrent convolution sees many frames at once.
        """
        at_once = frames_at_once(frames, self.largest_frame)
        states: list[State | None] = [None] * len(self.encoder)
        for x in frames.split(at_once):
            for level, (convolution, cell) in enumerate(zip(self.downsampling, self.encoder, strict=True)):
                x, states[level] = cell.run(each_frame(convolution, x), states[level], len(x))
        forecast = []
        for start in range(0, self.t_out, at_once):
            y: Tensor | None = None
            for level in reversed(range(len(states))):
                steps = min(at_once, self.t_out - start)
                hidden, states[level] = self.forecaster[level].run(y, states[level], steps)
                y = each_frame(self.upsampling[level], hidden)
            assert y is not None
            forecast.append(each_frame(self.head, y))
        return torch.cat(forecast)

    def _forward_plain(self, frames: Tensor) -> Tensor:
        """Returns the forecast, time first, with each step taken through all levels before the next one."""
        states: list[State] = []
        for t, x in enumerate(frames):
            for level, (convolution, cell) in enumerate(zip(self.downsampling, self.encoder, strict=True)):
                x = convolution(x)
                if t == 0:
                    states.append(cell.zeros(x))
                states[level] = cell(x, states[level])
                x = states[level][0]
        forecast = []
        for _ in range(self.t_out):
            y: Tensor | None = None
            for level in reversed(range(len(states))):
                states[level] = self.forecaster[level](y, states[level])
                y = self.upsampling[level](states[level][0])
            forecast.append(self.head(y))
        return torch.stack(forecast)

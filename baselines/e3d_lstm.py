"""E3D-LSTM: an LSTM over two-frame volumes that recalls all its earlier cell states by attention.

Paper: Y. Wang et al., "Eidetic 3D LSTM: A Model for Video Prediction and Beyond", ICLR 2019
(openreview.net/forum?id=B1lKS2AqtX).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.convolutions import RepeatedConv
from baselines.masking import known_error
from baselines.rollout import NextFrameModel, each_frame
from baselines.sampling import Sampling, SamplingSchedule, mixed, truths_by_step
from baselines.shapes import checked_stack

# The authors' code fixes the window to two frames; the fast form below builds on it.
WINDOW = 2
# The default of TensorFlow's contrib layer norm.
NORM_EPS = 1e-12
FORGET_BIAS = 1.0


class _Kernels(NamedTuple):
    """A two-frame convolution as two convolutions of single frames, without the products with padding.

    The first output frame sees both input frames (stacked in the input channels of `pair`), the second only the
    second input frame (`last`).
    """

    pair: RepeatedConv
    last: RepeatedConv

    def convolve(self, volume: Tensor) -> Tensor:
        """Returns the convolved volume (B, C', 2, H, W) of a volume (B, C, 2, H, W)."""
        return torch.stack((self.pair(volume.flatten(1, 2)), self.last(volume[:, :, 1])), dim=2)


class TwoFrameConv(nn.Conv3d):
    """A (2, k, k) convolution that keeps the size of volumes (B, C, 2, H, W), padded at the end of time.

    Source: TensorFlow's "same" padding, as used by the authors: for an even kernel, the extra padding is at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        """Builds the convolution, initialised as TensorFlow does: Glorot-uniform weights and zero bias."""
        super().__init__(
            in_channels,
            out_channels,
            (WINDOW, kernel_size, kernel_size),
            padding=(0, kernel_size // 2, kernel_size // 2),
            bias=bias,
        )
        _initialise(self)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the convolved volume (B, C', 2, H, W)."""
        return super().forward(torch.cat((input, torch.zeros_like(input[:, :, 1:])), dim=2))


def _kernels(*convolutions: TwoFrameConv) -> _Kernels:
    """Returns the kernels of the sum of convolutions, for inputs that are joined along the channels."""
    weight = torch.cat([conv.weight for conv in convolutions], dim=1)
    biases = [conv.bias for conv in convolutions if conv.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    return _Kernels(RepeatedConv(weight.flatten(1, 2), bias), RepeatedConv(weight[:, :, 0].contiguous(), bias))


def _initialise(conv: nn.Conv3d) -> None:
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _norm(channels: int) -> nn.GroupNorm:
    """Returns a norm over all axes but the batch, with a gain and a shift per channel."""
    return nn.GroupNorm(1, channels, eps=NORM_EPS)


def _tokens(volume: Tensor) -> Tensor:
    """Returns the positions of a volume (B, C, 2, h, w) as tokens (B, 2 h w, C)."""
    return volume.flatten(2).transpose(1, 2)


def _recall_plain(queries: Tensor, history: Tensor) -> Tensor:
    """Returns, for queries (B, Q, n), means of the history (B, K, n) weighted by a softmax of the products."""
    return torch.matmul(torch.softmax(torch.matmul(queries, history.transpose(1, 2)), dim=-1), history)


def _recall(queries: Tensor, history: Tensor) -> Tensor:
    """Returns the same as `_recall_plain`, without storing the weights (B, Q, K)."""
    # Fused kernels need the channels of a token to be contiguous; otherwise the weights are stored after all.
    queries, keys = queries.contiguous().unsqueeze(1), history.contiguous().unsqueeze(1)
    return F.scaled_dot_product_attention(queries, keys, keys, scale=1.0).squeeze(1)


class EideticLSTMCell(nn.Module):
    """A cell on two-frame volumes whose forget gate is an attention over all its earlier cell states.

    Source: the ICLR 2019 paper (eidetic 3D LSTM), in the form of the authors' code
    (github.com/google/e3d_lstm, `src/layers/rnn_cell.py`): no scale in the attention, and no norm after the
    two convolutions of the output gate.  Unlike there, the convolutions before the norms have no bias.  Where a state
    is zero (at the first step; always, for a memory that is dropped), only the bias would reach the norm, which divides
    by its spread: the first update, however small, would turn 0 into +-1 per channel, saturate the gates and make all
    forecasts alike.  The norms have a shift per channel anyway.
    """

    def __init__(self, in_channels: int, hidden: int, kernel_size: int) -> None:
        """Builds a cell for states (B, hidden, 2, h, w)."""
        super().__init__()
        self.hidden = hidden
        self.conv_x = TwoFrameConv(in_channels, 7 * hidden, kernel_size, bias=False)
        self.norm_x = _norm(7 * hidden)
        self.conv_h = TwoFrameConv(hidden, 4 * hidden, kernel_size, bias=False)
        self.norm_h = _norm(4 * hidden)
        self.conv_m = TwoFrameConv(hidden, 4 * hidden, kernel_size, bias=False)
        self.norm_m = _norm(4 * hidden)
        self.norm_cell = _norm(hidden)
        self.conv_cell = TwoFrameConv(hidden, hidden, kernel_size)
        self.conv_memory = TwoFrameConv(hidden, hidden, kernel_size)
        self.conv_last = nn.Conv3d(2 * hidden, hidden, 1)
        _initialise(self.conv_last)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, m: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the next hidden state, cell state and memory (B, n, 2, h, w).

        Args:
            x: Input (B, C, 2, h, w).
            h: Hidden state (B, n, 2, h, w).
            c: Cell state (B, n, 2, h, w).
            m: Memory (B, n, 2, h, w).
            history: All earlier cell states of this cell as tokens (B, K, n).
        """
        return self.step(
            self.norm_x(self.conv_x(x)),
            self.norm_h(self.conv_h(h)),
            self.norm_m(self.conv_m(m)),
            c,
            history,
            recall=_recall_plain,
            output=lambda both: self.conv_cell(both[:, : self.hidden]) + self.conv_memory(both[:, self.hidden :]),
        )

    def step(
        self,
        from_x: Tensor,
        from_h: Tensor,
        from_m: Tensor,
        c: Tensor,
        history: Tensor,
        *,
        recall: Callable[[Tensor, Tensor], Tensor],
        output: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the next hidden state, cell state and memory, given the normalised convolutions.

        Args:
            from_x: Normalised convolution of the input, (B, 7n, 2, h, w).
            from_h: Normalised convolution of the hidden state, (B, 4n, 2, h, w).
            from_m: Normalised convolution of the memory, (B or 1, 4n, 2, h, w).
            c: Cell state (B, n, 2, h, w).
            history: All earlier cell states of this cell as tokens (B, K, n).
            recall: Attention of queries (B, Q, n) to the history.
            output: Convolution of the new cell state and memory, joined (B, 2n, 2, h, w), for the output
                gate.
        """
        n = self.hidden
        recurrent_x, zigzag_x = from_x.split((4 * n, 3 * n), dim=1)
        i, g, r, o = (recurrent_x + from_h).chunk(4, dim=1)
        recalled = recall(_tokens(torch.sigmoid(r)), history).transpose(1, 2).reshape(c.shape)
        cell = self.norm_cell(c + recalled) + torch.sigmoid(i) * torch.tanh(g)
        i, g, f = zigzag_x.chunk(3, dim=1)
        i_m, f_m, g_m, m_m = from_m.chunk(4, dim=1)
        kept = torch.sigmoid(f + f_m + FORGET_BIAS) * torch.tanh(m_m)
        memory = kept + torch.sigmoid(i + i_m) * torch.tanh(g + g_m)
        both = torch.cat((cell, memory), dim=1)
        gate = torch.sigmoid(torch.tanh(o + output(both)))
        return torch.tanh(self.conv_last(both)) * gate, cell, memory


class E3DLSTM(NextFrameModel):
    """E3D-LSTM: stacked eidetic 3D LSTM cells that predict the next frame at each step and read it at the next.

    Source: the ICLR 2019 paper in the form of the authors' code. That code drops the new memory after each
    cell, so that all cells see a memory of zeros; `drops_memory` reproduces this, as in the published results.
    The SEVIR preset has a convolutional stem that no source describes (see `baselines.patches`).
    """

    loss_reduction = "sum"
    widths: ClassVar[dict[str, int]] = {"hidden": 1}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {"patch_size": 8, "stem_channels": 16},
        "sevir_lr": {"patch_size": 8},
        "icar_enso": {"patch_size": 4},
        "nbody_mnist": {"patch_size": 4},
        "moving_mnist": {"patch_size": 4},
        "tiny": {"hidden": (8, 8)},
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 64, 64, 64),
        kernel_size: int = 5,
        patch_size: int = 4,
        stem_channels: int = 0,
        drops_memory: bool = True,
        sampling: Sampling = "scheduled",
        sampling_rate: float = 2e-5,
        sampling_stop: float = 50_000,
        schedule_iterations: int | None = 80_000,
        time_reversed: bool = False,
        l1_weight: float = 1.0,
    ) -> None:
        """Builds the model.

        Args:
            input_shape: Shape (T, H, W, C) of the context.
            target_shape: Shape (T, H, W, C) of the forecast.
            hidden: Width of each layer; all the same, because one memory passes through all of them.
            kernel_size: Kernel of the cells' convolutions in space (odd).
            patch_size: Side of the square of pixels (or of stem outputs) that is folded into channels.
            stem_channels: Width of a stem that divides the grid by four before patching; 0 for none.
            drops_memory: Whether the memory is zero at every cell, as in the authors' code, instead of
                passing from layer to layer and from the top layer to the next step, as in the paper.
            sampling: Which frames training reads; see `SamplingSchedule.kind`.
            sampling_rate: See `SamplingSchedule.rate`.
            sampling_stop: See `SamplingSchedule.stop`.
            schedule_iterations: See `SamplingSchedule.iterations`.
            time_reversed: Whether every second step of training is on clips played backwards.
            l1_weight: Weight of the absolute errors in the loss; with 0, the loss is half the squared errors. As
                errors in normalised units are below 1, the authors' sum (weight 1) is close to an absolute error,
                and the forecast to a median, which for rain is often zero.

        Raises:
            ValueError: A grid size is not divisible by the patch, sizes do not fit together, or the weight is
                negative or not finite.
        """
        super().__init__(
            input_shape,
            target_shape,
            patch_size=patch_size,
            stem_channels=stem_channels,
            schedule=SamplingSchedule(sampling, sampling_rate, sampling_stop, iterations=schedule_iterations),
            time_reversed=time_reversed,
        )
        if not 0 <= l1_weight < math.inf:
            raise ValueError(f"{type(self).__name__}: l1_weight must be 0 or a positive number, got {l1_weight}")
        self.l1_weight = l1_weight
        widths = checked_stack(type(self).__name__, hidden, kernel_size)
        self.hidden = widths[0]
        self.drops_memory = drops_memory
        # If the memory is always zero, only the norm's shift has an effect.
        self.parameters_without_gradient = ("cells.*.conv_m.weight", "cells.*.norm_m.weight") if drops_memory else ()
        patch_channels = self.codec.patch_channels
        self.cells: Sequence[EideticLSTMCell] = nn.ModuleList(  # type: ignore[assignment]
            EideticLSTMCell(width if layer else patch_channels, width, kernel_size)
            for layer, width in enumerate(widths)
        )
        self.head = nn.Conv3d(self.hidden, patch_channels, (WINDOW, 1, 1))
        _initialise(self.head)

    def losses(
        self, context: Tensor, target: Tensor, mask: Tensor | None = None, truth: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the terms of one roll-out's loss: "l2", half the squared errors, and "l1".

        Both are sums over all steps, samples and known pixels; "l1" is that of absolute errors times `l1_weight`.
        Shapes and errors are those of `step_outputs`; missing pixels are treated as in `NextFrameModel.losses`.
        """
        truth = torch.cat((context, target), dim=1) if truth is None else truth
        error = known_error(self.step_outputs(context, target, mask), truth[:, 1:])
        return {"l2": error.square().sum() / 2, "l1": self.l1_weight * error.abs().sum()}

    def _zeros(self, clip: Tensor) -> Tensor:
        return clip.new_zeros(clip.shape[1], self.hidden, WINDOW, *self.codec.grid)

    def _emit(self, hidden: Tensor) -> Tensor:
        """Returns the frames of top hidden states (N, n, 2, h, w)."""
        return self.codec.decode(self.head(hidden).squeeze(2))

    def _roll(self, clip: Tensor, mask: Tensor | None, *, first_output: int = 0) -> Tensor:
        """Returns the predictions, time first, from step `first_output` (at most T_in - 1) on.

        Each frame is convolved once for the two windows that contain it, and all true frames in one batch.
        Products with padding are skipped, and a memory that is always zero is convolved once. Predictions that are
        not fed back are made in one batch; those not asked for are not made.
        """
        known, flags = (self.t_in, None) if mask is None else truths_by_step(mask, self.t_in, self.t_out)
        cells = self.cells
        reads = _WindowReader(cells[0])
        from_known = reads.known(each_frame(self.codec.encode, clip[:known]))
        over_x = [_kernels(cell.conv_x) if layer else None for layer, cell in enumerate(cells)]
        over_h = [_kernels(cell.conv_h) for cell in cells]
        output = [_kernels(cell.conv_cell, cell.conv_memory) for cell in cells]
        over_m = [_kernels(cell.conv_m) for cell in cells] if not self.drops_memory else []
        empty = self._zeros(clip)
        # The full convolution, although its input is zero, so that its weights get their (zero) gradient.
        from_no_memory = [cell.norm_m(cell.conv_m(empty[:1])) for cell in cells] if self.drops_memory else []
        hidden, cell_states, memory = [empty] * len(cells), [empty] * len(cells), empty
        history = [_tokens(empty)] * len(cells)
        tops: list[Tensor] = []
        fed_back: list[Tensor] = []
        for t in range(self.t_in + self.t_out - 1):
            if t < known:
                from_x = from_known[t]
            else:
                fed_back.append(self._emit(tops[-1]))
                frame = fed_back[-1] if flags is None else mixed(flags[:, t - known], clip[t], fed_back[-1])
                from_x = reads.next(self.codec.encode(frame))
            for layer, cell in enumerate(cells):
                kernels = over_x[layer]
                if kernels is not None:
                    from_x = cell.norm_x(kernels.convolve(hidden[layer - 1]))
                if t:
                    history[layer] = torch.cat((history[layer], _tokens(cell_states[layer])), dim=1)
                hidden[layer], cell_states[layer], memory = cell.step(
                    from_x,
                    cell.norm_h(over_h[layer].convolve(hidden[layer])),
                    from_no_memory[layer] if self.drops_memory else cell.norm_m(over_m[layer].convolve(memory)),
                    cell_states[layer],
                    history[layer],
                    recall=_recall,
                    output=output[layer].convolve,
                )
            tops.append(hidden[-1])
        # The predictions of steps known-1 to the last but one were fed back; the others remain to be made.
        made = each_frame(self._emit, torch.stack((*tops[first_output : known - 1], tops[-1])))
        return torch.cat((made[:-1], torch.stack(fed_back), made[-1:])) if fed_back else made

    def _roll_plain(self, clip: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the predictions of all steps, time first, one window through all layers at a time."""
        known, flags = (self.t_in, None) if mask is None else truths_by_step(mask, self.t_in, self.t_out)
        empty = self._zeros(clip)
        hidden, cell_states, memory = [empty] * len(self.cells), [empty] * len(self.cells), empty
        history = [_tokens(empty)] * len(self.cells)
        predictions: list[Tensor] = []
        before: Tensor | None = None
        for t in range(self.t_in + self.t_out - 1):
            frame = clip[t] if t < known else predictions[-1]
            if t >= known and flags is not None:
                frame = mixed(flags[:, t - known], clip[t], frame)
            patches = self.codec.encode(frame)
            x = torch.stack((torch.zeros_like(patches) if before is None else before, patches), dim=2)
            before = patches
            for layer, cell in enumerate(self.cells):
                if t:
                    history[layer] = torch.cat((history[layer], _tokens(cell_states[layer])), dim=1)
                hidden[layer], cell_states[layer], made = cell(
                    x, hidden[layer], cell_states[layer], memory, history[layer]
                )
                memory = memory if self.drops_memory else made
                x = hidden[layer]
            predictions.append(self._emit(x))
        return torch.stack(predictions)


class _WindowReader:
    """The first layer's input convolution over the sliding window, with each frame convolved once.

    A frame is the second of one window and the first of the next one. Its product with the kernel's first tap
    serves both: as the second output frame of its own window, and within the first one of the next window.
    """

    def __init__(self, cell: EideticLSTMCell) -> None:
        self.convolve = RepeatedConv(torch.cat(cell.conv_x.weight.unbind(2)))
        self.norm = cell.norm_x
        # Before the first frame there is a frame of zeros, which contributes nothing.
        self.first_tap = cell.conv_x.weight.new_zeros(())

    def _taps(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.convolve(patches).chunk(2, dim=1)
        return first, second

    def known(self, patches: Tensor) -> Tensor:
        """Returns the first layer's convolutions (T, B, 7n, 2, h, w) of the leading frames (T, B, F, h, w)."""
        first, second = (
            part.reshape(*patches.shape[:2], *part.shape[1:]) for part in self._taps(patches.flatten(0, 1))
        )
        earlier = torch.cat((self.first_tap.expand(first[:1].shape), first[:-1]))
        self.first_tap = first[-1]
        return each_frame(self.norm, torch.stack((earlier + second, first), dim=3))

    def next(self, patches: Tensor) -> Tensor:
        """Returns the first layer's convolution (B, 7n, 2, h, w) of the next frame (B, F, h, w)."""
        first, second = self._taps(patches)
        volume = torch.stack((self.first_tap + second, first), dim=2)
        self.first_tap = first
        return self.norm(volume)

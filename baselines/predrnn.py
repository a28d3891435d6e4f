"""PredRNN: an LSTM over space and time whose second memory zigzags through the layers.

Papers: Y. Wang et al., "PredRNN: Recurrent Neural Networks for Predictive Learning using Spatiotemporal
LSTMs", NeurIPS 2017 (v1); Y. Wang et al., "PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive
Learning", TPAMI 2022, arXiv:2103.09504 (v2: memory decoupling and reverse scheduled sampling, both options
here).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.convolutions import RepeatedConv
from baselines.masking import filled, known_mse
from baselines.rollout import NextFrameModel, each_frame
from baselines.sampling import Sampling, SamplingSchedule, mixed, truths_by_step
from baselines.shapes import checked_stack
from baselines.weights import Config, as_mapping, check_config, load_strictly

FORGET_BIAS = 1.0


class CellStep(NamedTuple):
    """The result of one step of a cell: its states (B, n, h, w), and the increments of both memories."""

    hidden: Tensor
    cell: Tensor
    memory: Tensor
    delta_cell: Tensor
    delta_memory: Tensor


class _Layers(NamedTuple):
    """The convolutions of a cell, each with its norm if it has one."""

    conv_x: Callable[[Tensor], Tensor]
    conv_h: Callable[[Tensor], Tensor]
    conv_m: Callable[[Tensor], Tensor]
    conv_o: Callable[[Tensor], Tensor]
    conv_last: Callable[[Tensor], Tensor]


class SpatioTemporalLSTMCell(nn.Module):
    """A cell with a memory of its own, carried through time, and one shared with the other layers.

    Source: PredRNN v1 (spatiotemporal LSTM). All convolutions are without bias and the forget gates have a
    constant bias of 1, as in the authors' code (github.com/thuml/predrnn-pytorch), whose attribute names are
    kept so that its weights load.
    """

    def __init__(
        self, in_channels: int, hidden: int, grid: tuple[int, int], *, kernel_size: int, layer_norm: bool
    ) -> None:
        """Builds a cell for states of `hidden` channels on a grid (h, w)."""
        super().__init__()
        self.hidden = hidden

        def convolution(c_in: int, c_out: int) -> nn.Sequential:
            conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False)
            return nn.Sequential(conv, nn.LayerNorm((c_out, *grid))) if layer_norm else nn.Sequential(conv)

        self.conv_x = convolution(in_channels, 7 * hidden)
        self.conv_h = convolution(hidden, 4 * hidden)
        self.conv_m = convolution(hidden, 3 * hidden)
        self.conv_o = convolution(2 * hidden, hidden)
        self.conv_last = nn.Conv2d(2 * hidden, hidden, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, m: Tensor) -> CellStep:
        """Returns one step on input (B, C, h, w) and states (B, n, h, w)."""
        layers = _Layers(self.conv_x, self.conv_h, self.conv_m, self.conv_o, self.conv_last)
        return self.step(layers, layers.conv_x(x), h, c, m)

    def repeated(self) -> _Layers:
        """Returns the convolutions, optimised for many steps with the same weights."""

        def repeated(convolution: nn.Sequential) -> Callable[[Tensor], Tensor]:
            conv = RepeatedConv(convolution[0].weight)  # type: ignore[arg-type]
            norms = convolution[1:]
            return (lambda x: norms(conv(x))) if norms else conv

        conv_x, conv_h, conv_m, conv_o = map(repeated, (self.conv_x, self.conv_h, self.conv_m, self.conv_o))
        return _Layers(conv_x, conv_h, conv_m, conv_o, self.conv_last)

    def step(self, layers: _Layers, from_x: Tensor, h: Tensor, c: Tensor, m: Tensor) -> CellStep:
        """Returns one step, given the input convolution's output (B, 7n, h, w)."""
        n = self.hidden
        temporal_x, spatial_x, output_x = from_x.split((3 * n, 3 * n, n), dim=1)
        temporal_h, output_h = layers.conv_h(h).split((3 * n, n), dim=1)
        i, f, g = (temporal_x + temporal_h).chunk(3, dim=1)
        delta_cell = torch.sigmoid(i) * torch.tanh(g)
        cell = torch.sigmoid(f + FORGET_BIAS) * c + delta_cell
        i, f, g = (spatial_x + layers.conv_m(m)).chunk(3, dim=1)
        delta_memory = torch.sigmoid(i) * torch.tanh(g)
        memory = torch.sigmoid(f + FORGET_BIAS) * m + delta_memory
        both = torch.cat((cell, memory), dim=1)
        output = torch.sigmoid(output_x + output_h + layers.conv_o(both))
        return CellStep(output * torch.tanh(layers.conv_last(both)), cell, memory, delta_cell, delta_memory)


class PredRNN(NextFrameModel):
    """PredRNN: stacked spatio-temporal LSTM cells that predict the next frame at each step and read it at the next.

    Source: PredRNN v1 (spatiotemporal memory flow); for the options arXiv:2103.09504. The SEVIR preset has a
    convolutional stem that no source describes (see `baselines.patches`).
    """

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
        hidden: Sequence[int] = (128, 128, 128, 128),
        kernel_size: int = 5,
        patch_size: int = 4,
        stem_channels: int = 0,
        layer_norm: bool = False,
        memory_decoupling: bool = False,
        decoupling_weight: float = 0.1,
        sampling: Sampling = "scheduled",
        sampling_rate: float = 2e-5,
        sampling_stop: float = 50_000,
        reverse_steps: Sequence[float] = (25_000, 50_000),
        reverse_alpha: float = 2_500,
        schedule_iterations: int | None = 80_000,
        time_reversed: bool = False,
    ) -> None:
        """Builds the model.

        Args:
            input_shape: Shape (T, H, W, C) of the context.
            target_shape: Shape (T, H, W, C) of the forecast.
            hidden: Width of each layer; all the same, because one memory passes through all of them.
            kernel_size: Kernel of the cells' convolutions (odd).
            patch_size: Side of the square of pixels (or of stem outputs) that is folded into channels.
            stem_channels: Width of a stem that divides the grid by four before patching; 0 for none.
            layer_norm: Whether the cells normalise after their convolutions.
            memory_decoupling: Whether the loss pushes the increments of the two memories apart (v2).
            decoupling_weight: Weight of that term.
            sampling: Which frames training reads: "scheduled" (v1), "reverse_scheduled" (v2) or "none".
            sampling_rate: See `SamplingSchedule.rate`.
            sampling_stop: See `SamplingSchedule.stop`.
            reverse_steps: See `SamplingSchedule.reverse_steps`.
            reverse_alpha: See `SamplingSchedule.reverse_alpha`.
            schedule_iterations: See `SamplingSchedule.iterations`.
            time_reversed: Whether every second step of training is on clips played backwards.

        Raises:
            ValueError: A grid size is not divisible by the patch, or sizes do not fit together.
        """
        super().__init__(
            input_shape,
            target_shape,
            patch_size=patch_size,
            stem_channels=stem_channels,
            schedule=SamplingSchedule(
                sampling,
                sampling_rate,
                sampling_stop,
                tuple(reverse_steps),
                reverse_alpha,
                schedule_iterations,
            ),
            time_reversed=time_reversed,
        )
        widths = checked_stack(type(self).__name__, hidden, kernel_size)
        self.hidden = widths[0]
        self.decoupling_weight = decoupling_weight
        patch_channels = self.codec.patch_channels
        self.cell_list: Sequence[SpatioTemporalLSTMCell] = nn.ModuleList(  # type: ignore[assignment]
            SpatioTemporalLSTMCell(
                width if layer else patch_channels,
                width,
                self.codec.grid,
                kernel_size=kernel_size,
                layer_norm=layer_norm,
            )
            for layer, width in enumerate(widths)
        )
        self.conv_last = nn.Conv2d(self.hidden, patch_channels, 1, bias=False)
        self.adapter = nn.Conv2d(self.hidden, self.hidden, 1, bias=False) if memory_decoupling else None

    def losses(
        self, context: Tensor, target: Tensor, mask: Tensor | None = None, truth: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the terms of one roll-out's loss: "mse" over all steps, and weighted "decoupling" if enabled.

        Shapes and errors are those of `step_outputs`; missing pixels are treated as in `NextFrameModel.losses`.
        """
        clip = torch.cat((context, target), dim=1)
        truth = clip if truth is None else truth
        steps: list[CellStep] | None = None if self.adapter is None else []
        roll = self._roll_plain if self.plain else self._roll
        predictions = roll(self.codec.open(filled(clip)), mask, steps=steps)
        losses = {"mse": known_mse(predictions, self.codec.open(truth)[1:])}
        if steps is not None:
            delta_cell = torch.cat([step.delta_cell for step in steps])
            delta_memory = torch.cat([step.delta_memory for step in steps])
            share = (~torch.isnan(truth[:, 1:])).to(delta_cell.dtype).flatten(1).mean(1)
            losses["decoupling"] = self.decoupling_weight * self.decoupling_loss(delta_cell, delta_memory, share)
        return losses

    def decoupling_loss(self, delta_cell: Tensor, delta_memory: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the mean absolute cosine between increments (N, n, h, w) of the two memories.

        Args:
            delta_cell: Increments of the cells' own memories; N is steps times layers times batch.
            delta_memory: Increments of the shared memory.
            weight: Weight of each sequence (B,) of the batch, such as its share of known pixels; None for equal.

        Raises:
            ValueError: The model was built without memory decoupling.

        Source: arXiv:2103.09504 (memory decoupling); the cosine runs over the grid, per channel, after a
        shared convolution (1 x 1).
        """
        if self.adapter is None:
            raise ValueError("PredRNN: decoupling_loss needs memory_decoupling=True")
        adapted = [self.adapter(delta).flatten(2) for delta in (delta_cell, delta_memory)]
        unit = [F.normalize(delta, dim=2) for delta in adapted]
        cosine = F.cosine_similarity(unit[0], unit[1], dim=2).abs().mean(1)
        if weight is None:
            return cosine.mean()
        total = weight.sum()
        return (cosine.unflatten(0, (-1, len(weight))).mean(0) * weight).sum() / total.masked_fill(total == 0, 1)

    def _zeros(self, clip: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Returns the initial hidden states and cell states of all layers, and the initial memory."""
        empty = clip.new_zeros(clip.shape[1], self.hidden, *self.codec.grid)
        return [empty] * len(self.cell_list), [empty] * len(self.cell_list), empty

    def _roll(
        self,
        clip: Tensor,
        mask: Tensor | None,
        *,
        first_output: int = 0,
        steps: list[CellStep] | None = None,
    ) -> Tensor:
        """Returns the predictions of an opened clip, time first, from step `first_output` < T_in on.

        The leading true frames pass the codec and the first layer's input convolution in one batch. Predictions
        that are not fed back are made in one batch; those not asked for are not made. The steps of the cells are
        appended to `steps`.
        """
        known, flags = (self.t_in, None) if mask is None else truths_by_step(mask, self.t_in, self.t_out)
        hidden, cell, memory = self._zeros(clip)
        cells = [(block, block.repeated()) for block in self.cell_list]
        conv_x = cells[0][1].conv_x
        from_known = each_frame(conv_x, each_frame(self.codec.encode, clip[:known]))
        tops: list[Tensor] = []
        fed_back: list[Tensor] = []
        for t in range(self.t_in + self.t_out - 1):
            if t < known:
                from_x = from_known[t]
            else:
                fed_back.append(self.codec.decode(self.conv_last(tops[-1])))
                frame = fed_back[-1] if flags is None else mixed(flags[:, t - known], clip[t], fed_back[-1])
                from_x = conv_x(self.codec.encode(frame))
            for layer, (block, layers) in enumerate(cells):
                if layer:
                    from_x = layers.conv_x(hidden[layer - 1])
                made = block.step(layers, from_x, hidden[layer], cell[layer], memory)
                hidden[layer], cell[layer], memory = made[:3]
                if steps is not None:
                    steps.append(made)
            tops.append(hidden[-1])
        # The predictions of steps known-1 to the last but one were fed back; the others remain to be made.
        remaining = torch.stack((*tops[first_output : known - 1], tops[-1]))
        made_last = each_frame(self.codec.decode, each_frame(self.conv_last, remaining))
        if not fed_back:
            return made_last
        return torch.cat((made_last[:-1], torch.stack(fed_back), made_last[-1:]))

    def _roll_plain(self, clip: Tensor, mask: Tensor | None, *, steps: list[CellStep] | None = None) -> Tensor:
        """Returns the predictions of all steps, time first, one frame through all layers at a time."""
        known, flags = (self.t_in, None) if mask is None else truths_by_step(mask, self.t_in, self.t_out)
        hidden, cell, memory = self._zeros(clip)
        predictions: list[Tensor] = []
        for t in range(self.t_in + self.t_out - 1):
            frame = clip[t] if t < known else predictions[-1]
            if t >= known and flags is not None:
                frame = mixed(flags[:, t - known], clip[t], frame)
            x = self.codec.encode(frame)
            for layer, block in enumerate(self.cell_list):
                made = block(x, hidden[layer], cell[layer], memory)
                hidden[layer], cell[layer], memory = made[:3]
                x = hidden[layer]
                if steps is not None:
                    steps.append(made)
            predictions.append(self.codec.decode(self.conv_last(x)))
        return torch.stack(predictions)


def load_upstream(
    config: Config,
    state_dict: Mapping[str, Tensor],
    *,
    input_shape: Sequence[int],
    target_shape: Sequence[int],
) -> PredRNN:
    """Returns a PredRNN with the weights of the authors' implementation.

    Args:
        config: Hyperparameters under the names of github.com/thuml/predrnn-pytorch: `num_hidden`,
            `filter_size`, `patch_size`, `layer_norm`, and optionally `decouple_beta` and
            `reverse_scheduled_sampling`.
        state_dict: Weights under the authors' names; those of v2 have an `adapter`. A checkpoint of their
            trainer, which has the weights under `net_param`, is taken too.
        input_shape: Shape (T, H, W, C) of the context.
        target_shape: Shape (T, H, W, C) of the forecast.

    Raises:
        ValueError: The configuration lacks a key, asks for what the model does not have, or contradicts the
            shapes; or weights are missing, left over or of another shape (all are listed).
    """
    config = as_mapping(config)
    weights: Mapping[str, Tensor] = state_dict.get("net_param", state_dict)  # type: ignore[assignment]
    t_in, height, width, channels = input_shape
    given_width = config.get("img_width")
    check_config(
        config,
        required=("num_hidden", "filter_size", "patch_size", "layer_norm"),
        implied={
            "stride": 1,
            "img_channel": channels,
            # The authors' images are square; for a rectangle, either side is accepted.
            "img_width": given_width if given_width in (height, width) else width,
            "input_length": t_in,
            "total_length": t_in + target_shape[0],
        },
    )
    hidden = config["num_hidden"]
    model = PredRNN(
        input_shape,
        target_shape,
        # The authors' command line passes the widths as one string.
        hidden=[int(width) for width in hidden.split(",")] if isinstance(hidden, str) else hidden,
        kernel_size=config["filter_size"],
        patch_size=config["patch_size"],
        layer_norm=bool(config["layer_norm"]),
        memory_decoupling="adapter.weight" in weights,
        decoupling_weight=config.get("decouple_beta", 0.1),
        sampling="reverse_scheduled" if config.get("reverse_scheduled_sampling") else "scheduled",
    )
    load_strictly(model, weights)
    return model

"""PhyDNet: a cell that steps a learned partial differential equation, beside a ConvLSTM for the rest.

Paper: V. Le Guen, N. Thome, "Disentangling Physical Dynamics from Unknown Factors for Unsupervised Video
Prediction", CVPR 2020 (arXiv:2003.01460). The kernels' moments follow Z. Long et al., "PDE-Net 2.0"
(arXiv:1812.04426).
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from baselines.convlstm import ConvLSTMCell, State
from baselines.masking import filled, joined_truth, known_mse
from baselines.moments import k2m
from baselines.phycell import PHY_GROUPS, PhyCell
from baselines.rollout import HasReference, each_frame, frames_at_once
from baselines.shapes import checked_shapes, checked_sizes, require_divisible
from baselines.weights import Config, as_mapping, check_config, load_strictly

# Fixed in the authors' code (github.com/vincent-leguen/PhyDNet); the stem has half the width of the code.
CODE_CHANNELS = 64
CODE_GROUPS = 16
LEAKY_SLOPE = 0.2
# In the authors' code, teacher forcing falls by 0.003 per epoch, and the default run has 1001 epochs.
TEACHER_FORCING_SHARE = 1 / (0.003 * 1001)

Cell = TypeVar("Cell", bound=nn.Module)


def _chain(prefix: str, *layers: nn.Module) -> nn.Sequential:
    """Returns the layers in sequence, under the authors' names: the prefix and a number from 1."""
    return nn.Sequential(OrderedDict((f"{prefix}{number}", layer) for number, layer in enumerate(layers, 1)))


def _down(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Returns a convolution that divides the grid by its stride, with group norm and activation."""
    return _normed(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), out_channels)


def _up(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Returns a transposed convolution that multiplies the grid by its stride, with norm and activation."""
    return _normed(_transposed(in_channels, out_channels, stride), out_channels)


def _normed(conv: nn.Module, channels: int) -> nn.Sequential:
    main = nn.Sequential(conv, nn.GroupNorm(CODE_GROUPS, channels), nn.LeakyReLU(LEAKY_SLOPE))
    return nn.Sequential(OrderedDict(main=main))


def _transposed(in_channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)


class _Cells(nn.Module, Generic[Cell]):
    """The cells of a branch, under the authors' name."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        super().__init__()
        self.cell_list: Sequence[Cell] = nn.ModuleList(cells)  # type: ignore[assignment]


class _States(NamedTuple):
    """The states of all cells of both branches; the lists are updated in place."""

    phy: list[Tensor]
    conv: list[State]


class PhyDNet(HasReference):
    """PhyDNet: PhyCells and a ConvLSTM side by side in a code space; their sum is decoded to the next frame.

    Forecasts pass a sigmoid, so normalised units should lie in [0, 1].

    Source: arXiv:2003.01460 (two-branch architecture), with the layers of the authors' code. The SEVIR
    preset's coarser code is our choice (no source gives its downsampling): it has the published parameters
    and 8.7 % more operations.
    """

    widths: ClassVar[dict[str, int]] = {"conv_hidden": 32, "code_channels": 32}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {"strides": (2, 2, 2), "conv_hidden": (256, 256, 256, 64)},
        "sevir_lr": {"strides": (2, 1, 2), "conv_hidden": (128, 128, 64)},
        "icar_enso": {"strides": (2, 1, 2), "conv_hidden": (128, 128, 64)},
        "nbody_mnist": {"strides": (2, 1, 2), "conv_hidden": (128, 128, 64)},
        "moving_mnist": {"strides": (2, 1, 2), "conv_hidden": (128, 128, 64)},
        "tiny": {"conv_hidden": (16, 64)},
    }
    verifies_context = True  # the warm-up steps have a loss, too
    forecast_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by."""
        return math.prod(hyperparameters["strides"])

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        strides: Sequence[int] = (2, 1, 2),
        phy_hidden: Sequence[int] = (49,),
        phy_kernel: int = 7,
        conv_hidden: Sequence[int] = (128, 128, 64),
        code_channels: int = CODE_CHANNELS,
        teacher_forcing_share: float = TEACHER_FORCING_SHARE,
    ) -> None:
        """Builds the model.

        Args:
            input_shape: Shape (T, H, W, C) of the context.
            target_shape: Shape (T, H, W, C) of the forecast.
            strides: Downsampling of the image encoder's three convolutions.
            phy_hidden: Filters of each PhyCell, a multiple of 7 and at most `phy_kernel` squared.
            phy_kernel: Kernel of those filters (odd).
            conv_hidden: Width of each ConvLSTM layer; the last one must be that of the code.
            code_channels: Width of the code, a multiple of 32; the image encoder begins with half of it.
            teacher_forcing_share: Share of the run over which the probability of teacher forcing falls from 1
                to 0.

        Raises:
            ValueError: A grid size is not divisible by the product of the strides, sizes do not fit together, or
                PhyCell's group norm would see groups of one value.
        """
        super().__init__()
        name = type(self).__name__
        source, target = checked_shapes(name, input_shape, target_shape, feeds_back=True)
        strides = checked_sizes(name, "strides", strides, count=3)
        phy_hidden = checked_sizes(name, "phy_hidden", phy_hidden)
        conv_hidden = checked_sizes(name, "conv_hidden", conv_hidden)
        require_divisible(name, "height", source[1], math.prod(strides))
        require_divisible(name, "width", source[2], math.prod(strides))
        if phy_kernel % 2 == 0:
            raise ValueError(f"{name}: phy_kernel must be odd, got {phy_kernel}")
        for filters in phy_hidden:
            require_divisible(name, "phy_hidden", filters, PHY_GROUPS)
            if filters > phy_kernel**2:
                raise ValueError(f"{name}: phy_hidden must be at most phy_kernel^2 = {phy_kernel**2}, got {filters}")
            if filters == PHY_GROUPS and source[1] == source[2] == math.prod(strides):
                raise ValueError(
                    f"{name}: phy_hidden={filters} on a code of one pixel (strides {strides}) leaves its group norm "
                    f"one value per group; expected two or more: phy_hidden={2 * PHY_GROUPS}, or smaller strides"
                )
        checked_sizes(name, "code_channels", (code_channels,))
        require_divisible(name, "code_channels", code_channels, 2 * CODE_GROUPS)
        stem = code_channels // 2
        if conv_hidden[-1] != code_channels:
            raise ValueError(f"{name}: conv_hidden must end with code_channels={code_channels}, got {conv_hidden}")
        self.t_in, self.t_out = source[0], target[0]
        pixels = source[1] * source[2]
        self.largest_frame = max(
            stem * pixels // strides[0] ** 2,
            4 * max(conv_hidden) * pixels // math.prod(strides) ** 2,
        )
        self.teacher_forcing_share = teacher_forcing_share
        channels, code = source[3], code_channels
        first, second, third = strides
        self.encoder_E = _chain("c", _down(channels, stem, first), _down(stem, stem, second), _down(stem, code, third))
        self.encoder_Ep = _chain("c", _down(code, code), _down(code, code))
        self.encoder_Er = _chain("c", _down(code, code), _down(code, code))
        self.decoder_Dp = _chain("upc", _up(code, code), _up(code, code))
        self.decoder_Dr = _chain("upc", _up(code, code), _up(code, code))
        self.decoder_D = _chain(
            "upc", _up(code, stem, third), _up(stem, stem, second), _transposed(stem, channels, first)
        )
        self.phycell = _Cells(PhyCell(filters, phy_kernel, code) for filters in phy_hidden)
        self.convcell = _Cells(ConvLSTMCell(c_in, c) for c_in, c in pairwise((code, *conv_hidden)))

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C) of a context (B, T_in, H, W, C)."""
        if self.plain:
            # A slice of the stack of all images: a tracing counter then counts the warm-up images too, as the
            # published figures do.
            return self._roll_plain(_time_first(context), feeds_back=True).permute(1, 0, 3, 4, 2)[:, self.t_in - 1 :]
        return self._roll(_time_first(context), first_output=self.t_in - 1).permute(1, 0, 3, 4, 2)

    def step_outputs(self, context: Tensor, target: Tensor | None = None, *, teacher_forcing: bool = False) -> Tensor:
        """Returns the images (B, T_in + T_out - 1, H, W, C) of all steps; step t predicts frame t + 1.

        Args:
            context: Context (B, T_in, H, W, C), read by the first T_in steps.
            target: Target (B, T_out, H, W, C); needed with teacher forcing, which reads missing pixels (NaN) as 0.
            teacher_forcing: Whether the later steps read the truth instead of the previous image.

        Raises:
            ValueError: Teacher forcing without a target.
        """
        frames = context
        if teacher_forcing:
            if target is None:
                raise ValueError("PhyDNet: teacher_forcing needs a target")
            frames = torch.cat((context, filled(target[:, :-1])), dim=1)
        if self.plain:
            images = self._roll_plain(_time_first(frames), feeds_back=not teacher_forcing)
        else:
            images = self._roll(_time_first(frames), first_output=0)
        return images.permute(1, 0, 3, 4, 2)

    def moment_loss(self) -> Tensor:
        """Returns how far the first PhyCell's filters are from being single derivatives.

        Filter k of every input channel should have the single moment (k // 7, k % 7), for 7 x 7 filters. The
        squared differences are averaged over filters and moments, and summed over the code's channels.

        Source: arXiv:2003.01460 (moment loss), with the weighting of the authors' code.
        """
        weight = self.phycell.cell_list[0].F.conv1.weight
        filters, _, size, _ = weight.shape
        wanted = torch.eye(size**2, dtype=weight.dtype, device=weight.device)[:filters].view(filters, 1, size, size)
        return (k2m(weight) - wanted).square().mean(dim=(0, 2, 3)).sum()

    def losses(
        self, context: Tensor, target: Tensor, *, teacher_forcing: bool, context_known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the loss terms: "mse" over known pixels times the number of steps (with warm-up), and "moments"."""
        images = self.step_outputs(context, target, teacher_forcing=teacher_forcing)
        truth = joined_truth(context, target, context_known)[:, 1:]
        return {"mse": known_mse(images, truth) * truth.shape[1], "moments": self.moment_loss()}

    def teacher_forcing_probability(self, step: int, total_steps: int) -> float:
        """Returns the probability that a batch at a step (from 0) reads the truth at all steps.

        Source: in the authors' code it falls by 0.003 per epoch, that is over the first third of its 1001
        epochs. Here it falls per step, over the same share of the current run.
        """
        span = self.teacher_forcing_share * total_steps
        return max(0.0, 1.0 - step / span) if span > 0 else 0.0

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, context_known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the terms of the loss; a draw from torch's generator decides on teacher forcing."""
        forced = torch.rand(()).item() < self.teacher_forcing_probability(step, total_steps)
        return self.losses(context, target, teacher_forcing=forced, context_known=context_known)

    def _zeros(self, code: Tensor) -> _States:
        """Returns the initial states on the batch and grid of a code (B, C, h, w)."""
        cells = self.phycell.cell_list, self.convcell.cell_list
        return _States([torch.zeros_like(code) for _ in cells[0]], [cell.zeros(code) for cell in cells[1]])

    def _roll(self, frames: Tensor, *, first_output: int) -> Tensor:
        """Returns the images from step `first_output` on, time first; frames (T, B, C, H, W) are read first.

        All layers but the recurrent convolutions process many frames in one batch.
        """
        states: _States | None = None
        images = []
        at_once = frames_at_once(frames, self.largest_frame)
        for start in range(0, len(frames), at_once):
            states, codes = self._read(frames[start : start + at_once], states)
            wanted = max(0, first_output - start)
            if wanted < len(codes[0]):
                images.append(self._decode(*(code[wanted:] for code in codes)))
        for _ in range(self.t_in + self.t_out - 1 - len(frames)):
            states, codes = self._read(images[-1][-1:], states)
            images.append(self._decode(*codes))
        return torch.cat(images)

    def _read(self, frames: Tensor, states: _States | None) -> tuple[_States, tuple[Tensor, Tensor]]:
        """Returns the states after known frames (T, B, C, H, W), and both branches' codes (T, B, C, h, w)."""
        shared = each_frame(self.encoder_E, frames)
        phy, conv = each_frame(self.encoder_Ep, shared), each_frame(self.encoder_Er, shared)
        if states is None:
            states = self._zeros(phy[0])
        for layer, phy_cell in enumerate(self.phycell.cell_list):
            phy = phy_cell.run(phy, states.phy[layer])
            states.phy[layer] = phy[-1]
        for layer, cell in enumerate(self.convcell.cell_list):
            conv, states.conv[layer] = cell.run(conv, states.conv[layer], len(conv))
        return states, (phy, conv)

    def _decode(self, phy: Tensor, conv: Tensor) -> Tensor:
        """Returns the images (T, B, C, H, W) of both branches' codes (T, B, C, h, w)."""
        shared = each_frame(self.decoder_Dp, phy) + each_frame(self.decoder_Dr, conv)
        return torch.sigmoid(each_frame(self.decoder_D, shared))

    def _roll_plain(self, frames: Tensor, *, feeds_back: bool) -> Tensor:
        """Returns the images of all steps, time first, one frame through the whole model at a time."""
        states: _States | None = None
        images: list[Tensor] = []
        for t in range(self.t_in + self.t_out - 1):
            shared = self.encoder_E(images[-1] if feeds_back and t >= self.t_in else frames[t])
            phy, conv = self.encoder_Ep(shared), self.encoder_Er(shared)
            if states is None:
                states = self._zeros(phy)
            for layer, phy_cell in enumerate(self.phycell.cell_list):
                phy = states.phy[layer] = phy_cell(phy, states.phy[layer])
            for layer, cell in enumerate(self.convcell.cell_list):
                states.conv[layer] = cell(conv, states.conv[layer])
                conv = states.conv[layer][0]
            images.append(torch.sigmoid(self.decoder_D(self.decoder_Dp(phy) + self.decoder_Dr(conv))))
        return torch.stack(images)


def _time_first(frames: Tensor) -> Tensor:
    """Returns frames (B, T, H, W, C) as (T, B, C, H, W)."""
    return frames.permute(1, 0, 4, 2, 3)


# The strides behind each ratio of image to code: the authors' model, and the two coarser ones fitted to
# SEVIR's size.
STRIDES_BY_RATIO = {4: (2, 1, 2), 8: (2, 2, 2), 12: (3, 2, 2)}


def load_upstream(
    config: Config,
    state_dict: Mapping[str, Tensor],
    *,
    input_shape: Sequence[int],
    target_shape: Sequence[int],
) -> PhyDNet:
    """Returns a PhyDNet with the weights of the authors' implementation.

    Args:
        config: Hyperparameters under the names of github.com/vincent-leguen/PhyDNet: `F_hidden`,
            `phy_kernel`, `conv_hidden`, and optionally `input_shape` (the grid (h, w) of the code),
            `phy_input_dim`, `tin`, `tout`.
        state_dict: Weights under the authors' names.
        input_shape: Shape (T, H, W, C) of the context.
        target_shape: Shape (T, H, W, C) of the forecast.

    Raises:
        ValueError: The configuration lacks a key or contradicts the shapes; or weights are missing, left over
            or of another shape (all are listed).
    """
    config = as_mapping(config)
    t_in, height, width, _ = input_shape
    check_config(
        config,
        required=("F_hidden", "phy_kernel", "conv_hidden"),
        implied={"tin": t_in, "tout": target_shape[0], "phy_input_dim": CODE_CHANNELS},
    )
    code_height, code_width = config.get("input_shape", (height // 4, width // 4))
    ratio = height // code_height
    if (code_height * ratio, code_width * ratio) != (height, width) or ratio not in STRIDES_BY_RATIO:
        raise ValueError(
            f"the configuration does not fit: input_shape is {(code_height, code_width)}, expected "
            f"{(height, width)} divided by one of {', '.join(map(str, STRIDES_BY_RATIO))}"
        )
    kernel = config["phy_kernel"]
    model = PhyDNet(
        input_shape,
        target_shape,
        strides=STRIDES_BY_RATIO[ratio],
        phy_hidden=config["F_hidden"],
        phy_kernel=kernel if isinstance(kernel, int) else kernel[0],
        conv_hidden=config["conv_hidden"],
    )
    load_strictly(model, state_dict)
    return model

"""PhyCell: a recurrent cell that steps a learned partial differential equation and corrects it towards its input.

Paper: V. Le Guen, N. Thome, "Disentangling Physical Dynamics from Unknown Factors for Unsupervised Video
Prediction", CVPR 2020 (arXiv:2003.01460), as in the authors' code (github.com/vincent-leguen/PhyDNet).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.convolutions import RepeatedConv
from baselines.rollout import each_frame

PHY_GROUPS = 7


class _Derivatives(nn.Module):
    """The right-hand side of the learned equation: a linear mix of filters that are kept near derivatives."""

    def __init__(self, hidden: int, kernel_size: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, kernel_size, padding=kernel_size // 2)
        # The authors' name; it is a group norm.
        self.bn1 = nn.GroupNorm(PHY_GROUPS, hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(h)))


class PhyCell(nn.Module):
    """A cell that steps its state by a learned equation and corrects it towards the input by a learned gain.

    Source: arXiv:2003.01460 (PhyCell: prediction and correction); the gain also sees the previous state.
    """

    def __init__(self, hidden: int, kernel_size: int, channels: int) -> None:
        """Builds a cell of `channels` channels with `hidden` filters."""
        super().__init__()
        self.F = _Derivatives(hidden, kernel_size, channels)
        self.convgate = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Returns the state (B, C, h, w) after one step on an input (B, C, h, w)."""
        return self._correct(x, h, self.convgate(torch.cat((x, h), dim=1)))

    def run(self, inputs: Tensor, h: Tensor) -> Tensor:
        """Returns the states (T, B, C, h, w) of steps on inputs (T, B, C, h, w) that are all known.

        The gain's convolution is split, and the part over the inputs is computed for all steps at once.
        """
        if len(inputs) == 1:
            return self(inputs[0], h).unsqueeze(0)
        over_x, over_h = (part.contiguous() for part in self.convgate.weight.chunk(2, dim=1))
        from_x = each_frame(lambda x: F.conv2d(x, over_x, self.convgate.bias, padding=1), inputs)
        recur = RepeatedConv(over_h)
        states = []
        for x, gain in zip(inputs.unbind(0), from_x.unbind(0), strict=True):
            h = self._correct(x, h, gain + recur(h))
            states.append(h)
        return torch.stack(states)

    def _correct(self, x: Tensor, h: Tensor, gain: Tensor) -> Tensor:
        predicted = h + self.F(h)
        return predicted + torch.sigmoid(gain) * (x - predicted)

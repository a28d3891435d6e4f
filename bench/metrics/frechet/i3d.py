"""The Inception-I3D network of Kinetics, whose logits the Frechet video distance is defined on.

Source: Carreira and Zisserman (2017), Quo Vadis, Action Recognition?, CVPR, figure 3; parameter names are those of the
weights in circulation (`rgb_imagenet.pt`, `pretrained_i3d_400.pt`), which load unchanged.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Outputs of the four branches of each block: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1.
_MIXED = {
    "3b": (192, (64, 96, 128, 16, 32, 32)),
    "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)),
    "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)),
    "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}


def _padded(values: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int], fill: float) -> Tensor:
    """Returns the clip padded as by TensorFlow's `SAME`: to ceil(size / stride) outputs, an odd pixel at the end."""
    pads: list[int] = []
    for size, width, step in zip(values.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max(0, (-(-size // step) - 1) * step + width - size)
        pads += [total // 2, total - total // 2]
    return F.pad(values, pads, value=fill)


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, plain: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.plain = (kernel,) * 3, (stride,) * 3, plain
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=plain)
        if not plain:
            self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, values: Tensor) -> Tensor:
        found = self.conv3d(_padded(values, self.kernel, self.stride, 0.0))
        return found if self.plain else F.relu(self.bn(found))


class _Pool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, values: Tensor) -> Tensor:
        # padded with zeros, as in the training of the weights: after a ReLU they never exceed the values
        return F.max_pool3d(_padded(values, self.kernel, self.stride, 0.0), self.kernel, self.stride)


class _Mixed(nn.Module):
    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        one, before_a, a, before_b, b, pooled = outputs
        self.b0 = _Unit(inputs, one, 1)
        self.b1a, self.b1b = _Unit(inputs, before_a, 1), _Unit(before_a, a, 3)
        self.b2a, self.b2b = _Unit(inputs, before_b, 1), _Unit(before_b, b, 3)
        self.b3a, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(inputs, pooled, 1)

    def forward(self, values: Tensor) -> Tensor:
        branches = self.b0(values), self.b1b(self.b1a(values)), self.b2b(self.b2a(values)), self.b3b(self.b3a(values))
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """Logits of action classes of clips `(N,3,T,224,224)` in -1..1, T >= 9: `(N,classes)`, the mean over time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        for (name, sizes), (after, _) in pairwise([*_MIXED.items(), ("", (0, ()))]):
            self.add_module(f"Mixed_{name}", _Mixed(*sizes))
            if name[0] != after[:1] and after:
                width = 3 if name == "3c" else 2
                self.add_module(f"MaxPool3d_{after[0]}a", _Pool((width,) * 3, (2, 2, 2)))
        self.logits = _Unit(1024, classes, 1, plain=True)

    def forward(self, clips: Tensor) -> Tensor:
        """Returns logits `(N,classes)`."""
        values = clips
        for name, part in self.named_children():
            if name != "logits":
                values = part(values)
        values = F.avg_pool3d(values, (2, 7, 7), stride=1)
        return self.logits(values).flatten(2).mean(2)

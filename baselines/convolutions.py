"""Convolutions whose weights stay the same over a whole roll-out."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class RepeatedConv:
    """A convolution that keeps the grid, for many calls on inputs of one shape while its weights do not change.

    Before each convolution oneDNN reorders the weights into the layout that the processor prefers. On the small
    grids of a recurrent core this takes as long as the convolution: on a 6 x 12 grid, a 5 x 5 convolution from
    128 to 896 channels ran in 3.6 instead of 6.8 ms without it. On a CPU and without gradients, this class reorders
    the weights once, at the first call; otherwise it is the plain convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes weights (C', C, k, k) with k odd, and an optional bias (C',)."""
        self.weight = weight
        self.bias = bias
        self.padding = weight.shape[-1] // 2
        self.ordered: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the convolved images (N, C', H, W) of images (N, C, H, W)."""
        if not _can_order(x, self.weight):
            return F.conv2d(x, self.weight, self.bias, padding=self.padding)
        padding, ones = [self.padding] * 2, [1, 1]
        if self.ordered is None:
            opaque = self.weight.detach().contiguous().to_mkldnn()
            self.ordered = torch.ops.aten.mkldnn_reorder_conv2d_weight(opaque, padding, ones, ones, 1, list(x.shape))
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.contiguous(), self.ordered, self.bias, padding, ones, ones, 1, "none", [], ""
        )
        return made


def _can_order(x: Tensor, weight: Tensor) -> bool:
    """Returns whether oneDNN's own operators may be called, which support neither gradients nor tracing."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )

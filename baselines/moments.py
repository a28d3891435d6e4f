"""Moments of kernels: which derivatives a convolution takes, and with what weights."""

import math

import torch
from torch import Tensor


def k2m(kernel: Tensor) -> Tensor:
    """Returns the moments (..., k, k) of square kernels (..., k, k) of odd size, taken in float64.

    Moment (i, j) is the sum over offsets (u, v) from the centre of u^i/i! v^j/j! kernel[u, v], where u is the
    row. It is the weight of the derivative of order i down the rows and j along them in a convolution with
    the kernel.

    Source: PDE-Net 2.0 (moment matrices).
    """
    size = kernel.shape[-1]
    offsets = torch.arange(size, dtype=torch.float64, device=kernel.device) - size // 2
    powers = torch.stack([offsets**order / math.factorial(order) for order in range(size)])
    return (powers @ kernel.double() @ powers.T).to(kernel.dtype)

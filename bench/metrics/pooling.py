"""Max-pooling of frames of any dtype, on any device, with NaN spreading to its cell."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from bench.errors import ContractError


def max_pool(values: Tensor, size: int) -> Tensor:
    """Returns the maxima of cells of size x size pixels, `(B,T,H//size,W//size,C)`, of `(B,T,H,W,C)`.

    What does not fill a cell at the lower and right edges is left out.  A cell with a NaN is NaN.

    Raises:
        ContractError: frames are smaller than a cell.
    """
    height, width = (extent // size * size for extent in values.shape[2:4])
    if not height or not width:
        raise ContractError(f"frames of {values.shape[2]}x{values.shape[3]} pixels have no cell of {size}x{size}")
    # along the contiguous axis last: by then only 1/size of the pixels are left
    rows = reduce(torch.maximum, (values[:, :, at:height:size] for at in range(size)))
    return reduce(torch.maximum, (rows[:, :, :, at:width:size] for at in range(size)))

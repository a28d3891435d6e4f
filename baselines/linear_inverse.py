"""Linear inverse model: the leading patterns of the field, carried ahead by the linear law that fits them best."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.shapes import checked_shapes, checked_sizes

# Its covariance is a square of this side in float64, and the time of its eigenvectors grows with the cube.
_MOST_VALUES = 4096
# Below this share of the largest, the variance of a pattern is rounding, and its law would be noise.
_LEAST_VARIANCE = 1e-10


class LinearInverse(nn.Module):
    """Empirical orthogonal functions (EOFs) and one linear step between their amplitudes, fitted in one pass.

    With x the amplitudes of the leading EOFs and C0, C1 their covariances at lags 0 and 1, the step is
    G = C1 C0^-1 and the forecast t steps ahead G^t x; what the EOFs do not hold is forecast as the mean.  It is the
    usual statistical rival of learned forecasts of El Nino (Penland and Sardeshmukh 1995, J. Climate 8, 1999-2024).
    EOFs are of the values as the task gives them: no weights by latitude.  Before it is fitted it forecasts zeros.

    Args:
        input_shape: `(T_in, H, W, C)`; frames of context and target follow each other at even steps.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        modes: Number of EOFs that are kept; fewer where the training data have no more.  On observed SST, 10 had the
            least error in validation of 3 to 30.

    Raises:
        ValueError: frames of context and target differ in shape, `modes` is no number of EOFs that a frame can have,
            or a frame has more than 4096 values.
    """

    mean: Tensor
    eofs: Tensor
    propagators: Tensor

    def __init__(
        self, input_shape: tuple[int, int, int, int], target_shape: tuple[int, int, int, int], modes: int = 10
    ) -> None:
        super().__init__()
        _, (t_out, *cells) = checked_shapes("linear_inverse", input_shape, target_shape, feeds_back=True)
        (modes,) = checked_sizes("linear_inverse", "modes", [modes])
        self.frame_shape = tuple(cells)
        size = torch.Size(cells).numel()
        if size > _MOST_VALUES:
            raise ValueError(
                f"linear_inverse: a frame has {size} values {tuple(cells)}, at most {_MOST_VALUES} can be fitted: "
                "its covariance has the square of that; damped_persistence has no such limit"
            )
        if modes > size:
            raise ValueError(f"linear_inverse: modes must be at most the {size} values of a frame, got {modes}")
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("eofs", torch.zeros(size, modes))
        self.register_buffer("propagators", torch.zeros(t_out, modes, modes))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Regresses each frame on the one before it, in the space of the leading EOFs; the mean is that of all.

        Every pair of neighbouring frames of context and target counts, in each window that holds it; pairs with a
        NaN count nowhere.

        Args:
            batches: Contexts `(B, T_in, H, W, C)` and targets `(B, T_out, H, W, C)`.

        Raises:
            ValueError: no two neighbouring frames are complete.
        """
        size, modes = self.eofs.shape
        sums = torch.zeros(2, size, dtype=torch.float64, device=self.mean.device)
        products = torch.zeros(2, size, size, dtype=torch.float64, device=self.mean.device)
        count = 0
        for context, target in batches:
            frames = torch.cat((context, target), dim=1).flatten(2).double()
            before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
            known = ~(torch.isnan(before) | torch.isnan(after)).any(1)
            before, after = before[known], after[known]
            count += len(before)
            sums += torch.stack((before.sum(0), after.sum(0)))
            products[0].addmm_(before.T, before)
            products[1].addmm_(after.T, before)
        if not count:
            raise ValueError("linear_inverse: no two neighbouring frames of the training data are free of NaN")
        means = sums / count
        self.mean.copy_(means.mean(0))
        lag0 = products[0] / count - torch.outer(means[0], means[0])
        lag1 = products[1] / count - torch.outer(means[1], means[0])
        variance, patterns = torch.linalg.eigh(lag0)  # in ascending order
        variance, patterns = variance.flip(0)[:modes], patterns.flip(1)[:, :modes]
        kept = variance > _LEAST_VARIANCE * variance[0].clamp(min=torch.finfo(torch.float64).tiny)
        patterns = patterns * kept
        step = patterns.T @ lag1 @ patterns / torch.where(kept, variance, 1)  # C0 is diagonal in its own EOFs
        self.eofs.copy_(patterns)
        ahead = torch.eye(modes, dtype=step.dtype, device=step.device)
        for t in range(len(self.propagators)):
            ahead = step @ ahead
            self.propagators[t].copy_(ahead)

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        mean, eofs, propagators = (part.to(context.dtype) for part in (self.mean, self.eofs, self.propagators))
        amplitudes = (context[:, -1].flatten(1) - mean) @ eofs
        ahead = torch.einsum("tij,bj->bti", propagators, amplitudes)
        return (mean + F.linear(ahead, eofs)).unflatten(-1, self.frame_shape)

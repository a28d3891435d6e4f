"""Linear inverse model: the leading patterns of the field, carried ahead by the linear law that fits them best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.shapes import checked_shapes, checked_sizes

# Values of a frame. The covariance has the square of this many entries (float64); eigenvectors take cubic time.
_MOST_VALUES = 4096
# Below this share of the largest, the variance of a pattern is rounding error, and its law would be noise.
_LEAST_VARIANCE = 1e-10
# The numbers of modes that `modes="auto"` chooses from, and the number of folds of its cross-validation.
_CANDIDATES = (3, 5, 8, 10, 15, 20, 25, 30)
_PARTS = 5


class _Law(NamedTuple):
    """A fitted model, float64."""

    mean: Tensor
    eofs: Tensor
    """`(values, modes)`."""
    step: Tensor
    """Amplitudes one frame ahead of amplitudes, `(modes, modes)`."""


class LinearInverse(nn.Module):
    """Empirical orthogonal functions (EOFs) and one linear step between their amplitudes, fitted in one pass.

    With x the amplitudes of the leading EOFs and C0, C1 their covariances at lags 0 and 1, the step is
    G = C1 C0^-1 and the forecast t steps ahead G^t x; outside the EOFs the forecast is the mean.  It is the usual
    statistical baseline for learned forecasts of El Nino (Penland and Sardeshmukh 1995, J. Climate 8, 1999-2024).
    EOFs are computed from the values as the task gives them, without weights by latitude.  An unfitted model
    forecasts zeros.

    Args:
        input_shape: `(T_in, H, W, C)`; frames of context and target follow each other at even steps.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        modes: Number of EOFs that are kept; fewer if the training data have fewer.  `auto` chooses among 3, 5, 8, 10,
            15, 20, 25 and 30 by the squared error in five-fold cross-validation over the training windows, also
            leaving out neighbouring windows that share a frame; it holds the training data in memory meanwhile.

    Raises:
        ValueError: frames of context and target differ in shape, `modes` exceeds the values of a frame, or a frame has
            more than 4096 values.
    """

    mean: Tensor
    eofs: Tensor
    propagators: Tensor
    modes: Tensor
    """How many EOFs are used."""

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        modes: int | Literal["auto"] = 10,
    ) -> None:
        super().__init__()
        _, (t_out, *cells) = checked_shapes("linear_inverse", input_shape, target_shape, feeds_back=True)
        self.frame_shape = tuple(cells)
        size = torch.Size(cells).numel()
        self.candidates = tuple(each for each in _CANDIDATES if each <= size) or (size,)
        if modes == "auto":
            modes = self.candidates[-1]
        else:
            self.candidates = checked_sizes("linear_inverse", "modes", [modes])
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
        self.register_buffer("modes", torch.tensor(modes), persistent=len(self.candidates) > 1)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Regresses each frame on the one before it, in the space of the leading EOFs; the mean is that of all frames.

        Every pair of neighbouring frames of context and target counts, in each window that contains it; pairs with a
        NaN are ignored.

        Args:
            batches: Contexts `(B, T_in, H, W, C)` and targets `(B, T_out, H, W, C)`.

        Raises:
            ValueError: no two neighbouring frames are complete.
        """
        if len(self.candidates) == 1:
            moments = _Moments(self.mean)
            for context, target in batches:
                moments.add(torch.cat((context, target), dim=1).flatten(2))
            law = moments.law(self.candidates[0])
        else:
            windows = torch.cat([torch.cat(pair, dim=1).flatten(2) for pair in batches])
            law = _law_of(windows, _best_modes(windows, self.candidates, len(self.propagators)))
        self.modes.fill_(law.eofs.shape[1])
        self.mean.copy_(law.mean)
        self.eofs.zero_()[:, : law.eofs.shape[1]].copy_(law.eofs)
        self.propagators.zero_()
        used = slice(law.eofs.shape[1])
        for t, ahead in enumerate(_powers(law.step, len(self.propagators))):
            self.propagators[t, used, used].copy_(ahead)

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        mean, eofs, propagators = (part.to(context.dtype) for part in (self.mean, self.eofs, self.propagators))
        amplitudes = (context[:, -1].flatten(1) - mean) @ eofs
        ahead = torch.einsum("tij,bj->bti", propagators, amplitudes)
        return (mean + F.linear(ahead, eofs)).unflatten(-1, self.frame_shape)


class _Moments:
    """Sums over pairs of neighbouring frames, in float64, on the device of a tensor with the size of a frame."""

    def __init__(self, like: Tensor) -> None:
        size = like.numel()
        self.sums = torch.zeros(2, size, dtype=torch.float64, device=like.device)
        self.products = torch.zeros(2, size, size, dtype=torch.float64, device=like.device)
        self.count = 0

    def add(self, frames: Tensor) -> None:
        """Adds the neighbouring frames of windows `(B, T, values)`; pairs with a NaN are ignored."""
        frames = frames.double()
        before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        known = ~(torch.isnan(before) | torch.isnan(after)).any(1)
        before, after = before[known], after[known]
        self.count += len(before)
        self.sums += torch.stack((before.sum(0), after.sum(0)))
        self.products[0].addmm_(before.T, before)
        self.products[1].addmm_(after.T, before)

    def law(self, modes: int) -> _Law:
        """Returns the law of the leading `modes` EOFs.

        Raises:
            ValueError: no pair was added.
        """
        if not self.count:
            raise ValueError("linear_inverse: no two neighbouring frames of the training data are free of NaN")
        means = self.sums / self.count
        lag0 = self.products[0] / self.count - torch.outer(means[0], means[0])
        lag1 = self.products[1] / self.count - torch.outer(means[1], means[0])
        variance, patterns = torch.linalg.eigh(lag0)  # in ascending order
        variance, patterns = variance.flip(0)[:modes], patterns.flip(1)[:, :modes]
        kept = variance > _LEAST_VARIANCE * variance[0].clamp(min=torch.finfo(torch.float64).tiny)
        patterns = patterns * kept
        step = patterns.T @ lag1 @ patterns / torch.where(kept, variance, 1)  # C0 is diagonal in its own EOFs
        return _Law(means.mean(0), patterns, step)


def _law_of(windows: Tensor, modes: int) -> _Law:
    moments = _Moments(windows[0, 0])
    moments.add(windows)
    return moments.law(modes)


def _powers(step: Tensor, count: int) -> list[Tensor]:
    powers = [step]
    while len(powers) < count:
        powers.append(step @ powers[-1])
    return powers


def _best_modes(windows: Tensor, candidates: Sequence[int], ahead: int) -> int:
    """Returns the number of EOFs with the least squared error on held-out windows `(N, T, values)`.

    Consecutive windows overlap, so those within T of a held-out part share frames with it.
    """
    length, (count, frames) = -(-len(windows) // _PARTS), windows.shape[:2]
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    for first in range(0, count, length):
        rest = torch.cat((windows[: max(0, first - frames + 1)], windows[first + length + frames - 1 :]))
        if not len(rest):
            raise ValueError(f"linear_inverse: modes=auto needs more than {count} windows of {frames} frames")
        whole, left_out = _law_of(rest, candidates[-1]), windows[first : first + length].double()
        last, then = left_out[:, -ahead - 1] - whole.mean, left_out[:, -ahead:] - whole.mean
        known = ~torch.isnan(last).any(1)
        for number, modes in enumerate(candidates):
            # Fewer modes have the same EOFs and the same step, truncated: C0 is diagonal.
            eofs, step = whole.eofs[:, :modes], whole.step[:modes, :modes]
            amplitudes = last[known] @ eofs
            for lead, power in enumerate(_powers(step, ahead)):
                error = then[known, lead] - amplitudes @ power.T @ eofs.T
                errors[number] += error.nan_to_num().square().sum().cpu()
    return int(candidates[int(errors.argmin())])

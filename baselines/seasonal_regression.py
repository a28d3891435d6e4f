"""Seasonal regression: regressions between the leading patterns of the field, one for each calendar month."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.shapes import checked_shapes, checked_sizes

# Values of a frame. The covariance has the square of this many entries (float64); eigenvectors take cubic time.
_MOST_VALUES = 4096
# Below this share of the largest, the variance of a pattern is rounding error.
_LEAST_VARIANCE = 1e-10
_MONTHS = 12
_AT_ONCE = 64
"""Windows."""


class SeasonalRegression(nn.Module):
    """Ridge regressions between principal components, one for each calendar month and lead time, fitted in one pass.

    The amplitudes of the leading EOFs in the last frame of the context predict those at each lead time, by a
    regression for the calendar month of that frame; outside the EOFs the forecast is damped persistence with one slope
    per cell and lead time.
    El Nino is locked to the season, so these regressions are hard to beat by a law that is the same all year (Barnston
    and Ropelewski 1992, J. Climate 5, 1316-1345; Kondrashov et al. 2005, J. Climate 18, 4425-4444).  EOFs are computed
    from the values as the task gives them.  An unfitted model forecasts zeros.

    Fitting holds the training data in memory.

    Args:
        input_shape: `(T_in, H, W, C + 2)`: the last two channels are sine and cosine of the season of each frame, as
            `task.calendar=true` gives them; `(T_in, H, W, C)` with `seasons=1`.
        target_shape: `(T_out, H, W, C)`, with the same H and W.
        modes: Number of EOFs; fewer if the training data have fewer.
        ridge: Ridge term added to the variance of each amplitude, in units of its variance over all months.
        seasons: Regressions per year: 12, or 1 for the same in all months.

    Raises:
        ValueError: context and target do not fit together, a frame has more than 4096 values, or a hyperparameter is
            out of range.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"seasons": 1}}
    mean: Tensor
    eofs: Tensor
    laws: Tensor
    slopes: Tensor

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        modes: int = 10,
        ridge: float = 0.3,
        seasons: int = _MONTHS,
    ) -> None:
        super().__init__()
        if seasons not in (1, _MONTHS):
            raise ValueError(f"seasonal_regression: seasons must be 1 or {_MONTHS}, got {seasons}")
        if not ridge >= 0:
            raise ValueError(f"seasonal_regression: ridge must be 0 or more, got {ridge}")
        source, (t_out, *cells) = checked_shapes("seasonal_regression", input_shape, target_shape, feeds_back=False)
        extra = 2 if seasons == _MONTHS else 0
        if source[3] != cells[2] + extra:
            why = " (two of them the season: set task.calendar=true)" if extra else ""
            raise ValueError(
                f"seasonal_regression: contexts must have {cells[2] + extra} channels{why}, got {source[3]}"
            )
        (modes,) = checked_sizes("seasonal_regression", "modes", [modes])
        self.frame_shape, self.seasons, self.ridge = tuple(cells), seasons, float(ridge)
        size = torch.Size(cells).numel()
        if size > _MOST_VALUES or modes > size:
            raise ValueError(
                f"seasonal_regression: at most {_MOST_VALUES} values a frame and as many modes as values, got {size} "
                f"values {tuple(cells)} and {modes} modes"
            )
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("eofs", torch.zeros(size, modes))
        self.register_buffer("laws", torch.zeros(seasons, t_out, modes, modes))
        self.register_buffer("slopes", torch.zeros(t_out, size))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fits the EOFs to all frames of contexts and targets, then the regressions; windows with a NaN are ignored.

        Args:
            batches: Contexts and targets, see the class.

        Raises:
            ValueError: every window has a NaN.
        """
        channels, kept = self.frame_shape[2], []
        for context, target in batches:
            frames = torch.cat((context[..., :channels], target), 1).flatten(2)
            whole = ~torch.isnan(frames).any(2).any(1)
            kept.append((self._season(context)[whole], frames[whole]))
        if not any(len(season) for season, _ in kept):
            raise ValueError("seasonal_regression: no window of the training data is free of NaN")
        season, frames = (torch.cat(parts) for parts in zip(*kept, strict=True))
        ahead, modes = self.slopes.shape[0], self.eofs.shape[1]
        size, before = frames.shape[2], frames.shape[1] - ahead
        mean = frames.mean((0, 1), dtype=torch.float64)
        covariance = torch.zeros(size, size, dtype=torch.float64, device=frames.device)
        for some in frames.split(_AT_ONCE):
            anomalies = some.flatten(0, 1).double() - mean
            covariance.addmm_(anomalies.transpose(0, 1), anomalies)
        variance, patterns = torch.linalg.eigh(covariance / (len(frames) * frames.shape[1]))  # in ascending order
        variance, patterns = variance.flip(0)[:modes], patterns.flip(1)[:, :modes]
        held = variance > _LEAST_VARIANCE * variance[0].clamp(min=torch.finfo(torch.float64).tiny)
        patterns = patterns * held
        spread = torch.where(held, variance, 1).sqrt()
        last = frames[:, before - 1].double() - mean
        now = last @ patterns / spread
        remainder = last - last @ patterns @ patterns.transpose(0, 1)
        known = remainder.square().sum(0)
        self.mean.copy_(mean)
        self.eofs.copy_(patterns)
        for lead in range(ahead):
            then = frames[:, before + lead].double() - mean
            amplitudes = then @ patterns
            for month in range(self.seasons):
                mine = season == month
                x, y = now[mine], amplitudes[mine]
                square = x.transpose(0, 1) @ x + self.ridge * len(x) * torch.eye(modes).to(x)
                law = torch.linalg.pinv(square, hermitian=True) @ (
                    x.transpose(0, 1) @ y
                )  # 0 for a month without windows
                self.laws[month, lead].copy_(law / spread[:, None])
            slope = (remainder * (then - amplitudes @ patterns.transpose(0, 1))).sum(0)
            still = known <= _LEAST_VARIANCE * known.max()
            self.slopes[lead].copy_(torch.where(still, 0, slope / torch.where(still, 1, known)))

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context, see the class."""
        mean, eofs, laws, slopes = (part.to(context.dtype) for part in (self.mean, self.eofs, self.laws, self.slopes))
        last = context[:, -1, ..., : self.frame_shape[2]].flatten(1) - mean
        amplitudes = last @ eofs
        remainder = last - amplitudes @ eofs.transpose(0, 1)
        ahead = torch.einsum("bi,btij->btj", amplitudes, laws[self._season(context)])
        return (mean + ahead @ eofs.transpose(0, 1) + slopes * remainder[:, None]).unflatten(-1, self.frame_shape)

    def _season(self, context: Tensor) -> Tensor:
        """Returns the calendar month of the last frame `(B,)`, 0 for January; 0 throughout with one season."""
        if self.seasons == 1:
            return torch.zeros(len(context), dtype=torch.int64, device=context.device)
        sine, cosine = context[:, -1, 0, 0, -2:].double().unbind(-1)
        months: Tensor = (torch.atan2(sine, cosine) * (_MONTHS / (2 * torch.pi))).round().long() % _MONTHS
        return months

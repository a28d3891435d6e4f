"""STEPS: the ensemble nowcast of rain that weather services use; nothing to train.

The last field is moved along its own motion and split into scales.  Each scale follows an autoregression fitted to the
last frames, and the variance it loses is replaced by noise with the spectrum of the field.  Each member has its own
noise and its own motion error.

Sources: Bowler, Pierce and Seed 2006, Q. J. R. Meteorol. Soc. 132, 2127-2155; Seed, Pierce and Norman 2013, Water
Resour. Res. 49, 6624-6641; as in pySTEPS (Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185-4219) with its defaults.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.masking import filled
from baselines.optical_flow import dense_lucaskanade, extrapolated, quiet, steps
from baselines.shapes import checked_shapes, checked_sizes

_CODE = 255.0
_AUTOREGRESSION = 2
_NOT_DRY = "on this scale 0 is not dry (task=grid has task.scale=log1p and dbz for rain)"


class Steps(nn.Module):
    """STEPS: an ensemble of extrapolated radar whose scales decay into noise, member by member; on the CPU.

    Frames are VIL codes (or another quantity that is about logarithmic in rain) over 255: 1 code is 0.11 dB of VIL, so
    no other transformation is needed.  Values below the threshold are no rain, in the context and in the members, and
    no rain flows in over the border, where members are too dry.  Missing pixels (NaN) are no rain.

    If pySTEPS gives no forecast, all members are the same simpler forecast.  `degraded` counts these sequences by
    reason: `dry` (no rain in the last frame, hence none in the forecast), `extrapolated` (pySTEPS returned nothing
    although it rains, as after a frame without rain; optical flow instead), `first_order` (frames too similar for an
    autoregression of order 2; order 1 instead), `persistence` (pySTEPS fails, as for a field without contrast).

    Args:
        input_shape: `(T_in, H, W, C)`, at least two frames; motion and autoregression use the last three.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        members: Number of members that `forward` averages.
        minutes: Minutes between frames; by default those of the task.
        kilometres: Width of a pixel in kilometres; by default that of the task.
        threshold: Least value that counts as rain, on the scale that models see; by default that of the task (for
            SEVIR, VIL code 16).

    Raises:
        ValueError: frames of context and target differ in shape, the context is a single frame, or a number is not
            positive; in a forecast: rain is below 0.
    """

    uncountable: ClassVar[str] = "OpenCV and NumPy do the work, where a trace of torch's operations sees none of it"
    of_task: ClassVar[dict[str, str]] = {
        "minutes": "cadence_minutes",
        "kilometres": "pixel_kilometres",
        "threshold": "least_rain",
    }
    evaluation_only: ClassVar[tuple[str, ...]] = ("members",)

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        members: int = 8,
        minutes: float = 10.0,
        kilometres: float = 3.0,
        threshold: float = 16 / 255,
    ) -> None:
        super().__init__()
        context, target = checked_shapes("steps", input_shape, target_shape, feeds_back=True)
        if context[0] < 2:
            raise ValueError(f"steps: motion takes two frames or more, got t_in={context[0]}")
        (self.members,) = checked_sizes("steps", "members", [members])
        for name, value in (("minutes", minutes), ("kilometres", kilometres), ("threshold", threshold)):
            if not 0 < value < float("inf"):
                why = f": {_NOT_DRY}" if name == "threshold" else ""
                raise ValueError(f"steps: {name} must be positive, got {value:.3g}{why}")
        self.t_out, self.order = target[0], min(_AUTOREGRESSION, context[0] - 1)
        self.minutes, self.kilometres, self.threshold = minutes, kilometres, threshold
        self.degraded: Counter[str] = Counter()

    def forward(self, context: Tensor) -> Tensor:
        """Returns the mean `(B, T_out, H, W, C)` of members that are seeded by the context `(B, T_in, H, W, C)`."""
        return self._draw(context, self.members, base=0).mean(0)

    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        """Returns members `(M, B, T_out, H, W, C)`; drawing more members does not change the first ones.

        Args:
            context: `(B, T_in, H, W, C)`.
            members: Number of members.
            generator: Gives one number, which seeds the members together with the values of their context.
        """
        base = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        return self._draw(context, members, base)

    @torch.no_grad()
    def _draw(self, context: Tensor, members: int, base: int) -> Tensor:
        fields = filled(context[:, -self.order - 1 :]).permute(0, 4, 1, 2, 3).double().cpu().numpy() * _CODE
        if fields.min() < -1:  # in codes, so rounding errors pass
            raise ValueError(f"steps: expected rain from 0 on, found {fields.min() / _CODE:.3g}: {_NOT_DRY}")
        drawn = np.empty((members, len(fields), fields.shape[1], self.t_out, *fields.shape[3:]), np.float32)
        for row, sequence in enumerate(fields):
            seed = int(np.random.SeedSequence([base, zlib.crc32(sequence.tobytes())]).generate_state(1)[0] >> 1)
            reasons = set()
            for channel, frames in enumerate(sequence):
                drawn[:, row, channel], reason = self._members(frames, members, seed)
                reasons.update([reason] if reason else [])
            self.degraded.update(reasons)
        return torch.from_numpy(drawn).permute(0, 1, 3, 4, 5, 2).to(context)

    def _members(self, frames: np.ndarray, members: int, seed: int) -> tuple[np.ndarray, str | None]:
        """Returns members `(M, T_out, H, W)` on the 0-1 scale, and the reason if they are a simpler forecast."""
        least = self.threshold * _CODE
        rain = np.where(frames >= least, frames, 0)
        if not rain[-1].any():
            return np.zeros(()), "dry"
        drawn, reason = None, None
        with quiet():
            motion = dense_lucaskanade(rain)
            for order in range(self.order, 0, -1):
                try:
                    drawn = self._steps(rain[-order - 1 :], motion, members, seed)
                    break
                except (ValueError, np.linalg.LinAlgError, FloatingPointError):
                    reason = "first_order" if order > 1 else "persistence"
        if drawn is None:
            drawn = rain[-1]
        elif not (drawn >= least).any():
            drawn, reason = extrapolated(rain, self.t_out), "extrapolated"
        # NaN has come in over the border.
        return np.where(drawn >= least, drawn, 0).clip(max=_CODE) / _CODE, reason

    def _steps(self, rain: np.ndarray, motion: np.ndarray, members: int, seed: int) -> np.ndarray:
        """Returns the members `(M, T_out, H, W)` that pySTEPS forecasts from frames."""
        return steps.forecast(
            rain,
            motion,
            self.t_out,
            n_ens_members=members,
            precip_thr=self.threshold * _CODE,
            kmperpixel=self.kilometres,
            timestep=self.minutes,
            ar_order=len(rain) - 1,
            seed=seed,
        )

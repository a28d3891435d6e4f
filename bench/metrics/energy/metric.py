"""Energy error of N-body forecasts: whether the forecast system conserves its energy.

Source: Gao et al. 2023, PreDiff, section on N-body MNIST: the mean over sequences and leads of the squared (E.MSE) and
absolute (E.MAE) difference of a frame's energy from that of the last frame of the context.  The paper's learned energy
detector is not published; here digits are tracked from their true positions in the simulation.  The figures are
therefore comparable with each other, but not with the paper's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.nbody_mnist.simulation import MAX_SPEED, SUB_STEPS, acceleration, energy
from bench.errors import ContractError
from bench.metrics.energy.formulas import SUMS
from bench.metrics.energy.tracking import track
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_pair
from bench.metrics.states import EventMetric, tell_apart

# Pixels per sub-step: speeds before and after a frame differ by more only if a digit hit a wall in between.
_BOUNCE = 0.3


class Energy(EventMetric):
    """E.MSE and E.MAE of N-body MNIST, from positions tracked in the forecast's frames.

    `compute()` gives `e_mse` and `e_mae` over everything, `e_mse_lead_L` and `e_mae_lead_L` for lead L = 1.., and
    `e_mse_target`, `e_mae_target`: the same for the observed frames.  These are not 0, because the simulation itself
    does not conserve energy at walls and at top speed, and tracking errs by fractions of a pixel: they are the scores
    of a perfect forecast.  A non-finite value in a forecast makes the scores NaN; a sequence whose target has a missing
    pixel (NaN) is ignored, because digits cannot be tracked through it.

    Energies are those of `bench.data.nbody_mnist.simulation` with masses of 1, in pixels of the canvas and sub-steps.

    Args:
        t_out: Number of lead times, if known; else taken from the first update.
        sub_steps: Sub-steps of the simulation between two frames.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    takes_labels = True
    family = "energy"

    def __init__(self, t_out: int | None = None, *, sub_steps: int = SUB_STEPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sub_steps = sub_steps
        for name in SUMS:
            # float64 by name: a module-wide cast to half precision must not reach the sums
            self.add_statistic(name, (t_out or 0,), torch.float64)
        self.add_statistic("sequence_count", (t_out or 0,), torch.int64)
        tell_apart(self)

    def update(
        self,
        forecast: Tensor,
        target: Tensor,
        crops: Tensor,
        state: Tensor,
        *_: Tensor,
        events: Tensor | None = None,
    ) -> None:
        """Adds the energy errors of a batch.

        Args:
            forecast: Brightness 0..255, `(B,T,H,W,1)`, of half the canvas' height and width.
            target: The same shape.
            crops: The digits at the top left of their images, `(B,D,h,w)`, 0..255.
            state: Corners and velocities of the digits at the last frame of the context, `(B,2,D,2)`, in pixels of
                the canvas and per sub-step.
            *_: Further labels of the data, which are not used here.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, or the number of lead times changed.
        """
        check_pair(forecast, target)
        if state.dim() != 4 or crops.dim() != 4 or state.shape != (len(forecast), 2, crops.shape[1], 2):
            raise ContractError(
                f"energy takes digits (B, D, h, w) and their state (B, 2, D, 2), found {tuple(crops.shape)} and "
                f"{tuple(state.shape)} for {len(forecast)} sequences"
            )
        corners, velocities = state.double().cpu().numpy().transpose(1, 0, 2, 3)
        before = energy(corners, velocities)[:, None]
        target = target.to(forecast.device)
        known = ~torch.isnan(target).flatten(1).any(1)[:, None].cpu()
        found = {"sequence_count": known.long().expand(forecast.shape[:2])}
        # both sides in one call: tracking takes thousands of small operations for any number of sequences
        frames = torch.cat([forecast[..., 0].float(), target[..., 0].float()])
        energies = frame_energies(
            frames,
            crops.to(frames.device, non_blocking=True).repeat(2, 1, 1, 1),
            np.tile(corners, (2, 1, 1)),
            self.sub_steps,
        )
        for side, part in zip(("", "_target"), np.split(energies, 2), strict=True):
            error = torch.from_numpy(part - before).masked_fill(~known, 0)
            found |= {f"squared{side}": error**2, f"absolute{side}": error.abs()}
        self.add(found, events)

    def score_options(self) -> dict[str, Any]:
        """Returns no options, because the scores depend on the sums only."""
        return {}


def frame_energies(frames: Tensor, crops: Tensor, corners: np.ndarray, sub_steps: int = SUB_STEPS) -> np.ndarray:
    """Returns the energy of each frame, `(B,T)`, from tracked positions; NaN for a frame with a non-finite value.

    Args:
        frames: Brightness 0..255, `(B,T,H,W)`, of half the canvas' height and width.
        crops: The digits at the top left of their images, `(B,D,h,w)`, 0..255.
        corners: Their positions just before the first frame, `(B,D,2)` in pixels of the canvas.
        sub_steps: Sub-steps of the simulation between two frames.
    """
    finite = torch.isfinite(frames).flatten(2).all(-1).cpu().numpy()
    start = torch.from_numpy(corners).to(frames.device, non_blocking=True)
    readable = torch.nan_to_num(frames.detach(), 0.0, 0.0, 0.0)
    tracked = track(readable, crops, start, farthest=MAX_SPEED * sub_steps).cpu().numpy()
    places = np.concatenate([corners[:, None], tracked], 1)
    energies: np.ndarray = np.where(finite, energy(tracked, velocities_of(places, sub_steps)), math.nan)
    return energies


def velocities_of(places: np.ndarray, sub_steps: int = SUB_STEPS) -> np.ndarray:
    """Returns velocities `(B,T,D,2)` in pixels per sub-step at positions `(B,T+1,D,2)`, without the first one.

    The displacements before and after a frame both give its velocity, after subtracting the acceleration.  Their mean
    is returned, unless they differ by more than attraction can cause: then one was shortened by a wall, and the longer
    one counts.  The last frame has only one displacement.
    """
    way = np.diff(places, axis=1) / sub_steps
    pull = acceleration(places[:, 1:])
    # Semi-implicit Euler: n steps from velocity v move by n v + a n (n+1)/2, and end with v + n a.
    arriving = way + pull * (sub_steps - 1) / 2
    leaving = way[:, 1:] - pull[:, :-1] * (sub_steps + 1) / 2
    found = arriving.copy()
    before = arriving[:, :-1]
    longer = np.where(np.abs(leaving) > np.abs(before), leaving, before)
    found[:, :-1] = np.where(np.abs(leaving - before) > _BOUNCE, longer, (leaving + before) / 2)
    return found

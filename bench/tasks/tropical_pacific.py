"""Base of both ENSO tasks: monthly sea-surface temperature anomalies of the tropical Pacific, 24x48 cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bench.api import MONTH_MINUTES, Palette, Shape
from bench.data.plausibility import SST_ANOMALY, Plausible
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

# Extremes of ICAR-ENSO's data in K: they become 0 and 1.
SST_MIN, SST_MAX = -16.549121856689453, 10.198975563049316
SST_RANGE = SST_MAX - SST_MIN
_FRAME_SIZE = (24, 48)
_LATITUDES = np.arange(-55, 61, 5)


class TropicalPacific(Task):
    """55 S..60 N and 95..330 E at 5 degrees, monthly, on the scale of ICAR-ENSO: weights of one fit the other."""

    units: ClassVar[str] = "sea-surface temperature anomaly, K"
    palette: ClassVar[Palette] = Palette(
        colours="RdBu_r", levels=(-2.75, -2.25, -1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75)
    )
    event_threshold: ClassVar[float | None] = 0.5  # K: El Nino
    # 5 S..5 N, 190..240 E: between the centres of 5 degree cells
    regions: ClassVar[dict[str, tuple[float, float, float, float]]] = {"Nino3.4": (10, 12, 19, 29)}
    degrees: ClassVar[tuple[range, range]] = (range(-55, 61, 5), range(95, 331, 5))
    plausible: ClassVar[Plausible | None] = SST_ANOMALY

    t_in: int = Field(12, ge=1, description="months of the context")
    t_out: int = Field(14, ge=3, description="months of the target (14 or 26); the index has two fewer")
    train_gap: int = Field(1, ge=1, description="months between the starts of a record's windows, in training")
    eval_gap: int = Field(1, ge=1, description="the same in validation, test and all")

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, 24, 48, 1)`."""
        return (self.t_in, *_FRAME_SIZE, 1)

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, 24, 48, 1)`."""
        return (self.t_out, *_FRAME_SIZE, 1)

    @property
    def cadence_minutes(self) -> float:
        """Returns the mean length of a Gregorian month: 30.436875 days, or 43,829.1 minutes."""
        return MONTH_MINUTES

    def cell_weights(self) -> dict[str, np.ndarray]:
        """Returns `area`: the cosine of latitude, to which the area of a cell is proportional."""
        return {"area": np.repeat(np.cos(np.deg2rad(_LATITUDES))[:, None], _FRAME_SIZE[1], 1)}

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns temperature anomalies on the 0-1 scale, float32."""
        import torch

        return (physical.to(torch.float32) - SST_MIN) / SST_RANGE

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns temperature anomalies in K, float32, for the 0-1 scale."""
        import torch

        return normalised.to(torch.float32) * SST_RANGE + SST_MIN

"""Normalisation of physical values: an affine scale of x, log(1 + x) or reflectivity, fitted to the training frames.

Source of the reflectivity of a rain rate: Marshall and Palmer 1948, J. Meteorol. 5, 165-166, Z = 200 R^1.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from bench.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.grid.dataset import GridWindows

Scale = Literal["linear", "log1p", "dbz", "zscore"]
Normalisation = tuple[float, float]
"""`(offset, span)` of the normalised value (f(x) - offset) / span, where f(x) is x, log(1 + x) or dBZ."""

_MAX_FRAMES = 512
"""Frames to fit a scale to, evenly over the training frames: a few seconds, whatever the size of the data."""
_DBZ_SPAN = 60.0
_Z_FACTOR, _Z_POWER = 200.0, 1.6
_LEAST_RAIN, _LEAST_REFLECTIVITY = 0.1, 7.0
_RATES = ("mm/h", "mm h-1", "mm hr-1", "mm/hr", "mm hour-1", "mm h^-1", "mm h**-1")
_REFLECTIVITY = ("dbz",)


def normalisations_of(train: GridWindows, scale: Scale) -> list[Normalisation]:
    """Returns offset and span of each variable, then of each static field, from training frames only.

    Raises:
        ConfigError: the scale does not support these units.
        DataError: all values are missing or equal, or some are outside the range of the scale.
    """
    cube = train.cube
    for units in cube.units if scale == "dbz" else ():
        if units.strip().lower() not in (*_RATES, *_REFLECTIVITY):
            raise ConfigError(
                f"task.scale=dbz: expected units mm/h or dBZ, found {units!r}. Set the attribute `units` of the "
                "variable, or take task.scale=log1p or zscore"
            )
    frames = train.frames
    if not len(frames):
        raise DataError(
            f"task.scale={scale} takes its numbers from the training split, which is empty: {train.why_empty}. A model "
            f"without weights forecasts on any scale: task.normalisation={[[0, 1]] * len(cube.names)}"
        )
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).round().astype(int))]
    rows, columns = _extent(train)
    count, total, square = (np.zeros(len(cube.names)) for _ in range(3))
    low, high = np.full(len(cube.names), np.inf), np.full(len(cube.names), -np.inf)
    for frame in cube.frames(chosen.tolist(), rows, columns):
        values = frame[None].astype(np.float64)
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        count += known.sum((0, 1, 2))
        total += filled.sum((0, 1, 2))
        square += np.square(filled).sum((0, 1, 2))
        low = np.minimum(low, np.where(known, values, np.inf).min((0, 1, 2)))
        high = np.maximum(high, np.where(known, values, -np.inf).max((0, 1, 2)))
    found = []
    for number, name in enumerate(cube.names):
        if not count[number]:
            raise DataError(
                f"{cube.root}: {name}: no known value in the {len(chosen)} training frames looked at: all are NaN"
            )
        mean = total[number] / count[number]
        spread = np.sqrt(max(square[number] / count[number] - mean**2, 0.0))
        found.append(_normalisation(scale, low[number], high[number], mean, spread, f"{cube.root}: {name}"))
    for field in cube.static if cube.static is not None else ():
        found.append((float(field.mean()), float(field.std()) or 1.0))
    return found


def _extent(train: GridWindows) -> tuple[slice, slice]:
    """Returns the rows and columns of the training data; for a split by place, those of its own crops."""
    if train.by == "date":
        box = train.cut.extent(train.cube.grid.size)
        return slice(box[0], box[1]), slice(box[2], box[3])
    return (
        slice(min(p.row for p in train.places), max(p.row for p in train.places) + train.size[0]),
        slice(min(p.column for p in train.places), max(p.column for p in train.places) + train.size[1]),
    )


def _normalisation(scale: Scale, low: float, high: float, mean: float, spread: float, source: str) -> Normalisation:
    if not high > low:
        raise DataError(f"{source}: {low:g} everywhere in the training frames: nothing to forecast")
    if scale == "log1p" and low < 0:
        raise DataError(
            f"{source}: task.scale=log1p takes values >= 0, found {low:g} in the training frames: check the units "
            "(dBZ, anomalies?); task.scale=linear and zscore take any value"
        )
    if scale == "dbz":
        return 0.0, _DBZ_SPAN
    if scale == "log1p":
        return 0.0, float(np.log1p(high))
    return (float(mean), float(spread)) if scale == "zscore" else (float(low), float(high - low))


def is_rate(units: str) -> bool:
    """Returns whether units are those of a rain rate in mm/h."""
    return units.strip().lower() in _RATES


def least_rain(units: str) -> float:
    """Returns the least rain that counts as such where nobody says: 0.1 mm/h, as in pySTEPS, or its 7 dBZ.

    In other units it is 0.1, which is little of an amount in mm and arbitrary of anything else.
    """
    return _LEAST_REFLECTIVITY if units.strip().lower() in _REFLECTIVITY else _LEAST_RAIN


def transformed(values: Tensor, scale: Scale, *, rate: bool) -> Tensor:
    """Returns f(x), float32: x, log(1 + x), or the reflectivity in dBZ of a rain rate, at least 0."""
    import torch

    values = values.float()
    if scale == "log1p":
        return torch.log1p(values.clamp(min=0))
    if scale == "dbz" and rate:
        reflectivity = _Z_FACTOR * values.clamp(min=0) ** _Z_POWER
        return (10 * torch.log10(reflectivity.clamp(min=1))).where(~torch.isnan(values), values)
    return values


def restored(values: Tensor, scale: Scale, *, rate: bool) -> Tensor:
    """Returns x, float32, for f(x); a rain rate whose reflectivity is 0 dBZ or less is 0."""
    import torch

    if scale == "log1p":
        return torch.expm1(values).clamp(min=0)
    if scale == "dbz" and rate:
        rates = (10 ** (values / 10) / _Z_FACTOR) ** (1 / _Z_POWER)
        return rates.masked_fill(values <= 0, 0.0)
    return values

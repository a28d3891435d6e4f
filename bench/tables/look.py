"""How the frames of a task are drawn: colours and levels, units, outlined regions, coastlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import registry
from bench.api import Palette
from bench.errors import ConfigError, EarthbenchError, did_you_mean
from bench.tables.coastlines import coastlines, coastlines_in_degrees

if TYPE_CHECKING:
    from bench.records.schema import RunRecord
    from bench.tasks.task import FrameCoordinates

_LEVELS = 12
"""Most intervals between the levels of a field whose task does not define levels."""


@dataclass(frozen=True)
class Look:
    """How the frames of a task are drawn."""

    palette: Palette = field(default_factory=Palette)
    units: str = ""
    timeless: bool = False
    regions: Mapping[str, tuple[float, float, float, float]] | None = None
    """See `Task.regions`."""
    event_threshold: float | None = None
    """See `Task.event_threshold`."""
    coast: np.ndarray | None = field(default=None, compare=False)
    """Columns and rows of coastlines, `(N,2)`, NaN between lines."""

    @classmethod
    def of(cls, task: Any, colours: str | None = None) -> Look:
        """Returns the look of a task, a class or an object, optionally with another colour map of matplotlib.

        Raises:
            ConfigError: no colour map has this name.
        """
        of_class = isinstance(task, type)
        palette, units = (task.palette, task.units) if of_class else (task.picture_palette, task.physical_units)
        coast = coastlines_in_degrees(*task.degrees) if task.degrees is not None else None
        return cls(palette, units, task.timeless, task.regions, task.event_threshold, coast).coloured(colours)

    @classmethod
    def of_name(cls, task: str, colours: str | None = None) -> Look:
        """Returns the look of a task by name; a default look if its distribution is not installed."""
        try:
            return cls.of(registry.find("task", task).load(), colours)
        except EarthbenchError as error:
            if isinstance(error, ConfigError):
                raise
            return cls().coloured(colours)

    @classmethod
    def of_record(cls, record: RunRecord, colours: str | None = None) -> Look:
        """Returns the look of a record's task, in the units of its data if these have their own."""
        look = cls.of_name(record.task.name, colours)
        own = record.data.identity.get("units") if record.data is not None else None
        return replace(look, units=str(own[0])) if own else look

    def at(self, where: FrameCoordinates | None) -> Look:
        """Returns the look of frames at a location, with its coastlines."""
        return self if where is None else replace(self, coast=coastlines(where))

    def coloured(self, colours: str | None) -> Look:
        """Returns the look with a named colour map at the same levels."""
        if colours is None:
            return self
        from matplotlib import colormaps

        if colours not in colormaps:
            known = sorted(name for name in colormaps if not name.endswith("_r"))
            raise ConfigError(
                f"no colour map {colours!r}. {did_you_mean(colours, known)} "
                "Monotone ones are cividis, viridis and gray."
            )
        return replace(self, palette=replace(self.palette, colours=colours))


def levels_of(drawn: list[np.ndarray]) -> tuple[float, ...]:
    """Returns about ten round levels that span the finite values of some frames."""
    from matplotlib.ticker import MaxNLocator

    known = np.concatenate([frames[np.isfinite(frames)] for frames in drawn])
    least, greatest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    greatest = greatest if greatest > least else least + 1
    return tuple(map(float, MaxNLocator(_LEVELS, steps=[1, 2, 2.5, 5, 10]).tick_values(least, greatest)))


def colouring(palette: Palette, levels: tuple[float, ...]) -> tuple[Any, Any]:
    """Returns matplotlib's colour map and norm for a palette.

    Levels that a task names leave values outside of them; levels that were made from the values do not.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    if isinstance(palette.colours, str):
        named = colormaps[palette.colours]
        return named, BoundaryNorm(levels, named.N, extend="both" if palette.levels else "neither")
    listed = ListedColormap(list(palette.colours[:-1]), over=palette.colours[-1])
    return listed, BoundaryNorm(levels, listed.N)

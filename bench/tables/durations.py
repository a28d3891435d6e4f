"""Times of frames in the task's unit: minutes, hours, days, months, or frames that have no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench import registry
from bench.api import TimeUnit, in_longest_unit
from bench.errors import EarthbenchError
from bench.records.schema import RunRecord

Unit = TimeUnit | Literal["frame"]
UNITS_IN_FULL: dict[Unit, str] = {"frame": "frames", "month": "months", "day": "days", "h": "hours", "min": "minutes"}


@dataclass(frozen=True)
class TimeAxis:
    """The time between two frames, in the unit of their lead times."""

    step: float
    unit: Unit

    @classmethod
    def of(cls, cadence_minutes: float, *, timeless: bool = False) -> TimeAxis:
        """Returns the axis of a cadence in the longest unit of which it is a multiple, or in frames if `timeless`."""
        if timeless:
            return cls(1, "frame")
        return cls(*in_longest_unit(cadence_minutes))

    @classmethod
    def of_record(cls, record: RunRecord) -> TimeAxis:
        """Returns the axis of a record's data; if its task is not installed, that of its cadence."""
        cadence = record.data.cadence_minutes if record.data else 1.0
        try:
            timeless = bool(getattr(registry.find("task", record.task.name).load(), "timeless", False))
        except EarthbenchError:  # its distribution is not installed here; the record still stands
            timeless = False
        return cls.of(cadence, timeless=timeless)

    def values(self, count: int) -> list[float]:
        """Returns the lead times of the first `count` frames after the start."""
        return [(1 + index) * self.step for index in range(count)]

    def text(self, frames: int = 1) -> str:
        """Returns the duration of a number of frames, e.g. `5 min` or `1 month`."""
        return self._with_unit(f"{frames * self.step:g}")

    def every(self) -> str:
        """The cadence, e.g. `every 5 min` or `every month`."""
        return f"every {self.text() if self.step != 1 else UNITS_IN_FULL[self.unit].removesuffix('s')}"

    def lead(self, frames: int) -> str:
        """Returns the time of a frame relative to the last of the context, e.g. `+30 min`, `-11 months`, `0 frames`."""
        return self._with_unit(f"{frames * self.step:+g}" if frames else "0")

    def leads(self, first: int, count: int) -> tuple[str, ...]:
        """Returns the times of `count` frames from number `first` on; the last of the context is number 0."""
        return tuple(self.lead(first + index) for index in range(count))

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}{'s' if self.unit not in ('min', 'h') and number.lstrip('+-') != '1' else ''}"

"""What a run carries through all of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.engine.callbacks.signals import SignalWatch
from bench.engine.processes import Processes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """Whom a run tells how it goes, what may end it before its time, and who does the work."""

    say: Say
    """Takes one line of progress."""
    watch: SignalWatch
    """Notes signals."""
    processes: Processes
    """This process among those that train together."""

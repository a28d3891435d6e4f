"""What belongs to the whole process, and so to no plugin: it is put back after a plugin's module was imported."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

Setting = tuple[Any, Callable[[Any], Any]]
"""A value, and what sets it."""


@contextmanager
def unchanged(origin: str) -> Iterator[None]:
    """Puts back what an import changed for the whole process, and warns of it; what it prints goes to stderr.

    Random numbers, the default type, the threads and the choice of deterministic algorithms decide the scores of every
    model. Not seen: functions of other libraries that a module replaces by its own.

    Args:
        origin: Who is imported, for the warning.
    """
    before = _settings()
    try:
        with redirect_stdout(sys.stderr):  # stdout belongs to `--format json`
            yield
    finally:
        after = _settings()
        changed = [name for name, (value, _) in before.items() if not _equal(value, after[name][0])]
        for name in changed:
            value, put_back = before[name]
            put_back(value)
        if changed:
            warnings.warn(f"{origin} changed {', '.join(changed)} when it was imported: put back", stacklevel=3)


def _settings() -> dict[str, Setting]:
    """Returns the settings of the libraries that are imported by now; none is imported for it."""
    found: dict[str, Setting] = {"Python's random numbers": (random.getstate(), random.setstate)}
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy is not None:
        found["numpy's random numbers"] = numpy.get_state(), numpy.set_state
    if torch is not None and hasattr(torch, "use_deterministic_algorithms"):  # not one that is being imported
        found |= {
            "torch's random numbers": (torch.get_rng_state(), torch.set_rng_state),
            "torch's default type": (torch.get_default_dtype(), torch.set_default_dtype),
            "torch's number of threads": (torch.get_num_threads(), torch.set_num_threads),
            "torch's choice of deterministic algorithms": (
                (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
                lambda given: torch.use_deterministic_algorithms(given[0], warn_only=given[1]),
            ),
        }
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)

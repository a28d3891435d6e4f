"""`import earthbench`: the public names of `bench`, under the name that people type.

The wheel has this file as `earthbench.py`. It holds nothing of its own: `earthbench.load_task is bench.load_task`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench import *  # noqa: F403

_HARNESS = "bench"


def __getattr__(name: str) -> Any:
    """Returns the attribute of `bench` with this name.

    Raises:
        ImportError: another package `bench` hides the harness.
        AttributeError: it has no such name.
    """
    if problem := _hidden_by():
        raise ImportError(problem)
    return getattr(importlib.import_module(_HARNESS), name)


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted([*__getattr__("__all__"), "__version__"])


def _hidden_by() -> str:
    """Returns which package hides the harness and what to do, an empty text if none does."""
    spec = importlib.util.find_spec(_HARNESS)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if spec is None:
        return "the package 'bench' of earthbench is not installed here: pip install earthbench"
    if any(importlib.machinery.PathFinder.find_spec("bench.registry", [folder]) for folder in folders):
        return ""
    where = folders[0] if folders else spec.origin
    return (
        f"the package 'bench' in {where} hides that of earthbench: take its folder off the path "
        "(PYTHONPATH, the folder you are in), or install earthbench into an environment of its own"
    )


def main() -> int:
    """Runs the command line and returns its exit code."""
    if problem := _hidden_by():
        sys.stderr.write(f"error: {problem}\n")
        return 2
    from bench.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

"""Execution of a plan: a failed row does not stop the others, and an interrupted one can be resumed."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from bench.config import compose
from bench.errors import EarthbenchError, InterruptedRunError, UsageError
from bench.logs import log
from bench.reproduction.plans import RowPlan


@dataclass(frozen=True)
class RowResult:
    """The result of a row."""

    row: str
    seed: int
    status: str
    """`done`, `failed` or `skipped`."""
    message: str
    exit_code: int = 0


def run_rows(plans: Sequence[RowPlan]) -> list[RowResult]:
    """Runs the planned rows one after another; a failed row does not stop the others.

    Args:
        plans: Results of `plan`; rows that are done or cannot run are skipped.

    Raises:
        InterruptedRunError: a signal arrived; the same command resumes.
    """
    from bench.engine.run import run as run_pipeline

    results = []
    for number, one in enumerate(plans, start=1):
        name = f"{one.table}/{one.row} seed {one.seed}"
        if one.status != "to run":
            code = 0 if one.status == "done" else UsageError.exit_code
            results.append(RowResult(one.row, one.seed, "skipped", f"{one.status}: {one.reason}", code))
            continue
        log.info(f"[{number}/{len(plans)}] {name}")
        try:
            outcome = run_pipeline(compose(one.overrides), training=True)
        except InterruptedRunError:
            raise
        except EarthbenchError as error:
            log.error(f"failed: {error}")
            results.append(RowResult(one.row, one.seed, "failed", str(error), error.exit_code))
        except Exception as error:  # a plugin's error must not stop the other rows
            log.error(traceback.format_exc())
            results.append(RowResult(one.row, one.seed, "failed", f"{type(error).__name__}: {error}", 1))
        else:
            results.append(RowResult(one.row, one.seed, "done", str(outcome.record_path)))
    return results

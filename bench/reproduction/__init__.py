"""The rows of a published table as runs: planning, cost and execution."""

from bench.reproduction.plans import RowPlan, find_rows, plan, seeds_of
from bench.reproduction.running import RowResult, run_rows

__all__ = ["RowPlan", "RowResult", "find_rows", "plan", "run_rows", "seeds_of"]

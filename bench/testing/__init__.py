"""Contract checks of models, tasks and other plugins for use in tests: `from bench.testing import check_model`."""

from bench.testing.constraints import check_constraint
from bench.testing.metrics import check_metric
from bench.testing.models import check_model
from bench.testing.tasks import check_task

__all__ = ["check_constraint", "check_metric", "check_model", "check_task"]

"""The contracts that models, tasks and others keep, for plugins to call: `from bench.testing import check_model`."""

from bench.testing.constraints import check_constraint
from bench.testing.metrics import check_metric
from bench.testing.models import check_model
from bench.testing.tasks import check_task

__all__ = ["check_constraint", "check_metric", "check_model", "check_task"]

"""earthbench: the harness.  `import bench` is light; what needs torch is imported when it is first used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import bench.renamed  # noqa: F401 - modules are found under their former names, too

if TYPE_CHECKING:
    from bench.engine.evaluate import evaluate
    from bench.metrics import load_metric
    from bench.models import count, load_model, load_weights
    from bench.pretrained import PretrainedModel, as_pretrained
    from bench.records import compare, interval, read_records, write_record
    from bench.tables import load_table
    from bench.tasks import load_task

if sys.platform == "darwin":
    # torch reads this when loaded: operations that Apple's GPUs lack then run on the CPU instead of ending a run.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = [
    "PretrainedModel",
    "as_pretrained",
    "compare",
    "count",
    "evaluate",
    "interval",
    "load_metric",
    "load_model",
    "load_table",
    "load_task",
    "load_weights",
    "read_records",
    "write_record",
]
__version__ = "0.1.0"

_HOME = {
    "PretrainedModel": "bench.pretrained",
    "as_pretrained": "bench.pretrained",
    "compare": "bench.records",
    "count": "bench.models",
    "evaluate": "bench.engine.evaluate",
    "interval": "bench.records",
    "load_metric": "bench.metrics",
    "load_model": "bench.models",
    "load_table": "bench.tables",
    "load_task": "bench.tasks",
    "load_weights": "bench.models",
    "read_records": "bench.records",
    "write_record": "bench.records",
}


def __getattr__(name: str) -> Any:
    """Returns a public function, importing its module on first use."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")

from __future__ import annotations

from pathlib import Path

import pytest

import bench
from bench.records.schema import RunRecord


@pytest.fixture(scope="session")
def measured(storms: Path) -> RunRecord:
    """A record of persistence on the synthetic storms, as made by committed code."""
    record = bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")
    sources = {name: part.model_copy(update={"dirty": False}) for name, part in record.code.sources.items()}
    return record.model_copy(update={"code": record.code.model_copy(update={"dirty": False, "sources": sources})})

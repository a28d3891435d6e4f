"""The device of the GPU tests, and the report that they write.

`tox -e gpu` takes under ten minutes on one GPU. EARTHBENCH_GPU_TESTS_ON=cpu runs the same tests on a CPU at tiny sizes:
this only shows that they run. The report is written to EARTHBENCH_GPU_REPORT (default: gpu_report).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_report import markdown

DEVICE = os.environ.get("EARTHBENCH_GPU_TESTS_ON", "cuda")
_FOUND: list[dict[str, Any]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests without a GPU, unless they are tried on a CPU."""
    for item in items:
        if Path(__file__).parent in item.path.parents and DEVICE == "cuda" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def small() -> bool:
    """Returns whether the tests are only tried, on a CPU and at tiny sizes."""
    return DEVICE == "cpu"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Returns a function that adds a row to the report."""

    def take(**found: Any) -> None:
        _FOUND.append({"test": request.node.originalname, **found})

    return take


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Disables TF32, unless a test asks for it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def pytest_sessionfinish() -> None:
    """Writes the report."""
    if not _FOUND:
        return
    folder = Path(os.environ.get("EARTHBENCH_GPU_REPORT", "gpu_report"))
    folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "a CPU: the tests were tried, nothing was measured"
    content = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "found": _FOUND}
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(content))

"""Real engines on this machine, started by `tox -e scaleout` and `tox -e slurm`; not part of the default suite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("earthbench")

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "data.batch_size=2",
    "train.loggers=[]", "train.save_every_minutes=1e-9", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    asked = os.environ.get("EARTHBENCH_INTEGRATION", "")
    for item in items:
        for marker in ("scaleout", "slurm"):
            if marker in item.keywords and marker not in asked:
                item.add_marker(pytest.mark.skip(reason=f"real engines: `tox -e {marker}`"))


@pytest.fixture
def earthbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, code: int | None = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, **more)
        assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return call


def until(condition: Callable[[], Any], what: str, timeout: float = 600) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {timeout:.0f} s in vain for {what}"
        time.sleep(0.2)
    return found

"""Real engines on this machine, started by `tox -e scaleout` and `tox -e slurm`; not part of the default suite."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import COMMAND


@pytest.fixture
def earthbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, code: int | None = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, **more)
        assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return call

"""Real runs of the installed command, for the tests of real engines."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("earthbench")

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "data.batch_size=2",
    "train.loggers=[]", "train.save_every_minutes=1e-9", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


def until(condition: Callable[[], Any], what: str, timeout: float = 600) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {timeout:.0f} s in vain for {what}"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

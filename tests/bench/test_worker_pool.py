from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = """
import os, time
from bench.worker_pool import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*pool.map(abs, [-1, 2]), pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    started = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    *values, worker = map(int, started.stdout.readline().split())
    assert values == [1, 2]
    started.send_signal(signal.SIGKILL)
    started.wait()
    until = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"  # ended, and nobody asked

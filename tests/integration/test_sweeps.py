"""A sweep of six runs on a real launcher: one is killed in the middle, and the same command completes the sweep."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import COMMAND, TINY, free_port, until

from bench.engine.checkpoints import newest_intact
from bench.engine.runfolder import Owner, read_owner
from bench.records.store import read_records

pytestmark = pytest.mark.scaleout
_TOO_SLOW = "timed out during startup"

_LAUNCHERS = {
    "ray": [
        "hydra/launcher=ray",
        "hydra.launcher.ray.init.address=auto",
        "+hydra.launcher.ray.init.object_store_memory=null",
        "+hydra.launcher.ray.remote.max_retries=0",
    ],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


@pytest.fixture
def engine(launcher: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of the command: with Ray, that of a cluster on this machine.

    Ray gives up after 30 seconds of starting, which is fixed in its code, and a loaded machine needs longer. Starting
    it is not part of the test: it is started before the sweep, and again if it reports that it was too slow.
    """
    given = os.environ | {"OMP_NUM_THREADS": "1"}
    if launcher != "ray":
        yield given
        return
    given |= {"RAY_ADDRESS": f"127.0.0.1:{free_port()}", "RAY_USAGE_STATS_ENABLED": "0"}
    given |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # otherwise it writes one into the home folder
    port = given["RAY_ADDRESS"].rpartition(":")[2]
    start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block",
             f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]  # fmt: skip
    log = tmp_path / "ray.log"

    def runs() -> bool:
        assert process.poll() is None or _TOO_SLOW in log.read_text(), log.read_text()[-3000:]
        return process.poll() is not None or "Ray runtime started" in log.read_text()

    for _ in range(5):
        with log.open("w") as file:
            process = subprocess.Popen(start, stdout=file, stderr=file, env=given)
        until(runs, "Ray")
        if process.poll() is None:
            break
    try:
        assert process.poll() is None, log.read_text()[-3000:]
        yield given
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("launcher", _LAUNCHERS)
def test_a_killed_sweep_is_completed_by_the_same_command(
    earthbench: Callable[..., Any], storms: Path, tmp_path: Path, launcher: str, engine: dict[str, str]
) -> None:
    sweep = [*TINY, "seed=0,1,2", "train.lr=1e-3,1e-2", "train.max_epochs=3", f"data.root={storms}"]
    command = [str(COMMAND), "run", "-m", *sweep, *_LAUNCHERS[launcher]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=engine)

        def one_with_a_checkpoint() -> tuple[Path, Owner] | None:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            for path in tmp_path.glob("outputs/sevir/unet/*/owner.json"):
                owner, checkpoint = read_owner(path.parent), path.parent / "checkpoints/last.ckpt"
                if (
                    owner
                    and owner.ended is None
                    and checkpoint.exists()
                    and not (checkpoint.parent / "training.json").exists()
                ):
                    return path.parent, owner
            return None

        folder, owner = until(one_with_a_checkpoint, "a run with a checkpoint")
        os.kill(owner.pid, signal.SIGKILL)
        process.wait(900)
    assert newest_intact(folder / "checkpoints", tmp_path) is not None
    status = json.loads(earthbench("status", *sweep, "--format", "json").stdout)
    assert len(status["runs"]) == 6 and status["counts"].get("killed", 0) >= 1, status
    recorded = {record.run_id for record in read_records(tmp_path / "results")[0]}
    done = earthbench(*command[1:], env=engine)
    records, problems = read_records(tmp_path / "results")
    assert not problems and len({record.config_fingerprint for record in records}) == len(records) == 6
    assert recorded <= {record.run_id for record in records}, "what was done is not done again"
    resumed = [record for record in records if record.training and record.training.resumed_count]
    assert resumed, done.stdout + done.stderr
    status = json.loads(earthbench("status", *sweep, "--format", "json").stdout)
    assert status["counts"] == {"recorded": 6}

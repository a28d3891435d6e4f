"""A SLURM of one node: it accepts a job, runs it, preempts it, requeues it, and the job finishes correctly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import COMMAND, TINY, until

from bench.records.store import read_records

pytestmark = pytest.mark.slurm
_HERE = Path(__file__).parent
_SCRIPT = _HERE.parents[1] / "docs/slurm/train.sbatch"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    cluster = str(_HERE / "slurm/cluster")
    subprocess.run([cluster, "start", str(folder)], check=True, stdout=subprocess.DEVNULL)
    here = {"SLURM_CONF": str(folder / "slurm.conf"), "EARTHBENCH": str(COMMAND), "OMP_NUM_THREADS": "1"}
    yield os.environ | here
    subprocess.run([cluster, "stop", str(folder)], check=True)


def _submit(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    command = ["sbatch", "--parsable", f"--chdir={folder}", f"--output={folder}/job-%j.log", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _job(environment: dict[str, str], number: str) -> dict[str, str]:
    command = ["scontrol", "--oneliner", "show", "job", number]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return dict(part.split("=", 1) for part in told.split() if "=" in part)


def _ended(environment: dict[str, str], number: str) -> str | None:
    state = _job(environment, number)["JobState"]
    return state if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") else None


def test_a_preempted_run_is_requeued_and_completed(slurm: dict[str, str], storms: Path, tmp_path: Path) -> None:
    everything = f"--cpus-per-task={os.cpu_count()}"
    run = [*TINY, "train.max_epochs=30", f"data.root={storms}"]
    job = _submit(slurm, tmp_path, "--partition=normal", everything, str(_SCRIPT), *run)
    until(lambda: list(tmp_path.glob("outputs/*/*/*/checkpoints/last.ckpt")), "a checkpoint")
    urgent = _submit(slurm, tmp_path, "--partition=urgent", everything, "--wrap", "sleep 2")
    assert until(lambda: _ended(slurm, urgent), "the urgent job") == "COMPLETED"
    assert until(lambda: _ended(slurm, job), "the requeued run") == "COMPLETED", (
        tmp_path / f"job-{job}.log"
    ).read_text()
    assert int(_job(slurm, job)["Restarts"]) >= 1
    log = (tmp_path / f"job-{job}.log").read_text()
    assert "stopped by SIGTERM; saved after step" in log and "resuming from" in log
    (record,), problems = read_records(tmp_path / "results")
    assert not problems and record.training is not None
    assert record.training.resumed_count >= 1 and record.training.epochs == 30


def test_a_sweep_runs_through_submitit(
    slurm: dict[str, str], earthbench: Callable[..., Any], storms: Path, tmp_path: Path
) -> None:
    assert shutil.which("srun")
    sweep = ["model=persistence", "split=val,test", f"data.root={storms}", "progress=false", "picture=false"]
    preset = ["hydra/launcher=slurm_cpu", "hydra.launcher.partition=normal"]
    earthbench("run", "-m", *sweep, *preset, "device=cpu", env=slurm)
    assert {record.data.split for record in read_records(tmp_path / "results")[0]} == {"val", "test"}

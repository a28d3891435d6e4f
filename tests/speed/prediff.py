"""PreDiff at toy size on synthetic storms: trained, scored, guided, and its samplers compared, on one CPU thread.

    OMP_NUM_THREADS=1 python tests/speed/prediff.py OUT

Trains `prediff`, then `prediff_ka` on the same stages, as `earthbench run` does; a second call reuses the files in OUT.
Writes OUT/figures.json, and OUT/control.nc and OUT/control.png by `earthbench forecast --control`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cli.main import main as earthbench
from bench.config import compose
from bench.data.sevir.synthetic import make_sevir
from bench.engine.run import run
from bench.models import load_model, load_weights
from bench.records.schema import RunRecord
from bench.tasks import load_task
from bench.tasks.task import Task
from earthformer.prediff.model import PreDiff
from earthformer.prediff.sampling import Sampler

TASK = {"t_in": 4, "t_out": 4, "stride": 6}
# Norms have at most 32 groups. In the denoiser and the alignment network a group must hold several channels: a norm of
# each channel alone takes the mean over the frame out of it, which is what the alignment network is to read.
MODEL: dict[str, Any] = {
    "latent_channels": 8, "autoencoder_channels": [16, 32, 32], "autoencoder_layers": 1, "autoencoder_groups": 8,
    "base_units": 64, "depth": [1], "num_heads": 4, "dropout": 0.0,
    "scale_factor": 0.35,  # brings the latents of this autoencoder to about unit variance
    "sampler": "dpm_solver++", "steps": 20,
}  # fmt: skip
ALIGNMENT: dict[str, Any] = {"alignment_units": 64, "alignment_depth": [1], "guide_scale": 1000.0}
TRAIN = [
    "data.batch_size=16", "train.loggers=[]", "train.warmup_fraction=0.1", "train.min_lr_ratio=0.01",
    "train.stages.autoencoder.lr=4e-3", "train.stages.autoencoder.max_epochs=2",
    "train.stages.denoiser.lr=2e-3", "train.stages.denoiser.max_epochs=4",
    "train.stages.denoiser.ema_decay=0.995", "train.stages.denoiser.ema_warmup=true",
]  # fmt: skip
TRAIN_ALIGNMENT = ["train.stages.alignment.lr=2e-3", "train.stages.alignment.max_epochs=2"]
MEMBERS = 8
SIGMAS = (-4, -2, 0, 2, 4)
CONTEXTS, GUIDED_MEMBERS = 8, 4
COMPARED, COMPARED_MEMBERS = 4, 6
SCORES = ("crps", "spread_skill_ratio", "frechet_storm", "csi_m", "csi_m_members", "csi_m_pool4", "mse", "mse_members")


def main(out: Path) -> None:
    """Trains, evaluates, guides and compares; prints the figures."""
    torch.set_num_threads(1)
    root = out / "storms"
    if not root.exists():
        make_sevir(root, events={"train": 640, "val": 8, "test": 12}, size=16, frames=25, minutes=10.0, seed=3)
    figures: dict[str, Any] = {}
    started = time.process_time()
    records = {
        "prediff": trained(out, "prediff", MODEL, TRAIN, MEMBERS),
        "prediff_ka": trained(out, "prediff_ka", MODEL | ALIGNMENT, [*TRAIN, *TRAIN_ALIGNMENT], MEMBERS),
        "persistence": trained(out, "persistence", {}, [], 1),
    }
    figures["cpu_s_of_training_and_evaluation"] = time.process_time() - started
    figures["scores"] = {
        name: {score: record.scores[score] for score in SCORES if score in record.scores}
        for name, record in records.items()
    }
    show(figures)

    task = load_task("sevir_lr", root, **TASK)
    checkpoint = newest(out / "work/sevir_lr/prediff_ka")
    guided = load_model("prediff_ka", task, **MODEL, **ALIGNMENT)
    load_weights(guided, str(checkpoint))
    plain = load_model("prediff", task, **MODEL)
    load_weights(plain, str(newest(out / "work/sevir_lr/prediff")))
    context, truth = some_of(task, CONTEXTS)
    with torch.no_grad():
        figures["scale_of_latents"] = float(plain.autoencoder.to_latents(truth).std() * plain.scale_factor)
    figures |= control(guided, plain, context)
    show(figures)
    figures["samplers"] = samplers(plain, *some_of(task, COMPARED))
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)
    earthbench([
        "forecast", *overrides(out, "prediff_ka", MODEL | ALIGNMENT), f"checkpoint={checkpoint}", "--members=8",
        "--control=-4,-2,0,2,4", f"--out={out / 'control.nc'}", f"--picture={out / 'control.png'}",
    ])  # fmt: skip


def overrides(out: Path, model: str, options: dict[str, Any]) -> list[str]:
    """Returns the overrides of `earthbench run` for task, model and folders."""
    return [
        "task=sevir_lr", *(f"task.{name}={value}" for name, value in TASK.items()),
        f"model={model}", *(f"model.{name}={value}" for name, value in options.items()),
        f"data.root={out / 'storms'}", f"results.root={out / 'results'}", f"work={out / 'work'}", "device=cpu",
    ]  # fmt: skip


def trained(out: Path, model: str, options: dict[str, Any], train: list[str], members: int) -> RunRecord:
    """Returns the record of a run: trained, unless its stages exist, and evaluated with members."""
    asked = [*overrides(out, model, options), *train, f"evaluate.members={members}", "progress=false", "picture=false"]
    return run(compose(asked), training=True).record


def newest(folder: Path) -> Path:
    """Returns the weights of the last run of a model."""
    return max(folder.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def some_of(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """Returns contexts and targets from all over the test split, normalised."""
    data = task.dataset("test")
    chosen = torch.linspace(0, len(data) - 1, count).long().tolist()
    context, target = (torch.stack(part) for part in zip(*(data[index] for index in chosen), strict=True))
    return context, target


def control(guided: Any, plain: PreDiff, context: Tensor) -> dict[str, Any]:
    """Returns the members' mean intensity for each n, and its target."""
    mu, sigma = float(guided.alignment.mean), float(guided.alignment.std)
    reached = {n: float(guided.sample(context, members=GUIDED_MEMBERS, control=n).mean()) for n in SIGMAS}
    return {
        "mean_intensity_of_members": reached,
        "mean_intensity_target": {n: mu + n * sigma for n in SIGMAS},
        "mean_intensity_without_control": float(plain.sample(context, members=GUIDED_MEMBERS).mean()),
        "control_is_strictly_monotone": all(reached[a] < reached[b] for a, b in itertools.pairwise(SIGMAS)),
    }


def samplers(model: PreDiff, context: Tensor, truth: Tensor) -> dict[str, dict[str, float]]:
    """Returns cost, scores and distance from DDPM with 1000 steps of every sampler, without guidance.

    The distance of two ensembles is that of their means; for comparison, that of two halves of the DDPM ensemble is
    sampling noise alone.
    """
    drawn, cost = {}, {}
    for sampler in (Sampler("ddpm", 1000), Sampler("dpm_solver++", 20), Sampler("ddim", 50)):
        model.sampler = sampler
        started = time.process_time()
        drawn[sampler.name] = model.sample(context, members=COMPARED_MEMBERS)
        cost[sampler.name] = time.process_time() - started
    exact, half = drawn["ddpm"], COMPARED_MEMBERS // 2
    found = {
        name: {
            "cpu_s": cost[name],
            "cost_ratio": cost["ddpm"] / cost[name],
            "crps": crps(members, truth),
            "mean_intensity": float(members.mean()),
            "spread": float(members.std(dim=0).mean()),
            "rms_distance_of_means": rms(members.mean(0) - exact.mean(0)),
        }
        for name, members in drawn.items()
    }
    found["halves of ddpm"] = {"rms_distance_of_means": rms(exact[:half].mean(0) - exact[half:].mean(0))}
    return found


def crps(members: Tensor, truth: Tensor) -> float:
    """Returns the fair ensemble CRPS (M - 1 in the spread), the mean over everything but members."""
    count = len(members)
    spread = sum((first - second).abs().mean() for first in members for second in members) / (count * (count - 1))
    return float((members - truth).abs().mean() - spread / 2)


def rms(values: Tensor) -> float:
    """Returns the root of the mean square."""
    return float(values.square().mean().sqrt())


def show(figures: dict[str, Any]) -> None:
    """Prints the figures so far."""
    print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

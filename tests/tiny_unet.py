"""A tiny UNet, trained on synthetic events by one call, for tests of the files of a run."""

from __future__ import annotations

from pathlib import Path

from logged import logged

from bench.config import compose
from bench.engine.run import Outcome, run

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "model.norm_momentum=0.1",
    "data.batch_size=4", "train.max_epochs=1", "train.loggers=[]", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


def run_tiny(
    root: Path, out: Path, *overrides: str, training: bool = True, again: bool = True
) -> tuple[Outcome, list[str]]:
    where = [f"data.root={root}", f"results.root={out / 'results'}", f"work={out / 'work'}"]
    config = compose([*TINY, *where, *overrides])
    with logged() as said:
        return run(config, training=training, again=again), said


def checkpoint_of(out: Path, name: str = "best") -> Path:
    (path,) = out.glob(f"work/*/*/*/checkpoints/{name}.ckpt")
    return path

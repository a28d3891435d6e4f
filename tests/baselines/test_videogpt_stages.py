"""VideoGPT's stages in one command: trained, loaded from a file, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_videogpt import CONTEXT, SHAPES, make

from baselines.videogpt import VideoGPT
from bench.config import compose
from bench.engine.ensembles import Ensemble, draw_members
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, ContractError, DataError

STAGED = [
    "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", "data.batch_size=4", "limit=2", "model=videogpt",
    *(f"model.{key}={value}" for key, value in VideoGPT.presets["tiny"].items()), "train.max_epochs=1",
    "train.limit=8", "train.loggers=[]", "train.stages.gpt.ema_decay=0.9", "progress=false", "picture=false",
    "device=cpu",
]  # fmt: skip


def start(storms: Path, out: Path, *overrides: str) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    folders = [f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}"]
    return run(compose([*STAGED, *folders, *overrides]), training=True, say=lines.append), lines


@pytest.fixture(scope="module")
def trained(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("trained")
    return out, start(storms, out, "evaluate.members=2")[0]


def test_one_command_trains_both_stages_and_evaluates(trained: tuple[Path, Outcome], storms: Path) -> None:
    out, outcome = trained
    summary = outcome.record.training
    assert summary is not None and summary.steps == 4
    assert summary.stopped_because == "vqvae: max_epochs; gpt: max_epochs"
    assert "crps" in outcome.record.scores
    (whole,) = out.glob("work/sevir_lr/videogpt/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    (stage,) = out.glob("work/sevir_lr/stages/vqvae-*/checkpoints/best.ckpt")
    of_stage = torch.load(stage, weights_only=True)["state_dict"]
    for name in ("codebook.vectors", "variance", "encoder.0.weight"):
        assert torch.equal(state[f"vqvae.{name}"], of_stage[f"model.vqvae.{name}"]), name
    assert state["vqvae.codebook.started"] and state["vqvae.variance"] != torch.tensor(0.06)


def test_a_stage_may_come_from_a_file(trained: tuple[Path, Outcome], storms: Path, tmp_path: Path) -> None:
    out, _ = trained
    (whole,) = out.glob("work/sevir_lr/videogpt/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    given = {key.removeprefix("vqvae."): value for key, value in state.items() if key.startswith("vqvae.")}
    for number, content in enumerate((state, given, {"state_dict": given})):
        torch.save(content, tmp_path / f"{number}.pt")
        stage = make(((3, 32, 32, 1), (2, 32, 32, 1))).stages()[0]
        stage.load(tmp_path / f"{number}.pt")
        assert all(torch.equal(value, given[name]) for name, value in stage.part.state_dict().items())
    outcome, _ = start(storms, tmp_path, f"train.stages.vqvae.checkpoint={tmp_path / '1.pt'}")
    assert outcome.record.training is not None
    assert outcome.record.training.stopped_because == "vqvae: given weights; gpt: max_epochs"


def test_wrong_stages_are_refused(storms: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_text("nothing")
    torch.save(make(codes=16).vqvae.state_dict(), tmp_path / "other.pt")
    for overrides, error, words in (
        (["train.stages.vqvae.checkpoint=missing.pt"], DataError, "missing.pt: no such file"),
        ([f"train.stages.vqvae.checkpoint={tmp_path / 'other.pt'}"], ConfigError, r"codebook.vectors is \(16, 16\)"),
        (["train.stages.vqvea.lr=1.0"], ConfigError, "vqvea: Did you mean 'vqvae'"),
        (["model.downsample=5"], ConfigError, "downsample must be a power of 2"),
    ):
        with pytest.raises(error, match=words):
            start(storms, tmp_path, *overrides)
    with pytest.raises(ValueError, match=r"no.pt: expected tensors"):
        make().stages()[0].load(tmp_path / "no.pt")
    with pytest.raises(ContractError, match=r"draws no members: .*expected a context"):
        draw_members(make(), CONTEXT[:, :2], torch.arange(5), Ensemble(2), SHAPES[1])

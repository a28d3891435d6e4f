"""PreDiff's stages in one command: trained, reused, loaded from a file, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from logged import logged
from torch import Tensor, nn

from bench.config import Config, compose
from bench.data.mnist import MakeNBody
from bench.engine.ensembles import Ensemble, draw_members
from bench.engine.forecaster import Forecaster
from bench.engine.run import Outcome, run
from bench.engine.stages import _prepare
from bench.errors import ConfigError, ContractError, DataError, RunFailedError
from bench.models import load_model
from bench.pretrained import PretrainedModel, as_pretrained
from bench.tasks import load_task
from earthformer.prediff.aligned_model import PreDiffKA
from earthformer.prediff.autoencoder import make_autoencoder
from earthformer.prediff.constraints import total_energy
from earthformer.prediff.upstream import to_upstream_state_dict

NBODY = {"constraint": "energy", "control": None}

STAGED = [
    "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", "data.batch_size=4", "limit=2",
    "model.latent_channels=2", "model.autoencoder_channels=[8,8,8]", "model.autoencoder_layers=1",
    "model.autoencoder_groups=4", "model.base_units=8", "model.depth=[1]", "model.num_heads=2", "model.members=2",
    "model.sampler=dpm_solver++", "model.steps=2", "train.max_epochs=1", "train.limit=8", "train.loggers=[]",
    "train.stages.denoiser.ema_decay=0.9999", "train.stages.denoiser.ema_warmup=true", "progress=false",
    "picture=false", "device=cpu",
]  # fmt: skip


def config(storms: Path, out: Path, *overrides: str) -> Config:
    return compose(
        [*STAGED, f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}", *overrides]
    )


def start(storms: Path, out: Path, *overrides: str) -> tuple[Outcome, list[str]]:
    with logged() as lines:
        return run(config(storms, out, *overrides), training=True), lines


@pytest.fixture(scope="module")
def trained(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[str]]:
    out = tmp_path_factory.mktemp("trained")
    outcome, lines = start(storms, out, "model=prediff")
    return out, outcome, lines


def test_one_command_trains_all_stages_and_evaluates(trained: tuple[Path, Outcome, list[str]], storms: Path) -> None:
    out, outcome, lines = trained
    summary = outcome.record.training
    assert summary is not None and summary.steps == 4 and summary.averaged
    assert summary.stopped_because == "autoencoder: max_epochs; denoiser: max_epochs"
    assert sum("stage autoencoder (1 of 2)" in line for line in lines) == 1
    (whole,) = out.glob("work/sevir_lr/prediff/*/checkpoints/last.ckpt")
    again = run(config(storms, out, "model=prediff", f"checkpoint={whole}"), training=False).record
    assert again.scores == outcome.record.scores and again.training == summary
    # the average, not the last weights, is what forecasts
    state = torch.load(whole, weights_only=True)["state_dict"]
    (last,) = out.glob("work/sevir_lr/stages/denoiser-*/checkpoints/best.ckpt")
    stage = torch.load(last, weights_only=True)["state_dict"]
    name = "denoiser.final_proj.weight"
    assert torch.equal(state[f"diffusion.{name}"], stage[f"average.module.diffusion.{name}"])
    assert not torch.equal(state[f"diffusion.{name}"], stage[f"model.diffusion.{name}"])


@pytest.mark.slow
def test_stages_are_reused(trained: tuple[Path, Outcome, list[str]], storms: Path) -> None:
    out, outcome, _ = trained
    alike, lines = start(storms, out, "model=prediff", "model.members=1")  # how it samples is nothing to the weights
    assert sum("training had ended" in line for line in lines) == 2
    aligned, lines = start(storms, out, "model=prediff_ka", "model.alignment_units=8", "model.alignment_depth=[1]")
    assert sum("training had ended" in line for line in lines) == 2 and any("alignment (3 of 3)" in x for x in lines)
    (whole,) = out.glob("work/sevir_lr/prediff_ka/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    task = load_task("sevir_lr", storms, t_in=3, t_out=2, stride=12)
    means = torch.stack([task.dataset("train")[index][1].mean() for index in range(8)]).double()  # train.limit=8
    torch.testing.assert_close(state["alignment.mean"].double(), means.mean()[None], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state["alignment.std"].double(), means.std(correction=0)[None], atol=1e-6, rtol=1e-4)
    _, lines = start(storms, out, "model=prediff", "train.stages.denoiser.lr=2e-3")
    assert sum("training had ended" in line for line in lines) == 1, "another denoiser on the same autoencoder"
    assert alike.record.training.identity == outcome.record.training.identity and aligned.record.scores


@pytest.mark.slow
def test_a_stage_may_come_from_a_file(storms: Path, tmp_path: Path) -> None:
    given = make_autoencoder(latent_channels=2, block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1)
    torch.save(to_upstream_state_dict(given), tmp_path / "theirs.pt")
    outcome, _ = start(
        storms, tmp_path, "model=prediff", f"train.stages.autoencoder.checkpoint={tmp_path / 'theirs.pt'}"
    )
    assert outcome.record.training is not None
    assert outcome.record.training.stopped_because.startswith("autoencoder: given weights")
    (whole,) = tmp_path.glob("work/sevir_lr/prediff/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    assert torch.equal(state["autoencoder.encoder.conv_in.weight"], given.encoder.conv_in.weight)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["train.stages.autoencoder.checkpoint=missing.pt"], DataError, "missing.pt: no such file"),
        (["train.stages.autoencodr.lr=1.0"], ConfigError, "autoencodr: Did you mean 'autoencoder'"),
        (["train.stages.denoiser.lrr=1.0"], ConfigError, "train.stages.denoiser.lrr: unknown key. Did you mean 'lr'"),
        (["train.stages.denoiser.lr=-1.0"], ConfigError, "train.stages.denoiser.lr"),
    ],
)
def test_wrong_stages_are_refused(
    storms: Path, tmp_path: Path, overrides: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        start(storms, tmp_path, "model=prediff", *overrides)


def test_shared_weights_reproduce_the_scored_members(
    trained: tuple[Path, Outcome, list[str]], storms: Path, tmp_path: Path
) -> None:
    """The sampler is not part of the weights: the record has it, and therefore the card's command."""
    out, outcome, _ = trained
    (whole,) = out.glob("work/sevir_lr/prediff/*/checkpoints/last.ckpt")
    task = load_task("sevir_lr", storms, t_in=3, t_out=2, stride=12)
    shared = as_pretrained(load_model("prediff", task, weights=whole), outcome.record)
    shared.save_pretrained(tmp_path)
    again = PretrainedModel.from_pretrained(tmp_path)
    context = task.dataset("test")[0][0][None]
    with torch.inference_mode():
        expected = shared.eval()(context)
        for one in (again, load_model("prediff", task, weights=tmp_path).eval()):
            torch.testing.assert_close(one.eval()(context), expected, rtol=1e-4, atol=1e-4)
    assert again.model.sampler.steps == 2 and again.model.members == 2
    card = (tmp_path / "README.md").read_text()
    assert "model.sampler=dpm_solver++ model.steps=2" in card and "checkpoint=ADDRESS" in card


def test_weights_of_another_latent_size_are_refused(storms: Path, tmp_path: Path) -> None:
    given = make_autoencoder(latent_channels=4, block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1)
    torch.save(given.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"(?s)does not fit.*quant_conv.weight: expected \(4, 4, 1, 1\), found \(8,"):
        start(storms, tmp_path, "model=prediff", f"train.stages.autoencoder.checkpoint={tmp_path / 'other.pt'}")


def test_a_constraint_without_its_data_is_refused(storms: Path) -> None:
    task = load_task("sevir_lr", storms, t_in=3, t_out=2)
    tiny = PreDiffKA.presets["tiny"] | {"constraint": "energy", "control": None}
    stage = PreDiffKA(task.input_shape, task.target_shape, **tiny).stages()[2]
    with pytest.raises(ConfigError, match=r"cannot be trained on task 'sevir_lr': .*energy.* found none"):
        _prepare(stage, task, config(storms, storms, "model=prediff"))


def test_refused_and_diverged_forecasts_have_their_own_errors(storms: Path) -> None:
    task = load_task("sevir_lr", storms, t_in=4, t_out=3)
    model = PreDiffKA(task.input_shape, task.target_shape, **PreDiffKA.presets["tiny"])
    context = torch.rand(1, *task.input_shape)
    model.control_as = "sigmas"
    with pytest.raises(ContractError, match=r"gives no forecast: .*train the alignment stage"):
        Forecaster(model, task).forecast(context)
    with pytest.raises(ContractError, match=r"draws no members: .*train the alignment stage"):
        draw_members(model, context, torch.tensor([0]), Ensemble(2), task.target_shape)
    model.control_as, model.guidance["scale"] = "value", 1e38
    with pytest.raises(RunFailedError, match="lower guide_scale"):
        Forecaster(model, task).forecast(context)
    with pytest.raises(RunFailedError, match="lower guide_scale"):
        draw_members(model, context, torch.tensor([0]), Ensemble(2), task.target_shape)


def test_the_running_average_warms_up_as_in_the_paper(storms: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, context: Tensor) -> Tensor:
            return context

    train = config(storms, storms, "model=prediff").train.model_copy(update={"ema_decay": 0.9999, "ema_warmup": True})
    forecaster = Forecaster(Constant(), load_task("sevir_lr", storms), train)
    decays = [forecaster.average.get_decay(step + forecaster._average_lag) for step in (1, 2, 50, 10**6)]
    assert decays == pytest.approx([2 / 11, 3 / 12, 51 / 60, 0.9999])


def test_the_energy_constraint_trains_on_n_body_mnist(tmp_path: Path) -> None:
    MakeNBody(out=tmp_path / "nbody", train=6, val=1, test=1).run(lambda *_: None)
    task = load_task("nbody_mnist", tmp_path / "nbody", t_in=5, t_out=3)
    model = PreDiffKA(task.input_shape, task.target_shape, **PreDiffKA.presets["tiny"] | NBODY)
    data = task.dataset("train")
    context, target, *labels = (torch.stack(part) for part in zip(*(data.stored(i) for i in range(6)), strict=True))
    measured = model.alignment.constraint.measure(target, labels)
    motion = task.sequences("train").motion
    state = (torch.from_numpy(part[:, 5:8]) for part in (motion.corners, motion.velocities))
    torch.testing.assert_close(measured[..., 0].double(), total_energy(*state), rtol=1e-6, atol=0.0)
    stage = model.stages()[2]
    _prepare(stage, task, config(tmp_path, tmp_path, "model=prediff", "data.batch_size=4"))
    torch.testing.assert_close(model.alignment.mean.double(), measured.double().mean()[None], rtol=1e-6, atol=0.0)
    pair = task.normalise(context), task.normalise(target)
    losses = stage.module.training_loss(*pair, step=0, total_steps=1, labels=labels)
    losses["alignment"].backward()
    assert float(model.alignment.network.out[2].c_proj.weight.grad.norm()) > 0

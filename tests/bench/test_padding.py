"""Models that need sizes divisible by a number, on frames of any size."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from bench import registry
from bench.api import model_traits
from bench.cli.main import main
from bench.models import count, load_model
from bench.padding import padded_shape
from bench.tasks import load_task

SIZE = (21, 13)
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": [4, 4], "center_channels": 4},
    "dgmr": {
        "channels": [8, 16], "context_channels": [4, 8], "latent_widths": [8, 16], "grid_samples": 2, "members": 2,
        "discriminator_channels": [8, 16, 32],
    },
    "convlstm": {"hidden": [8, 8, 8], "head_channels": 4},
    "phydnet": {"conv_hidden": [16, 64]},
    "predrnn": {"hidden": [8, 8], "patch_size": 4},
    "e3d_lstm": {"hidden": [8, 8], "patch_size": 4},
    "rainformer": {"hidden": 16, "downscale": [2, 2, 2, 1], "heads": [2, 2, 4, 4], "window": 2},
    "simvp": {"hid_s": 4, "hid_t": 16, "n_s": 4, "n_t": 2},
    "tau": {"hid_s": 4, "hid_t": 16, "n_s": 4, "n_t": 2},
}  # fmt: skip
MULTIPLES = {
    "unet": 4, "dgmr": 32, "convlstm": 8, "phydnet": 4, "predrnn": 4, "e3d_lstm": 4, "rainformer": 16, "simvp": 4,
    "tau": 4,
}  # fmt: skip
IN_STAGES = {"prediff": 4, "prediff_ka": 4, "ldm": 8, "videogpt": 4}
"""Those of the preset `tiny`."""


def tiny(name: str) -> dict[str, Any]:
    return dict(model_traits(registry.find("model", name).load()).presets.get("tiny", {}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).gamma(0.5, 2, (60, *SIZE)).astype(np.float32)
    times = np.datetime64("2024-01-01", "ns") + np.arange(60) * np.timedelta64(300, "s")
    path = tmp_path_factory.mktemp("grid") / "rain.nc"
    xarray.Dataset({"rain": (("time", "y", "x"), values)}, {"time": times}).to_netcdf(path, engine="h5netcdf")
    return path


def test_every_model_with_a_size_multiple_is_covered_here() -> None:
    names = [name for name in registry.names("model") if hasattr(registry.find("model", name).load(), "size_multiple")]
    assert {*SMALL, *IN_STAGES} == {*names}


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_model_builds_for_any_size(name: str, root: Path) -> None:
    task = load_task("grid", root, t_in=4, t_out=3)
    given = {"threshold": 0.1} if name == "steps" else {}  # on the scale of a mean of 0, no rain is not 0
    model = load_model(name, task, **(SMALL.get(name) or tiny(name)), **given).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *task.input_shape)).shape == (2, *task.target_shape)


@pytest.mark.parametrize("name", SMALL)
def test_any_size_trains_and_forecasts(name: str, root: Path) -> None:
    torch.manual_seed(0)
    task = load_task("grid", root, t_in=3, t_out=3)
    model = load_model(name, task, **SMALL[name])
    height, width = padded_shape((3, *SIZE, 1), MULTIPLES[name])[1:3]
    assert (model.frame_size, model.padded_size) == (SIZE, (height, width))
    assert registry.name_of("model", type(model)) == name
    model.eval()
    stored = [task.dataset("train").stored(at) for at in range(2)]
    context = task.to_context(torch.stack([one[0] for one in stored]))
    target = task.normalise(torch.stack([one[1] for one in stored]))
    with torch.no_grad():
        forecast = model(context)
        twin = copy.deepcopy(model)(context)
    assert forecast.shape == (2, *task.target_shape)
    assert torch.equal(forecast, twin)
    model.train()
    own = getattr(model, "training_loss", None)
    known = {"context_known": ~context.isnan()} if getattr(model, "verifies_context", False) else {}
    found = own(context, target, step=0, total_steps=10, **known) if own else (model(context) - target).square().mean()
    loss = sum(found.values()) if isinstance(found, dict) else found
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_padding_replicates_the_edges(root: Path) -> None:
    task = load_task("grid", root, t_in=3, t_out=3)
    model = load_model("unet", task, **SMALL["unet"]).eval()
    context = torch.randn(1, *task.input_shape)
    continued = torch.from_numpy(np.pad(context.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3), (0, 0)), mode="edge"))
    with torch.no_grad():
        torch.testing.assert_close(model(context), model(continued)[:, :, : SIZE[0], : SIZE[1]])


@pytest.mark.parametrize("name", IN_STAGES)
def test_padding_is_missing_in_the_training_of_stages(name: str, root: Path) -> None:
    """Each loss equals that of frames that are stored padded with NaN."""
    task, whole = load_task("grid", root, t_in=4, t_out=3), load_task("grid", crop=[24, 16], t_in=4, t_out=3)
    torch.manual_seed(0)
    padded, plain = load_model(name, task, **tiny(name)), load_model(name, whole, **tiny(name))
    assert (padded.frame_size, padded.padded_size) == (SIZE, padded_shape((3, *SIZE, 1), IN_STAGES[name])[1:3])
    plain.load_state_dict(padded.state_dict())
    context, target = torch.rand(2, *task.input_shape), torch.rand(2, *task.target_shape)
    edges = ((0, 0), (0, 0), (0, 3), (0, 3), (0, 0))
    continued = torch.from_numpy(np.pad(context.numpy(), edges, mode="edge"))
    missing = torch.from_numpy(np.pad(target.numpy(), edges, constant_values=np.nan))
    known = torch.ones_like(context, dtype=torch.bool)
    known_inside = torch.from_numpy(np.pad(known.numpy(), edges))
    for one, other in zip(padded.stages(), plain.stages(), strict=True):
        assert one.name == other.name and {**other.depends_on, "padded_size": [24, 16]} == one.depends_on
        assert {n: v.shape for n, v in one.module.state_dict().items()} == {
            n: v.shape for n, v in other.module.state_dict().items()
        }
        verifies = model_traits(one.module).verifies_context
        own, others = ({"context_known": known}, {"context_known": known_inside}) if verifies else ({}, {})
        if one.prepare is not None:
            one.prepare([(context, target)])
            plain.load_state_dict(padded.state_dict())
        one.module.eval(), other.module.eval()
        losses = [
            one.module.validation_loss(context, target, **own),
            other.module.validation_loss(continued, missing, **others),
        ]
        assert torch.isfinite(losses[0]) and torch.equal(*losses)
        found = copy.deepcopy(one.module).train().training_loss(context, target, step=0, total_steps=9, **own)
        loss = sum(found.values()) if isinstance(found, dict) else found
        assert torch.isfinite(loss)
        loss.backward()
    drawn = padded.eval().sample(context, members=2, seeds=torch.tensor([1, 2]))
    assert drawn.shape == (2, 2, *task.target_shape)
    torch.testing.assert_close(
        drawn, plain.eval().sample(continued, members=2, seeds=torch.tensor([1, 2]))[..., : SIZE[0], : SIZE[1], :]
    )


@pytest.mark.slow
def test_a_model_in_stages_is_trained_scored_and_loaded_on_any_size(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"{key}={value}" for key, value in tiny("prediff_ka").items()]
    words = ["task=grid", "task.t_in=4", "task.t_out=3", f"data.root={root}", "model=prediff_ka", "device=cpu"]
    words += [f"model.{one}".replace(" ", "") for one in given]
    quiet = ["train.max_steps=1", "progress=false", "picture=false", "train.loggers=[]", "data.batch_size=2"]
    assert main(["run", *words, *quiet]) == 0
    assert (
        main(
            [
                "forecast",
                *words,
                f"checkpoint={next(tmp_path.glob('outputs/grid/prediff_ka/*/checkpoints/last.ckpt'))}",
                "--latest",
            ]
        )
        == 0
    )
    with xarray.open_dataset("forecast.nc") as found:
        assert found["forecast"].shape == (1, 3, *SIZE) and np.isfinite(found["forecast"].values).all()


def test_a_size_that_fits_is_not_padded() -> None:
    model = load_model("unet", load_task("sevir_lr"), **SMALL["unet"])
    assert type(model) is registry.find("model", "unet").load()


def test_multiply_adds_are_those_of_the_padded_frames(root: Path) -> None:
    task = load_task("grid", root, t_in=3, t_out=3)
    padded = count(load_model("unet", task, **SMALL["unet"]), task).gmacs
    whole = load_task("grid", crop=[24, 16], t_in=3, t_out=3)
    assert padded == count(load_model("unet", whole, **SMALL["unet"]), whole).gmacs


def test_wrong_hyperparameters_are_refused_by_the_model(root: Path) -> None:
    from bench.errors import ConfigError

    with pytest.raises(ConfigError, match="channels"):
        load_model("unet", load_task("grid", root, t_in=3, t_out=3), channels=[])


def test_weights_do_not_depend_on_the_padding(root: Path, tmp_path: Path) -> None:
    task = load_task("grid", root, t_in=3, t_out=3)
    model = load_model("unet", task, **SMALL["unet"])
    names = set(load_model("unet", load_task("grid", crop=[24, 16], t_in=3, t_out=3), **SMALL["unet"]).state_dict())
    assert set(model.state_dict()) == names
    assert pickle.dumps({name: value.shape for name, value in model.state_dict().items()})

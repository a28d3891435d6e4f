"""Weights of every registered model can be saved and loaded: as a checkpoint, a folder, a file, by the Hub's mixin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bench
from bench import registry
from bench.checkpoint_format import seal
from bench.config import compose
from bench.data.sevir.synthetic import make_sevir
from bench.engine.identity import identify, stored_identity
from bench.errors import ConfigError, DataError
from bench.models import has_weights
from bench.tasks import Task

_SMALL_EARTHFORMER = {
    "base_units": 16, "enc_depth": [1, 1], "dec_depth": [1, 1], "initial_downsample_type": "conv",
    "initial_downsample_scale": 2,
}  # fmt: skip
_OTHERWISE = ("unet", "seasonal_regression")
"""Tried in the default run; not made for storms, because it takes the season of a context."""
_SHORT = {"t_in": 4, "t_out": 4, "stride": 12}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Task]:
    """Storms of 32x32 and of 36x36 pixels; the latter must be padded for many models."""
    out = tmp_path_factory.mktemp("shared")
    events = {"train": 1, "val": 1, "test": 1}
    return {
        size: bench.load_task("sevir", make_sevir(out / f"{size}", events=events, size=size, seed=1), **_SHORT)
        for size in (32, 36)
    }


def _trained(name: str, task: Task) -> nn.Module | None:
    """Returns a small model with weights unlike any initialisation; None for a model without weights."""
    presets = getattr(registry.find("model", name).load(), "presets", {})
    small = {"unet": {"channels": [4, 8], "center_channels": 16}}
    given = _SMALL_EARTHFORMER if name.startswith("earthformer") else small.get(name, presets.get("tiny", {}))
    model = bench.load_model(name, task, **given)
    if not has_weights(model):
        return None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.nan_to_num_(1.0)  # what is measured in training
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=generator).to(tensor))
    return model


def _checkpoint(model: nn.Module, task: Task, path: Path) -> Path:
    """Returns a checkpoint file like that of a run of the model."""
    words = [f"task={task.name}", f"model={bench.models.made_from(model).name}", f"data.root={task.data_root}"]
    content = {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        **stored_identity(identify(model, task, compose(words)), task),
    }
    with path.open("w+b") as file:
        torch.save(content, file)
        seal(file)
    return path


@pytest.mark.parametrize("size", [32, 36])
@pytest.mark.parametrize(
    "name",
    [
        "unet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in registry.names("model") if name not in _OTHERWISE),
    ],
)
def test_weights_round_trip_by_every_route(name: str, size: int, tasks: dict[int, Task], tmp_path: Path) -> None:
    task = tasks[size]
    model = _trained(name, task)
    if model is None:
        with pytest.raises(ConfigError, match="only weights whose training is known"):
            bench.as_pretrained(bench.load_model(name, task))
        return
    wanted = model.state_dict()
    checkpoint = _checkpoint(model, task, tmp_path / "best.ckpt")
    bare = tmp_path / "bare.pt"
    torch.save(wanted, bare)
    loaded = bench.load_model(name, task, weights=checkpoint)
    folder = tmp_path / "folder"
    bench.as_pretrained(loaded, license="cc-by-4.0").save_pretrained(folder)
    assert "license: cc-by-4.0" in (folder / "README.md").read_text()
    given = bench.models.made_from(model).hyperparameters
    found = {
        "checkpoint": loaded.state_dict(),
        "folder": bench.load_model(name, task, weights=folder).state_dict(),
        "safetensors": bench.load_model(name, task, weights=folder / "model.safetensors").state_dict(),
        "bare": bench.load_model(name, task, weights=bare, **given).state_dict(),
        "mixin": bench.PretrainedModel.from_pretrained(folder).model.state_dict(),
    }
    for way, state in found.items():
        assert state.keys() == wanted.keys(), way
        assert all(torch.equal(state[key], wanted[key]) for key in wanted), way
    shared = bench.PretrainedModel.from_pretrained(folder).eval()
    context = task.to_context(task.dataset("test").source[0].context)[None]
    with torch.inference_mode():
        assert torch.equal(shared(context), loaded.eval()(context)), "of frames of the task's own size"


@pytest.mark.parametrize("name", ["unet", "convlstm"])
def test_files_with_other_contents_are_refused_by_name(name: str, tasks: dict[int, Task], tmp_path: Path) -> None:
    task = tasks[32]
    model = _trained(name, task)
    assert model is not None
    other = bench.load_model("simvp", task, **registry.find("model", "simvp").load().presets["tiny"])
    torch.save(other.state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.ckpt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    checkpoint = _checkpoint(model, task, tmp_path / "best.ckpt")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:-1])
    for path, error, said in (
        (tmp_path / "other.pt", ConfigError, "is not of this model"),
        (tmp_path / "text.ckpt", DataError, "cannot be read safely"),
        (tmp_path / "text.safetensors", DataError, "cannot be read"),
        (tmp_path / "list.pt", DataError, "holds no state_dict"),
        (tmp_path / "missing.ckpt", DataError, "is not a file"),
        (tmp_path, DataError, "is not a file"),
        (cut, DataError, "damaged|cannot be read safely"),
    ):
        with pytest.raises(error, match=said):
            bench.load_model(name, task, weights=path)

"""Automatic choices of a run (micro-batches, workers), and what it reports and restores (arithmetic, hardware)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import tiny
from logged import logged
from old_records import RECORD_OF_SCHEMA_2
from torch import Tensor, nn
from torch.utils.data import default_collate

from bench.config import compose, fingerprint, numbers_only
from bench.data.loading import evaluation_loader, training_loader, workers
from bench.data.sevir.synthetic import make_sevir
from bench.engine import compiling
from bench.engine.compiling import FullBatches, compiled, is_compiled
from bench.engine.forecaster import Forecaster
from bench.engine.micro_batch import FindMicroBatch, evaluation_batch, known_micro_batch, largest_that_fits
from bench.engine.run import run
from bench.engine.trainer import arithmetic
from bench.errors import InterruptedRunError
from bench.models import load_model
from bench.records.schema import content_sha256, migrated
from bench.tasks import load_task

CONVLSTM = ["model=convlstm", "model.hidden=[4,4,4]", "task.t_in=3", "task.t_out=2", "task.stride=20"]


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storms of a size that ConvLSTM supports."""
    out = tmp_path_factory.mktemp("storms24") / "sevir"
    return make_sevir(out, events={"train": 4, "val": 2, "test": 3}, size=24, seed=1)


@pytest.mark.parametrize(("limit", "most", "expected"), [(0, 8, 1), (1, 8, 1), (5, 32, 4), (6, 6, 6), (99, 12, 12)])
def test_the_largest_micro_batch_is_found_by_doubling(limit: int, most: int, expected: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest_that_fits(fits, most) == expected
    assert tried == sorted(set(tried)) and all(size <= most for size in tried)


def test_known_micro_batches_need_no_trial(storms: Path) -> None:
    official = load_task("sevir")
    small = load_task("sevir", storms)
    convlstm, unet = load_model("convlstm", small, hidden=[4, 4, 4]), load_model("unet", small, channels=[4])
    config = compose(["data.batch_size=32"])
    assert known_micro_batch(convlstm, official, config, on_gpu=False) == 2, "the authors' micro-batch of SEVIR"
    assert known_micro_batch(convlstm, small, config, on_gpu=False) == 32
    assert known_micro_batch(convlstm, official, config, on_gpu=True) is None
    assert known_micro_batch(unet, official, config, on_gpu=True) == 32, "no device changes batch statistics"
    asked = compose(["data.batch_size=32", "data.micro_batch=5"])
    assert {known_micro_batch(convlstm, official, asked, on_gpu=on_gpu) for on_gpu in (True, False)} == {5}
    assert evaluation_batch(official, asked, 100, on_gpu=True, world=1) == 5
    assert evaluation_batch(official, config, 100, on_gpu=True, world=1) == 8
    assert evaluation_batch(small, config, 100, on_gpu=True, world=1) == 64
    assert evaluation_batch(small, config, 9, on_gpu=False, world=2) == 8, "as one process does"
    assert evaluation_batch(small, config, 9, on_gpu=False, world=3) == 3, "every process gets some"


def test_workers_are_chosen_by_device_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)), raising=False)
    assert workers("auto", on_gpu=False, devices=1) == 0
    assert workers("auto", on_gpu=True, devices=1) == 8 and workers("auto", on_gpu=True, devices=8) == 3
    assert workers(5, on_gpu=False, devices=1) == 5


def test_workers_are_persistent(storms: Path) -> None:
    data = load_task("sevir", storms).dataset("val")
    feed: dict[str, Any] = {"batch_size": 2, "limit": None}
    assert evaluation_loader(data, num_workers=1, **feed).persistent_workers
    assert training_loader(data, num_workers=1, micro_batch=1, seed=0, **feed).persistent_workers
    assert not evaluation_loader(data, num_workers=0, **feed).persistent_workers


def test_arithmetic_settings_are_restored_after_an_error() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), arithmetic("high"):
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_a_record_states_its_arithmetic(storms: Path, tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    words = [*CONVLSTM, "train.max_epochs=1", "train.matmul_precision=high", "train.deterministic=true"]
    record = run(tiny(storms, tmp_path, *words), training=True).record
    assert record.hardware["matmul_precision"] == "high" and record.hardware["devices"] == ["cpu"]
    assert record.hardware["cuda"] is record.hardware["driver"] is None and record.hardware["compiled"] is False
    assert torch.get_float32_matmul_precision() == before
    assert record.environment is None or all(" -> " in line for line in record.environment)
    assert record.training is not None and record.training.settings["matmul_precision"] == "high"


def test_a_found_micro_batch_is_reused(storms: Path, tmp_path: Path, monkeypatch) -> None:
    """The trial of a GPU, on a CPU: the model and the step are real, the memory limit is simulated."""
    from bench.engine import micro_batch as module
    from bench.engine import train as training_module

    sizes: list[int] = []

    def trial(forecaster: Forecaster, loader: Any, device: torch.device, precision: Any) -> Any:
        def fits(size: int) -> bool:
            batch = default_collate([loader.dataset[0]] * size)
            module._one_step(forecaster.model, forecaster, batch)
            forecaster.model.zero_grad()
            sizes.append(size)
            return size <= 2

        return fits

    monkeypatch.setattr(module, "_trial", trial)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(training_module, "known_micro_batch", lambda *_, **__: None)
    signalled = Forecaster.training_step

    def stop(self: Forecaster, batch: Any, number: int) -> Tensor:
        if self.global_step == 1:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return signalled(self, batch, number)

    words = [*CONVLSTM, "data.batch_size=5", "train.max_epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", stop)
        with pytest.raises(InterruptedRunError):
            run(tiny(storms, tmp_path, *words), training=True)
    (file,) = tmp_path.glob("work/**/micro_batch.json")
    assert json.loads(file.read_text())["micro_batch"] == 2 and sizes == [2, 4]
    with logged() as said:
        record = run(tiny(storms, tmp_path, *words), training=True).record
    assert sizes == [2, 4], "remembered" and any("micro-batch 2 of 5" in line for line in said)
    assert record.training is not None and record.training.micro_batch == 2 and record.training.resumed_count == 1
    assert isinstance(FindMicroBatch, type)


def test_a_run_resumes_with_another_micro_batch(storms: Path, tmp_path: Path, monkeypatch) -> None:
    import signal

    words = [*CONVLSTM, "data.batch_size=5", "train.max_epochs=2", "train.lr=1e-3"]
    run(tiny(storms, tmp_path / "unbroken", *words), training=True)
    step = Forecaster.training_step

    def stop(self: Forecaster, batch: Any, number: int) -> Tensor:
        if self.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", stop)
        with pytest.raises(InterruptedRunError, match="saved after step 2"):
            run(tiny(storms, tmp_path / "broken", *words, "data.micro_batch=2"), training=True)
    record = run(tiny(storms, tmp_path / "broken", *words, "data.micro_batch=1"), training=True).record
    assert record.training is not None and record.training.resumed_count == 1
    assert record.training.steps == 2 * -(-record.training.sequence_count // 5)
    found, expected = (
        torch.load(next((tmp_path / out).glob("work/*/*/*/checkpoints/last.ckpt")))["state_dict"]
        for out in ("broken", "unbroken")
    )
    assert all(torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-6) for key in expected)


class _Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_smaller_last_batch_does_not_recompile(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    model, full = _Counted(), FullBatches()
    names = list(model.state_dict())
    x = torch.randn(4, 3)
    expected = model(x)
    with compiled(model):
        assert is_compiled(model) and list(model.state_dict()) == names
        assert torch.allclose(full(model, x), expected)
        last = full(model, x[:3])
        assert torch.allclose(last, expected[:3]) and len(graphs) == 1
        last.sum().backward()
    assert model.layer.bias.grad is not None and torch.equal(model.layer.bias.grad, torch.full((3,), 3.0))
    assert not is_compiled(model)


def test_compiling_changes_the_run_but_not_the_weight_names(storms: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    words = ["model=unet", "model.channels=[4]", "model.center_channels=8", "data.batch_size=5", "train.max_epochs=1"]
    plain, fast = (
        run(tiny(storms, tmp_path / name, *words, f"train.compile={name}"), training=True).record
        for name in ("false", "true")
    )
    assert fast.hardware["compiled"] and fast.model.gmacs == plain.model.gmacs
    assert fast.training.identity.name != plain.training.identity.name  # type: ignore[union-attr]
    assert fast.scores["mse"] == pytest.approx(plain.scores["mse"], rel=1e-3)
    (a,), (b,) = (list((tmp_path / n).glob("work/*/*/*/checkpoints/last.ckpt")) for n in ("false", "true"))
    assert torch.load(a)["state_dict"].keys() == torch.load(b)["state_dict"].keys()


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_forecast() -> None:
    model, x = _Counted(), torch.randn(4, 3)
    expected = model(x)
    with compiled(model):
        assert torch.allclose(model(x), expected, atol=1e-6)


def test_records_of_older_schemas_have_the_total_batch() -> None:
    content = json.loads(RECORD_OF_SCHEMA_2.read_text())
    content["config"]["train"]["accumulate"] = 4
    content["config"]["train"]["stages"] = {"one": {"accumulate": 8, "lr": 1.0}}
    content["training"]["settings"]["accumulate"] = 4
    size = content["config"]["data"]["batch_size"]
    before = content_sha256(content)
    wrong = migrated(content)
    assert wrong["config_fingerprint"] == content["config_fingerprint"], "of another config: verify names it"
    from bench.config import Config, numbers_of

    content["config_fingerprint"] = fingerprint(numbers_of(content["config"]))
    now = migrated(content)
    config = Config.model_validate(now["config"])
    assert (config.data.batch_size, config.data.micro_batch) == (4 * size, size)
    assert config.train.stages == {"one": {"batch_size": 8 * size, "lr": 1.0}}
    assert now["training"]["settings"]["matmul_precision"] == config.train.matmul_precision == "highest"
    assert "accumulate" not in now["training"]["settings"]
    assert now["config_fingerprint"] == fingerprint(numbers_only(config))
    assert content["config"]["train"]["accumulate"] == 4 and before != content_sha256(now), "not changed in place"


def test_a_stage_has_its_own_batch_size() -> None:
    from bench.engine.stages import _settings
    from bench.errors import ConfigError

    config = compose(["data.micro_batch=3", "train=prediff_sevir_lr"])
    batches = {name: _settings(config, name)[1] for name in ("autoencoder", "denoiser", "alignment")}
    assert {name: (data.batch_size, data.micro_batch) for name, data in batches.items()} == {
        "autoencoder": (40, 2), "denoiser": (64, 3), "alignment": (8, 3),
    }  # fmt: skip
    assert config.train.matmul_precision == "high", "as PreDiff's authors"
    with pytest.raises(ConfigError, match=r"write train\.stages\.denoiser\.batch_size=N times 32 "):
        _settings(compose(["model=prediff", "train.stages.denoiser.accumulate=32"]), "denoiser")

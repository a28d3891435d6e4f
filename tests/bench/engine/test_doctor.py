"""`earthbench doctor`: on this machine, and on broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config import compose
from bench.engine import preflight
from bench.engine.forecaster import Forecaster
from bench.engine.hardware import WITHOUT_FLOAT64
from bench.engine.trainer import torch_device, trainer_device
from bench.errors import ConfigError
from bench.records import provenance
from bench.tasks import load_task

TINY = ["model=unet", "model.channels=[4,8]", "model.center_channels=8", "device=cpu"]


_REAL_GROUP = preflight._group


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips forming a process group, which takes seconds; one test does it."""
    monkeypatch.setattr(preflight, "_group", lambda config: preflight.Check("processes", "ok", "not tried here"))
    monkeypatch.setattr(preflight, "_READING_S", 0.05)


def _words(tmp_path: Path, *more: str) -> list[str]:
    return ["doctor", *TINY, f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}", *more]


def _found(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> dict[str, Any]:
    assert main([*words, "--format", "json"]) == code
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == code
    return {check["name"]: SimpleNamespace(**check) for check in content["checks"]}


def test_doctor_passes_on_a_good_config(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = _words(tmp_path, f"data.root={storms}")
    found = _found(capsys, words, 0)
    assert list(found) == [
        "versions", "device", "processes", "memory", "data", "model", "disk", "training step",
    ]  # fmt: skip
    assert "12 train" in found["data"].found and "read per second" in found["data"].found
    assert found["training step"].outcome in ("ok", "warning") and "s for a batch of 8" in found["training step"].found
    assert not (tmp_path / "results").exists() and not (tmp_path / "work").exists()  # nothing is left behind
    assert main(words) == 0
    assert "training step" in capsys.readouterr().out


def test_doctor_checks_the_machine_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _found(capsys, _words(tmp_path), 0)
    assert (
        found["data"].outcome == found["training step"].outcome == "skipped" and "data.root=DIR" in found["data"].cure
    )


def test_every_stage_takes_a_step(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [
        "model=prediff_ka", "model.latent_channels=4", "model.autoencoder_channels=[8,8,8]",
        "model.autoencoder_layers=1", "model.autoencoder_groups=4", "model.base_units=8", "model.depth=[1]",
        "model.num_heads=2", "data.batch_size=2",
    ]  # fmt: skip
    words = ["doctor", "device=cpu", *tiny, f"data.root={storms}", f"work={tmp_path}", f"results.root={tmp_path}"]
    text = _found(capsys, words, 0)["training step"].found
    assert all(f"{stage}: " in text for stage in ("autoencoder", "denoiser", "alignment"))


def test_a_model_without_weights_has_no_step(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "model=persistence", "device=cpu", f"data.root={storms}", f"work={tmp_path}"]
    assert _found(capsys, [*words, f"results.root={tmp_path}"], 0)["training step"].outcome == "skipped"


def test_untested_versions_are_named_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==1.0\n")
    monkeypatch.setattr(provenance, "_constraints", lambda: constraints)
    provenance.environment_differences.cache_clear()
    try:
        found = _found(capsys, _words(tmp_path), 0)["versions"]
        constraints.unlink()
        provenance.environment_differences.cache_clear()
        missing = _found(capsys, _words(tmp_path), 0)["versions"]
    finally:
        provenance.environment_differences.cache_clear()
    assert found.outcome == "warning" and "numpy 1.0 -> " in found.found and "pip install -c" in found.cure
    assert missing.outcome == "warning"


@pytest.mark.parametrize(
    ("word", "check"),
    [
        ("data.root=/not/there", "data"),
        ("device=cuda", "device"),
        ("device=mps", "device"),
        ("device=cuda:3", "device"),
    ],
)
def test_doctor_finds_wrong_input(
    word: str, check: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = _found(capsys, _words(tmp_path, word), 2)
    assert found[check].outcome == "wrong" and word.partition("=")[2] in found[check].found
    assert found["training step"].outcome == "skipped"


def test_a_full_disk_and_an_unwritable_folder_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10, used=9, free=1))
    found = _found(capsys, _words(tmp_path), 3)["disk"]
    assert "work needs" in found.found and "make room" in found.cure
    (tmp_path / "work").write_text("a file")
    assert "cannot be written to" in _found(capsys, _words(tmp_path), 2)["disk"].found


def test_memory_used_by_other_programs_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_available_bytes", lambda: 10**8)
    found = _found(capsys, _words(tmp_path), 0)["memory"]
    assert found.outcome == "warning" and "end other programs" in found.cure


def test_a_failing_step_gives_no_traceback(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(preflight, "_two_steps", broken)
    found = _found(capsys, _words(tmp_path, f"data.root={storms}"), 3)["training step"]
    assert found.outcome == "wrong" and found.found == "RuntimeError: CUDA error: no kernel image is available"


def test_a_driver_without_a_torch_gpu_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(provenance, "nvidia_driver", lambda: "550.54")
    found = preflight._device(compose(["device=auto"]))
    assert found.outcome == "warning" and "550.54" in found.found and "torch" in found.cure


@pytest.mark.slow
def test_a_process_group_is_tried_and_a_hanging_one_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["device=cpu", "devices=2"])
    found = _REAL_GROUP(config)
    assert found.outcome == "ok" and "gloo group of 2" in found.found
    monkeypatch.setattr(preflight, "_GROUP_S", 0.2)
    late = _REAL_GROUP(config)
    assert late.outcome == "wrong" and late.exit_code == 3 and "NCCL_DEBUG" in late.cure


# Apple's GPU


def test_mps_is_used_only_if_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compose(["device=mps"]).device == "mps"
    assert trainer_device("mps") == {"accelerator": "mps", "devices": 1} and torch_device("mps") == "mps"
    assert torch_device("auto") == torch_device("cpu") == "cpu"
    for more in ({"devices": 2}, {"nodes": 2}, {"strategy": "ddp"}):
        with pytest.raises(ConfigError, match="only one such device"):
            trainer_device("mps", **more)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no Apple GPU"):
        trainer_device("mps")


def test_scores_stay_on_a_device_with_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's meta device replaces one without float64."""
    forecaster = Forecaster(torch.nn.Linear(2, 2), load_task("sevir"))
    names = list(dict(forecaster.named_modules()))
    monkeypatch.setattr("bench.engine.hardware.WITHOUT_FLOAT64", WITHOUT_FLOAT64 | {"meta"})
    forecaster.to("meta")
    assert forecaster.model.weight.is_meta
    states = [state for metric in forecaster.scores.values() for state in metric.metric_state.values()]
    assert states and not any(state.is_meta for state in states)
    assert not forecaster.validation_mean.total.is_meta and forecaster.validation_mean.total.dtype == torch.float64
    assert sorted(dict(forecaster.named_modules())) == sorted(names)
    assert forecaster.for_scores(torch.ones(2)) is not None

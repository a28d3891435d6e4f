"""The cost of rows on other devices, and the sources of their settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.cli.main import main
from bench.config import compose
from bench.cost.devices import DEVICES, UTILISATION, arithmetic_of, parse_devices
from bench.errors import UsageError
from bench.reproduction import find_rows, plan
from bench.tables import load_table
from bench.tables.definitions import published_folder
from bench.tables.settings import (
    Settings,
    forecast_settings,
    load_settings,
    overrides_of,
    sourced_settings,
    training_settings,
)

TABLES = ["earthformer/sevir", "earthformer/sevir_per_lead", "earthformer/icar_enso", "prediff/sevir_lr"]
ON = ["--dry-run", "--on"]
SCALING = Path(__file__).parents[3] / "docs" / "scaling.md"


@pytest.mark.parametrize(
    ("text", "label", "count", "fp32", "memory"),
    [
        ("8xH100", "H100", 8, 67, 80),
        ("a100-80g", "A100 80 GB", 1, 19.5, 80),
        ("A100", "A100 80 GB", 1, 19.5, 80),
        ("mine:120,48,4", "mine", 4, 120, 48),
        ("mine:1.5,8", "mine", 1, 1.5, 8),
    ],
)
def test_devices_are_named(text: str, label: str, count: int, fp32: float, memory: float) -> None:
    found = parse_devices(text)
    assert (found.device.label, found.count, found.device.fp32_tflops, found.device.memory_gib) == (
        label, count, fp32, memory,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["8xH10", "0xH100", "", "mine:120", "mine:x,48", "mine:120,48,0", "mine:nan,48", "x8"])
def test_unknown_devices_give_one_message(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--on"):
        parse_devices(text)
    assert main(["reproduce", "earthformer/sevir/persistence", *ON, text]) == 2
    assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize("name", DEVICES)
def test_every_known_device_has_a_source_and_ordered_peaks(name: str) -> None:
    device = DEVICES[name]
    assert device.bf16_tflops > device.tf32_tflops >= device.fp32_tflops > 0 and len(device.source) > 10
    assert device.usable_bytes < device.memory_gib * 2**30


@pytest.mark.parametrize(
    ("precision", "matmul", "expected"),
    [
        ("32-true", "highest", "fp32"), ("32-true", "high", "tf32"), ("32-true", "medium", "bf16"),
        ("bf16-mixed", "highest", "bf16"), ("16-mixed", "highest", "bf16"),
    ],
)  # fmt: skip
def test_the_arithmetic_of_a_precision(precision: str, matmul: str, expected: str) -> None:
    assert arithmetic_of(precision, matmul) == expected


def test_hours_and_batches_match_the_closed_form() -> None:
    table, (row,) = find_rows("earthformer/sevir/unet")
    small, large = (plan(table, row, [], 0, on=parse_devices(f"mine:100,{memory},4")) for memory in (2, 200))
    assert small.estimate is None and small.status == "cannot run" and small.projection and large.projection
    (part,) = small.projection.parts
    step, forward = part.step_gflops * 1e9, 65.390247936e9  # 32.7 GMACs
    assert step == pytest.approx(3 * forward, rel=0.02)
    flops = 100 * (35_718 * step + 9_060 * forward)
    assert part.gpu_hours == pytest.approx(flops / (100e12 * UTILISATION * 3600))
    assert small.projection.hours == pytest.approx(small.projection.gpu_hours / 4)
    room = 0.9 * 2 * 2**30 - part.state_bytes
    assert part.micro_batch == int(room // part.activation_bytes) == 3
    assert large.projection.parts[0].micro_batch > 300 and part.state_bytes > 16 * 16_556_044


def test_no_device_is_touched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a device was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", touched)
    monkeypatch.setattr("bench.reproduction.plans.measured_throughput", touched)
    assert main(["reproduce", "earthformer/icar_enso/unet", *ON, "8xH100", "device=cuda", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["projection"]["hours"] > 0 and found["projection"]["source"].startswith("NVIDIA H100")


def test_each_stage_of_a_model_is_planned() -> None:
    table, (row,) = find_rows("prediff/sevir_lr/prediff_ka")
    tiny = [
        "model.latent_channels=4", "model.autoencoder_channels=[8,8,8]", "model.autoencoder_layers=1",
        "model.autoencoder_groups=4", "model.base_units=8", "model.depth=[1]", "model.num_heads=2",
    ]  # fmt: skip
    found = plan(table, row, tiny, 0, on=parse_devices("h100")).projection
    assert found is not None and [part.stage for part in found.parts] == ["autoencoder", "denoiser", "alignment"]
    assert [part.total_batch for part in found.parts] == [40, 64, 128]
    assert found.evaluation_gpu_hours and found.evaluation_gpu_hours > 0
    few = plan(table, row, [*tiny, "model.steps=50", "model.sampler=ddim"], 0, on=parse_devices("h100")).projection
    assert few is not None and few.evaluation_gpu_hours
    assert found.evaluation_gpu_hours / few.evaluation_gpu_hours == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ["--on", "h100"],
        ["--on", "h100", "--dry-run", "--measure"],
        ["--dry-run", "--format", "md"],
    ],
)
def test_contradicting_flags_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "earthformer/sevir/persistence", *words]) == 2
    assert "--on" in capsys.readouterr().err


def _printed(heading: str) -> list[str]:
    """Returns the lines of a table of docs/scaling.md after a mark."""
    lines = SCALING.read_text(encoding="utf-8").partition(heading)[2].splitlines()
    return [line for line in lines[: lines.index("", 3)] if line.startswith("|")]


def _command(name: str) -> list[str]:
    return ["reproduce", name, *ON, "8xH100", "--format", "md"]


def test_the_page_shows_the_planned_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_command("earthformer/sevir/unet")) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line in _printed("<!-- printed: earthformer/sevir -->")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["earthformer/sevir", "prediff/sevir_lr"])
def test_the_tables_of_the_page_equal_the_printed_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_command(name)) == 0
    assert _printed(f"<!-- printed: {name} -->") == capsys.readouterr().out.splitlines()


# Settings and their sources


def _config(table_name: str, row: str):
    table = load_table(table_name)
    return table, compose(overrides_of(table, table.row(row), (), 0))


@pytest.mark.parametrize("name", TABLES)
def test_every_sourced_setting_has_the_value_of_its_source(name: str) -> None:
    table = load_table(name)
    known = load_settings(table)
    assert known is not None and set(known.untrained) < {row.key for row in table.rows}
    for key in {row for one in known.settings for row in one.rows}:
        config = _config(name, key)[1]
        expected = {one.key for one in known.settings if key in one.rows}
        stated = {setting for setting, _ in (*training_settings(config), *forecast_settings(config))}
        assert expected <= stated, key
        assert [one.key for one in sourced_settings(table, key, config) if one.differs] == []


def test_every_file_of_settings_belongs_to_a_table() -> None:
    used = {load_table(name).settings for name in registry.names("table")}
    for path in (published_folder() / "settings").glob("*.json"):
        assert path.name in used
        Settings.model_validate_json(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ["unet", "convlstm", "predrnn", "phydnet", "e3d_lstm", "rainformer"])
@pytest.mark.parametrize("name", ["earthformer/sevir", "earthformer/icar_enso", "prediff/sevir_lr"])
def test_the_recipe_of_the_baselines_is_assumed(name: str, row: str) -> None:
    found = sourced_settings(*_with_row(name, row))
    assert len(found) > 10 and {one.kind for one in found} == {"assumed"}
    assert all("Earthformer's released recipe" in one.note for one in found)


def _with_row(name: str, row: str):
    table, config = _config(name, row)
    return table, row, config


def test_a_setting_names_its_source_and_deviations() -> None:
    table = load_table("earthformer/icar_enso")
    config = compose(overrides_of(table, table.row("earthformer"), ["train.lr=0.5"], 0))
    found = {one.key: one for one in sourced_settings(table, "earthformer", config)}
    assert found["train.lr"].differs and "the source says 0.0001" in found["train.lr"].note
    assert found["total_batch"].value == 64 and "maintainers' answer" in found["total_batch"].kind
    assert found["train.ema_decay"].kind == "assumed"
    assert sourced_settings(table, "persistence", config) == []
    table, config = _config("prediff/sevir_lr", "steps")
    assert {one.key: one.kind for one in sourced_settings(table, "steps", config)} == {
        "model.members": "paper and maintainers' answer",
        "evaluate.members": "assumed",
    }
    table, config = _config("prediff/sevir_lr", "dgmr")
    found = {one.key: one for one in sourced_settings(table, "dgmr", config)}
    assert found["train.schedule"].value == "constant" and not found.keys() & {"train.min_lr_ratio", "train.lr"}


def test_uncountable_forecasts_have_unknown_time(capsys: pytest.CaptureFixture[str]) -> None:
    table = load_table("prediff/sevir_lr")
    found = plan(table, table.row("steps"), [], 0, throughput=lambda device: 1e12).estimate
    assert found is not None and found.total_s is None and "not estimated" in found.basis
    assert main(["reproduce", "prediff/sevir_lr/steps", *ON, "h100"]) == 0
    assert "evaluation: not estimated" in capsys.readouterr().out


def test_plan_and_explain_print_sourced_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "earthformer/icar_enso/unet", *ON, "h100"]) == 0
    assert "assumed (nothing published says how the baselines were trained" in capsys.readouterr().out
    assert main(["explain", "earthformer/sevir", "earthformer"]) == 0
    out = capsys.readouterr().out
    assert "train.lr=0.001" in out and "earthformer_sevir_v1.yaml" in out
    assert main(["explain", "prediff/sevir_lr", "PreDiff", "--format", "json"]) == 0
    found = {one["key"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["train.stages.denoiser.weight_decay"]["kind"] == "authors' released code"
    assert main(["explain", "earthformer/sevir", "persistence"]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert main(["explain", "runs/sevir", "unet"]) == 2 and main(["explain", "earthformer/sevir", "unt"]) == 2

"""Records that differ from a row in one setting: which are listed in it, which are marked, and with what note."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
from official import as_official, trained_with

from bench import registry
from bench.config import Config, compose, stored
from bench.records.schema import MembersPart, RunRecord, TaskPart
from bench.records.store import read_records
from bench.tables import load_table
from bench.tables.admission import (
    OTHER_CONVENTIONS,
    OTHER_DATA,
    OTHER_FILES,
    OTHER_HYPERPARAMETERS,
    OTHER_OPTIONS,
    OTHER_TRAINING_DATA,
    PARTIAL,
    admitted,
)
from bench.tables.definitions import Row, Table
from bench.tables.recipes import deviations
from bench.tables.render import render
from bench.tables.settings import is_trained, overrides_of
from bench.tasks import load_task

SEVIR = load_table("earthformer/sevir")
UNET = SEVIR.row("unet")
# One row of each recipe.
ROWS = sorted(
    {
        (table.task, row.experiment or table.experiment): (table.name, row.key)
        for table in map(load_table, registry.names("table"))
        for row in table.rows
        if is_trained(table, row.key)
    }.values()
)


@pytest.fixture(scope="module")
def measured(committed_results: Path) -> RunRecord:
    """A record of radar as one of SEVIR would be."""
    task = load_task("sevir")
    record = max(
        read_records(committed_results, "radar")[0], key=lambda one: (one.model.name == "persistence", one.run_id)
    )
    return record.model_copy(
        update={
            "task": TaskPart(name="sevir", version=task.version, fields=task.fields(), is_default=True),
            "model": record.model.model_copy(update={"is_preset": True}),
            "conventions": dict(task.metrics),
            "training": None,
            "members": None,
        }
    )


def _record(measured: RunRecord, table: Table, row: Row, *changes: str, **fields: Any) -> RunRecord:
    """A record of a row's run on the official data, with overrides of its config."""
    config = _composed(overrides_of(table, row, changes, 0))
    return as_official(
        measured,
        **{
            "model": measured.model.model_copy(update={"name": row.model, "parameters": 1}),
            "task": measured.task.model_copy(update={"name": table.task}),
            "config": stored(config),
            "training": trained_with(_train_section(config)),
            **fields,
        },
    )


_composed = functools.cache(compose)


def _train_section(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")["train"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.lr=2e-3", "train.lr=0.002 (table: 0.001)"),
        ("train.max_epochs=99", "train.max_epochs=99 (table: 100)"),
        ("train.max_steps=10", "train.max_steps=10 (table: None)"),
        ("train.max_cpu_s=60", "train.max_cpu_s=60.0 (table: None)"),
        ("train.limit=12", "train.limit=12 (table: None)"),
        ("train.optimizer=adam", "train.optimizer='adam' (table: 'adamw')"),
        ("train.weight_decay=1e-5", "train.weight_decay=1e-05 (table: 0.0)"),
        ("train.warmup_fraction=0.1", "train.warmup_fraction=0.1 (table: 0.2)"),
        ("train.min_lr_ratio=0.01", "train.min_lr_ratio=0.01 (table: 0.001)"),
        ("train.clip_norm=null", "train.clip_norm=None (table: 1.0)"),
        ("train.betas=[0.5,0.9]", "train.betas=[0.5, 0.9] (table: None)"),
        ("train.ema_decay=0.99", "train.ema_decay=0.99 (table: None)"),
        ("train.precision=bf16-mixed", "train.precision='bf16-mixed' (table: '32-true')"),
        ("train.matmul_precision=high", "train.matmul_precision='high' (table: 'highest')"),
        ("train.early_stopping.monitor=val/loss", "train.early_stopping.monitor='val/loss' (table: 'val/csi_m')"),
        ("train.early_stopping.patience=5", "train.early_stopping.patience=5 (table: 20)"),
        ("train.val_every_epochs=2", "train.val_every_epochs=2 (table: 1)"),
        ("data.batch_size=16", "data.batch_size=16 (table: 32)"),
    ],
)
def test_a_deviating_run_is_marked_and_replaced_by_a_matching_one(measured: RunRecord, change: str, said: str) -> None:
    right, other = _record(measured, SEVIR, UNET), _record(measured, SEVIR, UNET, change, run_id="2099-later")
    assert not deviations(SEVIR, right, UNET)
    assert deviations(SEVIR, other, UNET) == [said]
    assert admitted(SEVIR, [other])[0]["unet"] == [other] and said in render(SEVIR, [other])
    by_row, (excluded,) = admitted(SEVIR, [right, other])
    assert by_row["unet"] == [right] and excluded.run_id == "2099-later" and "another config" in excluded.reason


@pytest.mark.parametrize(
    "change",
    [
        "data.micro_batch=2", "data.num_workers=3", "train.compile=true", "train.deterministic=warn", "device=cpu",
        "train.loggers=[]", "train.save_every_minutes=1",
    ],
)  # fmt: skip
def test_settings_that_change_no_number_are_not_deviations(measured: RunRecord, change: str) -> None:
    assert not deviations(SEVIR, _record(measured, SEVIR, UNET, change), UNET)


def test_seeds_are_grouped(measured: RunRecord) -> None:
    runs = [_record(measured, SEVIR, UNET, run_id=f"2026-{seed}", seed=seed) for seed in range(3)]
    assert admitted(SEVIR, runs) == ({**{row.key: [] for row in SEVIR.rows}, "unet": runs}, [])


def _tested(record: RunRecord, **changes: Any) -> dict[str, Any]:
    assert record.data is not None
    return {"data": record.data.model_copy(update={"origin": "files", "sequence_count": 12_159, **changes})}


def _trained(record: RunRecord, **changes: Any) -> dict[str, Any]:
    settings = _train_section(compose(overrides_of(SEVIR, UNET, (), 0)))
    return {"training": trained_with(settings, **changes)}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (lambda one: {"scope": "partial"}, PARTIAL),
        (lambda one: {"status": "failed"}, "failed runs"),
        (lambda one: _tested(one, sequence_count=12_158), OTHER_DATA),
        (lambda one: _tested(one, origin="synthetic storms"), OTHER_DATA),
        (lambda one: _tested(one, split="val"), "other splits"),
        (lambda one: _trained(one, sequence_count=35_717), OTHER_TRAINING_DATA),
        (lambda one: _trained(one, data_origin="synthetic storms"), OTHER_TRAINING_DATA),
        (lambda one: {"training": None}, "weights of unknown training"),
        (lambda one: {"task": one.task.model_copy(update={"is_default": False})}, OTHER_OPTIONS),
        (
            lambda one: {"model": one.model.model_copy(update={"name": "unet", "is_preset": False})},
            OTHER_HYPERPARAMETERS,
        ),
        (
            lambda one: {"conventions": {**one.conventions, "mse": {**one.conventions["mse"], "scale": 1.0}}},
            OTHER_CONVENTIONS,
        ),
    ],
)
def test_a_run_with_another_evaluation_is_excluded(measured: RunRecord, fields: Any, reason: str) -> None:
    record = _record(measured, SEVIR, UNET, **fields(measured))
    by_row, (excluded,) = admitted(SEVIR, [record])
    assert by_row["unet"] == [] and excluded.reason == reason


@pytest.mark.parametrize("part", ["tested", "trained"])
def test_runs_on_different_files_are_not_seeds_of_one_row(measured: RunRecord, part: str) -> None:
    runs = [_record(measured, SEVIR, UNET, run_id=f"2026-{seed}", seed=seed) for seed in range(2)]
    other = (
        _tested(measured, fingerprint="0" * 64) if part == "tested" else _trained(measured, data_fingerprint="0" * 64)
    )
    odd = _record(measured, SEVIR, UNET, run_id="2026-0a", seed=2, **other)
    by_row, (excluded,) = admitted(SEVIR, [*runs, odd])
    assert by_row["unet"] == runs and (excluded.run_id, excluded.reason) == ("2026-0a", OTHER_FILES)


def test_an_ensemble_of_another_size_is_marked(measured: RunRecord) -> None:
    table = load_table("prediff/sevir_lr")
    for key, count, said in (
        ("steps", 8, []),
        ("steps", 2, ["evaluate.members=2 (table: 8)"]),
        ("unet", 1, []),
        ("unet", 8, ["evaluate.members=8 (table: 1)"]),
        ("dgmr", 24, ["evaluate.members=24 (table: 8)"]),
    ):
        row, fields = table.row(key), {"training": None} if key == "steps" else {}
        record = _record(measured, table, row, members=MembersPart(count=count, seed=0), **fields)
        assert deviations(table, record, row) == said


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_a_run_of_the_row_has_no_deviations_and_others_are_named(measured: RunRecord, name: str, key: str) -> None:
    table = load_table(name)
    row = table.row(key)
    own = _record(measured, table, row)
    assert own.training is not None and not deviations(table, own, row)
    config, settings = own.config, own.training.settings
    stages = settings["stages"]
    for stage in stages or [None]:
        for setting, value in (("lr", 0.012), ("max_epochs", 7), ("clip_norm", 0.5), ("precision", "16-mixed")):
            changed = copy.deepcopy(settings)
            (changed["stages"][stage] if stage else changed)[setting] = value
            said = deviations(table, own.model_copy(update={"training": trained_with(changed)}), row)
            where = f"train.stages.{stage}." if stage else "train."
            if setting == "lr" and key == "dgmr":  # has its own rates, and refuses this one
                assert not said
                continue
            assert len(said) == 1 and said[0].startswith(f"{where}{setting}={value!r} (table: "), said
        batch = copy.deepcopy(config)
        changed = copy.deepcopy(settings)
        (changed["stages"][stage] if stage else batch["data"])["batch_size"] = 6
        said = deviations(table, own.model_copy(update={"config": batch, "training": trained_with(changed)}), row)
        where = f"train.stages.{stage}." if stage else "data."
        assert len(said) == 1 and said[0].startswith(f"{where}batch_size=6 (table: "), said
    if stages:  # a training that names no stages has the settings of its row in none
        plain = own.model_copy(update={"training": trained_with(settings | {"stages": {}})})
        assert deviations(table, plain, row)

"""Options of rows besides the model: task options, training settings, sources; and why a record does not match."""

from __future__ import annotations

import functools
import json
import math

import pytest

from bench import registry
from bench.cli.main import main
from bench.config import Config, compose
from bench.engine.run import run
from bench.records.schema import RunRecord
from bench.reproduction import plan
from bench.tables import load_table
from bench.tables.admission import OTHER_DATA, OTHER_OPTIONS, PARTIAL, admitted
from bench.tables.definitions import load_published
from bench.tables.render import render
from bench.tables.settings import load_settings, overrides_of, sourced_settings

NBODY = load_table("earthformer/nbody_mnist")
PUBLISHED = [name for name in registry.names("table") if load_table(name).published]


@functools.cache
def _config(name: str, row: str) -> Config:
    table = load_table(name)
    return compose(overrides_of(table, table.row(row), (), 0))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The UNet of the N-body table with the paper's settings, but one epoch of four sequences."""
    out = tmp_path_factory.mktemp("toy")
    made = ["--train", "4", "--val", "2", "--test", "2"]
    assert main(["data", "make", "nbody_mnist", "--out", str(out / "data"), *made]) == 0
    quiet = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    given = [f"data.root={out / 'data'}", f"work={out / 'work'}", f"results.root={out / 'results'}", *quiet]
    words = overrides_of(NBODY, NBODY.row("unet"), [*given, "train.max_epochs=1"], 0)
    assert "task.rescale_01=false" in words
    return run(compose(words), training=True).record


def test_a_toy_run_is_excluded_for_its_length_only(toy: RunRecord) -> None:
    _, (excluded,) = admitted(NBODY, [toy])
    assert set(excluded.reason.split("; ")) == {OTHER_DATA, "trained on other data"}
    assert excluded.detail == (
        "settings as the row's, left out for its length only: 2 test sequences (generated N-body MNIST) for 1,000, "
        "4 training sequences (generated N-body MNIST) for 20,000, train.max_epochs=1 (table: 100)"
    )
    assert f"unet/{toy.run_id} ({excluded.detail})" in render(NBODY, [toy])
    part = toy.model_copy(update={"scope": "partial", "scope_because": "limit=2"})
    assert PARTIAL in admitted(NBODY, [part])[1][0].reason.split("; ")


def test_a_full_length_run_is_in_its_row(toy: RunRecord) -> None:
    assert toy.data is not None and toy.training is not None
    data = toy.data.model_copy(update={"origin": "files", "sequence_count": 1_000})
    settings = {**toy.training.settings, "max_epochs": 100}
    training = toy.training.model_copy(update={"data_origin": "files", "sequence_count": 20_000, "settings": settings})
    full = toy.model_copy(update={"data": data, "training": training})
    by_row, left_out = admitted(NBODY, [full])
    assert by_row["unet"] == [full] and not left_out
    other = full.model_copy(
        update={
            "task": full.task.model_copy(
                update={"fields": {**full.task.fields, "rescale_01": True}, "is_default": True}
            )
        }
    )
    _, (excluded,) = admitted(NBODY, [other])
    assert (excluded.reason, excluded.detail) == (OTHER_OPTIONS, "task.rescale_01=True (table: False)")
    longer = full.model_copy(update={"task": full.task.model_copy(update={"fields": {**full.task.fields, "t_in": 5}})})
    assert admitted(NBODY, [longer])[1][0].detail == "task.t_in=5 (table: 10)"


def test_rows_of_prediff_use_its_random_split() -> None:
    table = load_table("prediff/sevir_lr")
    assert len(table.rows) == 14
    for row in table.rows:
        random = row.model in ("ldm", "prediff", "prediff_ka")
        assert ("task.split_by=random" in overrides_of(table, row, (), 0)) == random
        assert table.training_counts_of(row) == ((40_301,) if random else (35_718,))
    found = plan(table, table.row("prediff"), ["model.steps=2"], 0, throughput=lambda device: 1e12)
    assert "40,301 training" in found.data


def test_rows_of_nbody_mnist_use_a_scale_that_models_can_forecast() -> None:
    for name in ("earthformer/nbody_mnist", "earthformer/patterns_nbody_mnist", "prediff/nbody_mnist"):
        table = load_table(name)
        for row in table.rows:
            unit = row.model in ("phydnet", "videogpt", "ldm", "prediff", "prediff_ka")
            assert _config(name, row.key).task.options == {"rescale_01": unit}, (name, row.key)
            assert ("sees brightness 0..1" in row.note) == unit


def test_rows_have_the_steps_and_frames_of_their_source() -> None:
    """What a source gives as steps or frames: VideoGPT's 100,000 steps, 512 frames of an autoencoder's batch."""
    for name, counts, frames in (("prediff/sevir_lr", 35_718, 13), ("prediff/nbody_mnist", 20_000, 20)):
        train = _config(name, "videogpt").train
        for stage in train.stages.values():
            steps = train.max_epochs * math.ceil(counts / stage["batch_size"])
            assert steps == pytest.approx(100_000, rel=0.01)
        for model in ("ldm", "prediff", "prediff_ka"):
            stages = _config(name, model).train.stages
            assert stages["autoencoder"]["batch_size"] * frames == 520


def test_baselines_use_the_known_recipes_of_their_authors() -> None:
    train = _config(NBODY.name, "phydnet").train
    assert (train.optimizer, train.schedule, train.plateau_patience, train.val_every_epochs) == (
        "adam",
        "plateau",
        2,
        10,
    )
    config = _config(NBODY.name, "predrnn")
    assert (config.train.lr, config.train.max_steps, config.data.batch_size) == (3e-4, 80_000, 8)
    assert _config(NBODY.name, "e3d_lstm").train.betas == (0.95, 0.9995)
    assert _config(NBODY.name, "convlstm").train.weight_decay == 1e-5


@pytest.mark.parametrize("name", [n for n in registry.names("table") if load_table(n).settings])
def test_every_setting_matches_its_source_or_states_the_difference(name: str) -> None:
    table = load_table(name)
    known = load_settings(table)
    assert known is not None and known.table in (name, name.removesuffix("_per_lead"))
    keys = {row.key for row in table.rows}
    assert {row for setting in known.settings for row in setting.rows} <= keys and set(known.untrained) <= keys
    for row in table.rows:
        if row.model not in registry.names("model") or row.key in known.untrained:
            continue
        found = {one.key: one for one in sourced_settings(table, row.key, _config(name, row.key))}
        assert not [one.key for one in found.values() if one.differs], row.key
        asked = {one.key for one in known.settings if row.key in one.rows}
        assert asked <= set(found), f"{row.key}: {sorted(asked - set(found))} are not settings of its runs"
        assert "loss" in found and any(key.endswith("schedule") for key in found)


def test_a_training_is_compared_with_its_own_row() -> None:
    for row in NBODY.rows:
        if row.model == "persistence":
            continue
        train = _config(NBODY.name, row.key).train
        wanted = NBODY.training_of(row)
        assert {key: getattr(train, key) for key in wanted} == wanted, row.key


def test_explain_of_an_empty_cell_shows_settings_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "earthformer/nbody_mnist", "earthformer", "mse_frame_sum"]) == 0
    said = capsys.readouterr().out
    for words in (
        "not run",
        "published   14.82",
        "transcribed, one source",
        "task.rescale_01=false",
        "loss=mse",
        "issues/44",
    ):
        assert words in said
    assert main(["explain", "prediff/sevir_lr", "prediff", "crps", "--format", "json"]) == 0
    settings = {one["key"]: one for one in json.loads(capsys.readouterr().out)[0]["settings"]}
    assert settings["model.members"]["value"] == 8 and "third party" in settings["model.members"]["sources"][0]
    assert settings["evaluate.members"]["kind"] == "assumed" and settings["task.split_by"]["value"] == "random"
    told = {
        "persistence crps": "settings    none: there is nothing to train",
        "steps crps": "model.members=8     paper and maintainers' answer",
        "prediff gmacs": "convention  fvcore, batch 1, multiply-add = 1; of an ensemble, one member",
        "ldm fvd": "note        its code was not released",
        "unet csi_m": "assumed: nothing published says how the baselines were trained on SEVIR-LR",
    }
    for cell, words in told.items():
        assert main(["explain", "prediff/sevir_lr", *cell.split()]) == 0
        assert words in capsys.readouterr().out, cell


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_figure_has_a_url(name: str) -> None:
    published = load_published(load_table(name).published)  # type: ignore[arg-type]
    assert {name for row in published.rows.values() for figure in row.values() for name in figure.sources} == set(
        published.sources
    )
    for source in published.sources.values():
        assert source.url.startswith("https://") and "(first)" not in source.title


def test_figures_with_a_single_transcription_are_marked() -> None:
    names = ("moving_mnist", "nbody_mnist", "depth")
    found = {
        (name, row, column): figure.text
        for name in names
        for row, figures in load_published(f"earthformer_{name}.json").rows.items()
        for column, figure in figures.items()
        if figure.sources == ("TX3",) and figure.note == "transcribed, one source"
    }
    assert len(found) == 23
    assert found["moving_mnist", "earthformer", "mse_frame_sum"] == "41.79"
    assert found["nbody_mnist", "predrnn", "ssim"] == "0.9288" and found["depth", "depth_8", "mse_frame_sum"] == "48.04"


def test_no_figure_of_prediffs_nbody_table_is_shown() -> None:
    assert load_table("prediff/nbody_mnist").published is None

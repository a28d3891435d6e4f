from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from without_values import on_meta

from bench.config import Config, Train, compose, expand_sweep, fingerprint, numbers_only, stored, validate
from bench.config.overrides import literal
from bench.errors import ConfigError, UnknownNameError
from bench.models import load_model
from bench.tasks import load_task


def test_the_default_config_equals_the_defaults_of_the_schema() -> None:
    config = compose([])
    assert config.task.name == "sevir" and config.model.name == "unet"
    named = {"task": {"name": "sevir"}, "model": {"name": "unet"}}
    assert config == Config.model_validate(named) and config.train == Train()


@pytest.mark.parametrize("group", ["train", "experiment"])
def test_every_shipped_config_composes(group: str) -> None:
    folder = importlib.resources.files("bench.conf") / group
    names = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
    assert names
    for name in names:
        override = f"+{group}={name}" if group == "experiment" else f"{group}={name}"
        compose([override.lstrip("+")])


@pytest.mark.parametrize("name", ["simvp", "simvp model=tau", "prediff", "ldm", "dgmr", "videogpt"])
def test_small_presets_take_frames_of_64x64(name: str) -> None:
    config = compose([*f"experiment=small_{name}".split(), "task=nbody_mnist", "task.t_in=6", "task.t_out=6"])
    task = load_task("nbody_mnist", **config.task.options)
    with on_meta():
        model = load_model(config.model.name, task, **config.model.options)
    assert 4e6 < sum(parameter.numel() for parameter in model.parameters()) < 23e6
    assert set(config.train.stages) <= {stage.name for stage in getattr(model, "stages", tuple)()}


def test_recorded_folders_are_relative_to_the_start_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, plain = [f"work='{tmp_path}/outputs'", f"results.root='{tmp_path}/results'"], compose([])
    assert stored(compose(here)) == stored(plain) and (plain.work, plain.results.root) == ("outputs", "results")
    for elsewhere in ("/elsewhere/outputs", "s3://bucket/outputs", "../outputs"):
        assert stored(compose([f"work='{elsewhere}'"]))["work"] == elsewhere


def test_hyperparameters_and_task_fields_need_no_plus() -> None:
    config = compose(["model=unet", "model.channels=[8,16]", "task.t_out=6"])
    assert config.model.options == {"channels": [8, 16]}
    assert config.task.options == {"t_out": 6}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=unett", "Did you mean 'unet'"),
        ("task=sevirr", "Did you mean 'sevir'"),
        ("train=defaut", "Did you mean 'default'"),
        ("train.lrr=1", "Did you mean 'lr'"),
        ("+train.lrr=1", "Did you mean 'lr'"),
        ("trian.lr=1", "Did you mean 'train'"),
        ("model.chanels=[1]", "Did you mean 'channels'"),
        ("train.lr=-1", "greater than 0"),
        ("train.lr=nan", "finite"),
        ("train.lr=inf", "finite"),
        ("train.lr=true", "not a boolean"),
        ("train.lr=fast", "valid number"),
        ("data.batch_size=0", "greater than or equal to 1"),
        ("limit=0", "greater than or equal to 1"),
        ("model.center_channels=nan", "finite"),
        ("split=tst", "'train', 'val', 'test' or 'all'"),
        ("device=gpu", "pattern"),
        ("model.name=../../etc", "Known|unknown|pattern"),
        ("seed=", "seed"),
        ("data.root=${nothing}", "nothing"),
        ("data.micro_batch=0", "greater than or equal to 1"),
        ("data.micro_batch=half", "'auto'"),
        ("data.num_workers=-1", "greater than or equal to 0"),
        ("train.matmul_precision=low", "'highest', 'high' or 'medium'"),
    ],
)
def test_a_wrong_override_gives_one_message(override: str, words: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=words) as caught:
        compose([override])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "more", ["warmup_fraction=0.1", "warmup_start_ratio=0.1", "min_lr_ratio=0.0", "betas=[0.9,0.9]"]
)
def test_one_cycle_refuses_settings_it_controls(more: str) -> None:
    with pytest.raises(ConfigError, match=rf"train.schedule.*found {more.split('=')[0]}=.*expected the defaults"):
        compose(["train.schedule=onecycle", f"train.{more}"])
    assert compose(["train.schedule=onecycle"]).train.schedule == "onecycle"


def test_plateau_has_patience_and_no_warmup() -> None:
    train = compose(["train.schedule=plateau", "train.plateau_patience=2"]).train
    assert train.model_dump()["plateau_patience"] == 2 and Train.model_validate(train.model_dump()) == train
    assert "plateau_patience" not in compose([]).train.model_dump()
    with pytest.raises(ConfigError, match=r"train\.schedule.*found warmup_fraction=0\.1"):
        compose(["train.schedule=plateau", "train.warmup_fraction=0.1"])


def test_the_default_schedule_adds_no_key_to_the_config() -> None:
    assert "schedule" not in compose([]).model_dump()["train"]
    train = compose(["train.schedule=onecycle"]).train
    assert Train.model_validate(train.model_dump()) == train


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize("size", [2, 8])
def test_the_old_accumulation_key_is_refused_with_its_replacement(plus: str, size: int) -> None:
    given = [f"data.batch_size={size}"] * (size != 8)
    with pytest.raises(ConfigError, match=rf"write data\.batch_size={16 * size} data\.micro_batch={size}$"):
        compose([*given, f"{plus}train.accumulate=16"])


def test_the_old_accumulation_key_is_refused_in_files() -> None:
    with pytest.raises(ConfigError, match=r"write data\.batch_size=32 data\.micro_batch=8$"):
        validate({"task": {"name": "sevir"}, "model": {"name": "unet"}, "train": {"accumulate": 4}})


def test_the_micro_batch_limit_per_device() -> None:
    def limit(*overrides: str) -> int:
        return compose(["data.batch_size=10", *overrides]).micro_batch_limit

    assert limit() == 10 and limit("devices=3") == 4 and limit("devices=2", "nodes=5") == 1
    assert limit("data.micro_batch=3") == 3 and limit("data.micro_batch=64", "devices=2") == 5


def test_a_target_in_a_config_is_never_instantiated(tmp_path) -> None:
    with pytest.raises(ConfigError):
        compose(["+train._target_=os.system", "+train.command=touch pwned"])


def test_a_sweep_expands_to_the_product_of_its_values() -> None:
    jobs = expand_sweep(["model=unet,persistence", "seed=0,1", "train.lr=1e-3", "hydra/launcher=basic"])
    assert len(jobs) == 4
    assert ["model=unet", "seed=1", "train.lr=1e-3"] in jobs


def test_the_fingerprint_ignores_paths() -> None:
    base = numbers_only(compose([]))
    assert fingerprint(
        numbers_only(compose(["data.root=/elsewhere", "work=w", "device=cpu", "progress=false", "data.micro_batch=2"]))
    ) == fingerprint(base)
    changes = ("seed=1", "train.lr=2e-3", "model.channels=[8]", "task.t_out=6", "data.batch_size=4")
    for override in (*changes, "train.compile=true", "train.matmul_precision=high", "train.schedule=onecycle"):
        assert fingerprint(numbers_only(compose([override]))) != fingerprint(base), override


@given(
    st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), max_size=6)
)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(content: dict) -> None:
    assert fingerprint(content) == fingerprint(dict(reversed(content.items())))


def test_debug_runs_of_slow_models_are_smaller_by_default() -> None:
    for model in ("prediff", "prediff_ka"):
        tried = compose(["experiment=debug", "task=sevir_lr", f"model={model}"])
        assert (tried.model.options, tried.limit, tried.train.max_steps) == ({"steps": 2, "members": 2}, 1, 2)
    told = compose(["experiment=debug", "model=prediff", "model.steps=7", "limit=3"])
    assert (told.model.options["steps"], told.limit) == (7, 3)
    assert compose(["experiment=debug"]).limit == 4 and compose(["model=prediff"]).model.options == {}


@pytest.mark.parametrize("key", ["checkpoint", "data.root", "work", "train.checkpoints", "results.root"])
def test_an_empty_path_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=: expected a path or an address, found an empty text"):
        compose(["task=sevir", "model=unet", f"{key}="])


def test_a_top_level_key_in_a_section_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'train\.checkpoint'\. Did you mean 'checkpoint'"):
        compose(["task=sevir", "model=unet", "train.checkpoint=a.ckpt"])


_FOLDERS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(names=st.lists(_FOLDERS, min_size=3, max_size=3))
@settings(max_examples=settings().max_examples // 3)  # each of three folders
@example(names=["jörg", "it's, a=b (1) [2] {3} ~&#!", "ends in \\"])
@example(names=["\\' both", "x", "x"])
def test_any_folder_round_trips_as_an_override(names: list[str]) -> None:
    folders = [f"/data/{name}" for name in names if "${" not in name]  # which is an interpolation wherever it stands
    keys = ("data.root", "results.root", "work")[: len(folders)]
    config = compose([f"{key}={literal(folder)}" for key, folder in zip(keys, folders, strict=True)])
    assert [config.data.root, config.results.root, config.work][: len(folders)] == folders

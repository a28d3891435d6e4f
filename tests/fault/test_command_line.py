"""Bad input on the command line: one message, the documented exit code, no partly written files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli.main import VERBS, main
from bench.errors import InterruptedRunError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], "Did you mean 'list'"),
        (["list", "--fromat"], "unknown arguments"),
        (["show", "model", "unett"], "Did you mean 'unet'"),
        (["show", "thing", "unet"], "invalid choice"),
        (["run", "model=unett"], "Did you mean 'unet'"),
        (["run", "task=sevirr"], "Did you mean 'sevir'"),
        (["run", "train.lrr=1"], "Did you mean 'lr'"),
        (["run"], "data.root is not set"),
        (["run", "data.root=/not/there"], "not a folder"),
        (["run", "data.root=/not/there", "device=cuda:99"], "CUDA"),
        (["run", "-m", "model=unet,unett"], "Did you mean 'unet'"),
        (["run", "-m", "seed=0,-1"], "greater than or equal to 0"),
        (["evaluate", "split=nowhere"], "'train', 'val', 'test' or 'all'"),
        (["evaluate", "broken override"], "is not KEY=VALUE"),
        (["table", "earthformer/sevr"], "Did you mean 'earthformer/sevir'"),
        (["count", "--model", "unett"], "Did you mean 'unet'"),
        (["count", "--table", "nothing"], "unknown table"),
        (["data", "check", "sevir", "--root", "/not/there"], "not a folder"),
        (["data", "info", "sevirr", "--root", "/not/there"], "Did you mean 'sevir'"),
        (["data", "make", "sevir", "--out", "/proc/x", "--train", "1", "--size", "8"], "cannot be written"),
        (["data", "make", "sevir", "--out", "x", "--size", "0"], "give numbers >= 1"),
        (["data", "make", "sevir", "--out", "x", "--train", "-1"], "give numbers >= 1"),
    ],
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    capsys, empty_folder: Path, arguments: list[str], words: str
) -> None:
    code, error = _error(capsys, *arguments)
    assert code == 2 and words in error and "Traceback" not in error
    assert not [p for p in empty_folder.rglob("*") if p.is_file()]


def test_an_internal_error_exits_with_1_and_asks_for_a_report(capsys, monkeypatch) -> None:
    monkeypatch.setattr("bench.cli.list_names.run", lambda options: 1 / 0)
    code, error = _error(capsys, "list")
    assert code == 1 and "ZeroDivisionError" in error and "report" in error


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb: str) -> None:
    assert main([verb, "--help"]) == 0
    assert f"earthbench {verb}" in capsys.readouterr().out


def test_list_and_show_as_json(capsys) -> None:
    assert main(["list", "--format", "json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert {"unet", "persistence"} <= {line["name"] for line in listing["models"]}
    for kind, lines in listing.items():
        for line in lines:
            assert main(["show", kind.removesuffix("s"), line["name"], "--format", "json"]) == 0
            assert json.loads(capsys.readouterr().out)["name"] == line["name"]


def test_evaluate_prints_only_the_record_as_json(capsys, storms: Path) -> None:
    arguments = [
        "evaluate",
        "model=persistence",
        f"data.root={storms}",
        "--format",
        "json",
        "progress=false",
        "device=cpu",
    ]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scores"]["csi_m"] > 0 and record["scope"] == "full"
    assert Path(f"results/runs/sevir/persistence/{record['run_id']}.json").is_file()


@pytest.mark.slow
def test_a_sweep_writes_a_record_for_every_combination(storms: Path) -> None:
    arguments = [
        "run",
        "-m",
        "model=persistence",
        "seed=0,1",
        "split=val,test",
        f"data.root={storms}",
        "progress=false",
        "picture=false",
        "device=cpu",
    ]
    assert main(arguments) == 0
    records = [json.loads(path.read_text()) for path in Path("results/runs").rglob("*.json")]
    assert {(r["seed"], r["data"]["split"]) for r in records} == {(0, "val"), (0, "test"), (1, "val"), (1, "test")}


@pytest.mark.slow
def test_a_sweep_runs_on_another_launcher(storms: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the `test` extra brings it")
    arguments = [
        "run",
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "model=persistence",
        "seed=0,1",
        f"data.root={storms}",
        f"results.root={Path.cwd() / 'results'}",
        "progress=false",
        "picture=false",
        "device=cpu",
    ]
    assert main(arguments) == 0
    assert len(list(Path("results/runs").rglob("*.json"))) == 2


@pytest.mark.slow
def test_a_failed_job_fails_the_sweep(capsys, storms: Path) -> None:
    code, error = _error(
        capsys, "run", "-m", "model=persistence", f"data.root={storms},/not/there", "progress=false", "picture=false"
    )
    assert code == 2 and "not a folder" in error


def _stopped(*_: object, **__: object) -> None:
    raise InterruptedRunError("stopped by SIGTERM; saved. The same command continues.")


@pytest.mark.parametrize("verb", ["run", "ablate"])
def test_a_signal_stops_the_whole_sweep(capsys, monkeypatch: pytest.MonkeyPatch, storms: Path, verb: str) -> None:
    started: list[object] = []
    monkeypatch.setattr("bench.engine.run.run", lambda config, **_: (started.append(config.seed), _stopped()))
    command = ["run", "-m", "model=persistence"] if verb == "run" else ["ablate", "global_vectors", "task=sevir"]
    code, error = _error(capsys, *command, "seed=0,1", f"data.root={storms}", "progress=false")
    assert code == 130 and "stopped by SIGTERM" in error
    assert started == [0], "the next job was started"


def test_cfg_prints_the_config_without_running(capsys) -> None:
    assert main(["run", "model=persistence", "--cfg", "job"]) == 0
    assert "name: persistence" in capsys.readouterr().out


def test_info_check_and_make(capsys, empty_folder: Path) -> None:
    assert (
        main(["data", "make", "sevir", "--out", "storms", "--size", "16", "--train", "2", "--val", "1", "--test", "1"])
        == 0
    )
    assert main(["data", "info", "sevir", "--root", "storms", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["facts"]
    assert facts["origin"] == "synthetic storms" and facts["splits"]["train"] == {"events": 2, "sequences": 6}
    assert main(["data", "info", "sevir", "--root", "storms"]) == 0
    assert main(["data", "check", "sevir", "--root", "storms"]) == 0
    assert "no problems: 4 events read" in capsys.readouterr().out
    catalogue = (empty_folder / "storms/CATALOG.csv").read_text().splitlines()
    gone = catalogue[1].replace("R18", "X18").replace(".h5", "_gone.h5")
    (empty_folder / "storms/CATALOG.csv").write_text("\n".join([*catalogue, gone]) + "\n")
    code, error = _error(capsys, "data", "check", "sevir", "--root", "storms", "--quick")
    assert code == 2 and "_gone.h5: file is missing" in error


def test_check_finds_flipped_bytes_and_undeclared_missing_pixels(capsys, empty_folder: Path) -> None:
    import h5py
    import numpy as np

    assert (
        main(["data", "make", "sevir", "--out", "s", "--size", "16", "--train", "2", "--val", "0", "--test", "0"]) == 0
    )
    (path,) = Path("s/data").rglob("*.h5")
    with h5py.File(path) as file:
        codes, ids = file["vil"][:], file["id"][:]
    codes[0, 3, 3, 3] = 255
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "vil", data=codes, chunks=(1, *codes.shape[1:]), compression="gzip", fletcher32=True
        )
        file["id"] = ids
        where = array.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    code, error = _error(capsys, "data", "check", "sevir", "--root", "s")
    assert code == 2 and "1 missing pixels (255)" in error and "cannot be read" in error
    assert np.count_nonzero(codes == 255) == 1


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("earthbench ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--resme"], "unknown flag --resme"),
        (["run", "--multrun", "seed=0,1"], "Did you mean '--multirun'"),
        (["run", "--cgf=job"], "Did you mean '--cfg'?"),
        (["run", "-m", "--cfg", "job"], "do not go together"),
        (["status", "--frmat", "json"], "unknown flag --frmat"),
        (["status", "sed=0,1"], "Did you mean 'seed'?"),
        (["run", "-m", "hydra/launcher=rya", "seed=0,1"], "hydra/launcher"),
    ],
)
def test_a_mistyped_flag_gives_one_error(capsys, empty_folder: Path, arguments: list[str], words: str) -> None:
    code, error = _error(capsys, *arguments)
    assert code == 2 and words in error and "Traceback" not in error
    assert not [path for path in empty_folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.usefixtures("small_model")
def test_a_repeated_sweep_runs_only_missing_jobs(capsys, storms: Path) -> None:
    from faults import TINY

    usual = [*(o for o in TINY if not o.startswith("train.max")), "train.max_epochs=1", f"data.root={storms}"]
    first, whole = [*usual, "seed=0,1"], [*usual, "seed=0,1,2"]
    assert main(["run", "-m", *first]) == 0
    capsys.readouterr()
    assert main(["status", *whole]) == 0
    told = capsys.readouterr().out
    assert told.count("recorded") == 3 and "waiting   seed=2" in told and "3 runs: 2 recorded, 1 waiting" in told
    assert main(["run", "-m", *whole]) == 0
    assert capsys.readouterr().out.count("already recorded:") == 2
    assert len(list(Path("results/runs").rglob("*.json"))) == 3
    assert main(["status", "-m", *whole, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"recorded": 3}
    assert main(["status"]) == 0
    assert "3 runs: 3 done" in capsys.readouterr().out
    assert main(["status", *(o for o in usual if not o.startswith("train.max")), "seed=0"]) == 0
    told = capsys.readouterr().out
    assert "waiting " in told and "recorded with other settings: train.max_epochs=1" in told and "1 run:" in told
    assert main(["run", "-m", *whole, "train.limit=3"]) == 0, "another config is another sweep"
    assert len(list(Path("results/runs").rglob("*.json"))) == 6


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York"])
def test_records_use_utc_in_any_time_zone(monkeypatch, zone: str) -> None:
    import time
    from datetime import UTC, datetime, timedelta

    from bench.records.store import new_run_id

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        run_id, created = new_run_id("f" * 64)
        assert created.endswith("+00:00")
        assert abs(datetime.fromisoformat(created) - datetime.now(UTC)) < timedelta(seconds=5)
        assert run_id.startswith(created[:10].replace("-", ""))
    finally:
        monkeypatch.undo()
        time.tzset()

"""External influences: secrets, addresses, packages of the same name, foreign text, shared folders."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import fsspec
import pytest
from faults import tiny

import bench
from bench.cli.main import main
from bench.config import compose, fingerprint, numbers_only, stored
from bench.errors import ConfigError, EarthbenchError
from bench.paths import as_path, local_folder

_PROJECT = Path(__file__).parents[2]
_SMALL = ["task=sevir", "model=unet", "model.channels=[4,8]", "model.center_channels=8", "train.max_steps=1"]
_SMALL += ["progress=false", "device=cpu", "train.loggers=[csv,tensorboard]"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# Secrets


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "-m"])
def test_no_secret_is_stored_or_shown(capfd, monkeypatch, storms: Path, empty_folder: Path, sweep: list[str]) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0psecr3t")
    monkeypatch.setenv("STORMS", str(storms))
    checkpoints = empty_folder / "checkpoints"
    monkeypatch.setenv("CHECKPOINTS", str(checkpoints))
    given = [*_SMALL, "data.root=${oc.env:STORMS}", "results.root='memory://AKIAKEY:sEcReT@${oc.env:MY_TOKEN}/r'"]
    assert main(["run", *sweep, *given, "train.checkpoints=${oc.env:CHECKPOINTS}"]) == 0
    shown = "".join(capfd.readouterr())
    assert "record: memory://***@" in shown
    memory = fsspec.filesystem("memory")
    records = {path: memory.cat_file(path).decode() for path in memory.find("/") if path.endswith(".json")}
    config = json.loads(next(iter(records.values())))["config"]
    assert config["data"]["root"] == "${oc.env:STORMS}" and config["train"]["checkpoints"] == "${oc.env:CHECKPOINTS}"
    assert config["results"]["root"] == "memory://***@${oc.env:MY_TOKEN}/r"
    written = [path.read_bytes().decode("latin-1") for path in empty_folder.rglob("*") if path.is_file()]
    for text in (shown, *records.values(), *written):
        assert "sEcReT" not in text and "t0psecr3t" not in text
    memory.store.clear()


def test_a_printed_config_has_no_secret(capfd, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0psecr3t")
    given = ["results.root='s3://AKIAKEY:sEcReT@b/r'", "data.root='https://h/${oc.env:MY_TOKEN}?sig=abcdef'"]
    for flags in (["--cfg", "job"], ["--cfg", "job", "--resolve"], ["--cfg", "all"]):
        assert main(["run", *given, *flags]) == 0
        shown = "".join(capfd.readouterr())
        assert "s3://***@b/r" in shown and not any(word in shown for word in ("sEcReT", "t0psecr3t", "abcdef"))


def test_a_fingerprint_does_not_depend_on_secrets() -> None:
    configs = [compose([f"checkpoint='s3://KEY:{secret}@b/best.ckpt'"]) for secret in ("one", "two")]
    assert len({fingerprint(numbers_only(config)) for config in configs}) == 1
    kept = stored(configs[0])
    assert kept["checkpoint"] == "s3://***@b/best.ckpt"
    assert fingerprint(numbers_only(type(configs[0]).model_validate(kept))) == fingerprint(numbers_only(configs[0]))


def test_numbers_from_the_environment_are_stored(monkeypatch) -> None:
    monkeypatch.setenv("SEED", "3")
    config = compose(["seed=${oc.env:SEED}", "data.root=${oc.env:NOT_THERE,null}", "work=${results.root}/work"])
    assert (config.seed, config.data.root, config.work) == (3, None, "results/work")


def test_environment_variables_in_a_url_are_expanded_on_opening(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    assert as_path("${oc.env:HERE}/x", "results.root") == local_folder("${oc.env:HERE}/x", "work") == tmp_path / "x"
    assert as_path("${oc.env:NOT_THERE,${oc.env:HERE}}/x", "results.root") == tmp_path / "x"
    with pytest.raises(ConfigError, match=r"work=\$\{oc.env:NOT_THERE\}.*environment variable NOT_THERE is not set"):
        local_folder("${oc.env:NOT_THERE}", "work")


# Text of others


def test_escapes_and_formulas_in_an_origin_are_plain_text(capfd, storms: Path, tmp_path: Path) -> None:
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(storms, tree)
    described = json.loads((tree / "DATASET.json").read_text())
    (tree / "DATASET.json").write_text(json.dumps({**described, "origin": "=cmd|' /C x'!A0\x1b]0;title\x07"}))
    assert main(["data", "info", "sevir", "--root", str(tree)]) == 0
    assert main(["evaluate", "task=sevir", "model=persistence", f"data.root={tree}", "picture=false"]) == 0
    assert main(["table", "runs/sevir"]) == 0
    assert main(["explain", "runs/sevir", "persistence", "csi_m"]) == 0
    shown = "".join(capfd.readouterr())
    assert "\x1b" not in shown and "\x07" not in shown and "=cmd" in shown
    assert main(["table", "runs/sevir", "--format", "csv"]) == 0
    rows = capfd.readouterr().out.splitlines()[1:]
    assert rows and all(row.lstrip('"').startswith("'=cmd") for row in rows)


# Addresses


@pytest.mark.parametrize("key", ["data.root", "results.root", "train.checkpoints", "checkpoint", "work"])
@pytest.mark.parametrize(
    "address",
    ["ftp://127.0.0.1:{port}/x", "ftp://user:pw@127.0.0.1:{port}/x", "zip://x", "zip://::file:///nothing.zip",
     "reference://x", "github://a:b@c/d", "data://x", "nope://x", "://x", "s3://b/x", "dbfs://x",
     "filecache::https://127.0.0.1:{port}/x"],
)  # fmt: skip
def test_an_unusable_url_gives_one_error(key: str, address: str) -> None:
    if address.startswith("s3:") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, and would ask Amazon")
    from bench.data.transfer.paths import open_root

    text = address.format(port=_closed_port())
    with pytest.raises(EarthbenchError) as caught:
        {"data.root": open_root, "work": lambda one: local_folder(one, key)}.get(key, lambda one: as_path(one, key))(
            text
        )
    assert caught.value.exit_code in (2, 3) and "\n" not in str(caught.value) and "user:pw" not in str(caught.value)
    if address.startswith("s3:") and key != "work":
        assert "pip install 'earthbench[s3]'" in str(caught.value)


def test_a_closed_port_is_not_reported_as_a_missing_file(capsys) -> None:
    address = f"http://127.0.0.1:{_closed_port()}/x"
    assert main(["evaluate", "task=sevir", "model=persistence", f"data.root='{address}'"]) == 2
    error = capsys.readouterr().err
    assert "no answer" in error and "refused" in error and "CATALOG.csv" not in error


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# Packages of the same name


@pytest.mark.parametrize(("package", "name"), [("earthformer", "earthformer"), ("baselines", "unet")])
def test_a_shadowing_package_is_named_with_its_folder(tmp_path: Path, package: str, name: str) -> None:
    (tmp_path / "other" / package).mkdir(parents=True)
    (tmp_path / "other" / package / "__init__.py").write_text("")
    program = "import sys; from bench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    given = os.environ | {"PYTHONPATH": str(tmp_path / "other")}
    command = [sys.executable, "-c", program]
    listed = subprocess.run([*command, "list", "models"], env=given, capture_output=True, text=True, check=True)
    broken = [line for line in listed.stdout.splitlines() if "BROKEN" in line]
    assert broken and all(str(tmp_path / "other" / package) in line and "hides" in line for line in broken)
    shown = subprocess.run([*command, "show", "model", name], env=given, capture_output=True, text=True)
    assert shown.returncode == 2 and str(tmp_path / "other") in shown.stderr


def _earthbench() -> object:
    """Returns the module that the wheel installs as `earthbench.py`, whether installed or not."""
    settings = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    (source,) = [source for source, target in included.items() if target == "earthbench.py"]
    spec = importlib.util.spec_from_file_location("earthbench", _PROJECT / source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_earthbench_exports_the_names_of_bench(monkeypatch, tmp_path: Path) -> None:
    module = _earthbench()
    assert all(getattr(module, name) is getattr(bench, name) for name in bench.__all__)
    assert module.__version__ == bench.__version__ and module.__all__ == bench.__all__  # type: ignore[attr-defined]
    assert set(bench.__all__) <= set(dir(module))
    with pytest.raises(AttributeError):
        module.nothing  # type: ignore[attr-defined]  # noqa: B018
    (tmp_path / "other/bench").mkdir(parents=True)
    (tmp_path / "other/bench/__init__.py").write_text("")
    (tmp_path / "other/earthbench.py").write_text((_PROJECT / "bench/earthbench_module.py").read_text())
    hidden = subprocess.run(
        [sys.executable, "-c", "import earthbench, sys; sys.exit(earthbench.main())"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "other")}, capture_output=True, text=True,
    )  # fmt: skip
    assert hidden.returncode == 2 and str(tmp_path / "other/bench") in hidden.stderr


def test_python_m_bench_runs_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "bench", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("earthbench ")


# Folders shared by two runs, and repeated commands


@pytest.mark.usefixtures("small_model")
def test_two_runs_never_share_a_checkpoint_folder(storms: Path, tmp_path: Path) -> None:
    from bench.engine.run import run
    from bench.engine.runfolder import checkpoint_lock

    shared = f"train.checkpoints={tmp_path / 'shared'}"
    run(tiny(storms, tmp_path / "a", shared, "train.max_epochs=1"), training=True)
    (folder,) = (tmp_path / "shared/sevir/unet").iterdir()
    with (
        checkpoint_lock(folder),
        pytest.raises(ConfigError, match=f"checkpoints in {folder} are in use.*train.checkpoints=DIR"),
    ):
        run(tiny(storms, tmp_path / "b", shared, "train.max_epochs=1"), training=True)
    assert run(tiny(storms, tmp_path / "b", shared, "train.max_epochs=1"), training=True).record.status == "ok"


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize(
    ("given", "training", "said"),
    [
        (["train.resume=true"], True, "The same command continues."),
        (["train.resume=false"], True, "The same command without train.resume=false continues."),
        ([], False, "The same command starts again."),
    ],
)
def test_resume_is_suggested_only_if_it_works(
    monkeypatch, storms: Path, tmp_path: Path, given: list[str], training: bool, said: str
) -> None:
    from bench.engine import run as pipeline
    from bench.errors import InterruptedRunError

    def stop(job: pipeline._Job, model: object, folder: Path) -> None:
        job.watch.received = "SIGTERM"
        job.watch.interrupt("saved")

    monkeypatch.setattr(pipeline, "_in_folder", stop)
    with pytest.raises(InterruptedRunError) as caught:
        pipeline.run(tiny(storms, tmp_path, *given), training=training)
    assert str(caught.value) == f"stopped by SIGTERM; saved. {said}"

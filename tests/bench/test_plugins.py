from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from string import Template

import pytest
import torch
from torchmetrics import Metric

from bench import plugins, registry
from bench.cli.main import main
from bench.errors import BrokenPluginError, ContractError, NameClashError, UsageError
from bench.metrics import load_metric
from bench.tasks.sevir import Sevir
from bench.testing import check_constraint, check_metric, check_task

MODEL = '''
"""A model in one file."""
import torch
from torch import nn

EARTHBENCH = {"api": 1, "models": {"NAME": "Half"}}


class Half(nn.Module):
    """Half of the last frame, at every lead time."""

    def __init__(self, input_shape, target_shape, *, share: float = 0.5) -> None:
        super().__init__()
        self.share, self.t_out = nn.Parameter(torch.tensor(share)), target_shape[0]

    def forward(self, context):
        return context[:, -1:].repeat(1, self.t_out, 1, 1, 1) * self.share
'''


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))


def _file(folder: Path, name: str, text: str = MODEL) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text.replace("NAME", name))
    return path


def test_a_plugin_file_is_listed_shown_checked_and_tabulated(
    tmp_path: Path, storms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, "half_of_it")
    assert main(["--plugin", str(path), "list", "models"]) == 0
    assert "Half of the last frame" in capsys.readouterr().out
    assert main(["show", "model", "half_of_it", f"--plugin={path}"]) == 0
    assert "share: 0.5" in capsys.readouterr().out
    assert main(["check", "half_of_it", "--plugin", str(path)]) == 0
    where = [f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'outputs'}", f"data.root={storms}"]
    short = ["train.max_epochs=1", "progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    assert main(["run", "model=half_of_it", *where, *short, "--plugin", str(path)]) == 0
    assert main(["table", "runs/sevir", "--results", str(tmp_path / "results")]) == 0
    assert "half_of_it (plugin)" in capsys.readouterr().out


TASK = '''
from typing import ClassVar

from bench.tasks.sevir import Sevir

EARTHBENCH = {"api": 1, "tasks": {"NAME": "Storms"}}


class Storms(Sevir):
    """Storms by one score."""

    name: ClassVar[str] = "NAME"

    @property
    def metrics(self):
        return {"mae": {"scale": 1.0, "t_out": 12}}
'''


def test_a_plugin_task_has_a_table_even_after_its_removal(
    tmp_path: Path, storms: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = ["--plugin", str(_file(tmp_path, "storms_by_mae", TASK))]
    where = [f"results.root={tmp_path / 'results'}", f"data.root={storms}", "progress=false", "picture=false"]
    assert main(["evaluate", "task=storms_by_mae", "model=persistence", "device=cpu", *where, *plugin]) == 0
    table = ["table", "runs/storms_by_mae", "--results", str(tmp_path / "results")]
    capsys.readouterr()
    assert main([*table, "--write"]) == 0
    text = (tmp_path / "results/tables/runs_storms_by_mae.md").read_text()
    assert "MAE" in text and "persistence" in text and "MSE" not in text
    assert main(["report", "--out", str(tmp_path / "site"), "--results", str(tmp_path / "results")]) == 0
    assert "persistence" in (tmp_path / "site/table-runs_storms_by_mae.html").read_text()
    assert main(["verify", "--results", str(tmp_path / "results")]) == 0
    monkeypatch.setenv(plugins.VARIABLE, "")
    assert main([*table, "--check"]) == 0
    (tmp_path / "results/tables/runs_storms_by_mae.md").write_text("another")
    capsys.readouterr()
    assert main(["verify", "--results", str(tmp_path / "results")]) == 4
    assert "runs_storms_by_mae.md differs from a fresh rendering" in capsys.readouterr().err


def test_a_plugin_metric_is_added_to_new_and_finished_runs(
    tmp_path: Path, storms: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    template = (files("bench") / "scaffold" / "metric" / "metric.py.txt").read_text()
    text = Template(template).substitute(class_name="Close", name="close_by")
    literal = 'EARTHBENCH = {"api": 1, "metrics": {"close_by": "Close"}}'
    plugin = ["--plugin", str(_file(tmp_path, "metric_of_mine", f"{text}\n{literal}\n"))]
    quiet = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    unet = ["model=unet", "model.channels=[4,4]", "model.center_channels=4", "train.max_steps=1"]
    assert main(["run", "task=sevir", f"data.root={storms}", *unet, *quiet]) == 0
    (first,) = Path("results/runs/sevir/unet").glob("*.json")
    assert main(["rescore", str(first), "evaluate.metrics.close_by={tolerance: 5}", *plugin]) == 0
    assert "close_by own" in capsys.readouterr().out
    (again,) = set(Path("results/runs/sevir/unet").glob("*.json")) - {first}
    before, after = (json.loads(path.read_text()) for path in (first, again))
    assert {key: after["scores"][key] for key in before["scores"]} == before["scores"]
    assert 0 < after["scores"]["close_by_own"] <= 1
    assert after["conventions"]["close_by@own"] == {"tolerance": 5}
    assert main(["rescore", str(first), "evaluate.metrics.close_by={tolerence: 5}", *plugin]) == 2
    assert "Did you mean 'tolerance'" in capsys.readouterr().err
    assert main(["table", "runs/sevir"]) == 0
    assert capsys.readouterr().out.count("## ") == 1
    assert main(["verify"]) == 0


def test_subprocesses_inherit_the_plugin_and_listing_does_not_run_it(tmp_path: Path) -> None:
    path = _file(tmp_path, "quiet_one", MODEL + "\nraise SystemExit('was run')\n")
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli.main", "list", "models"],
        env={**os.environ, plugins.VARIABLE: str(path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "quiet_one" in done.stdout and "was run" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("no_literal", "x = 1", "expected a literal"),
        ("computed", "EARTHBENCH = dict(models={})", "expected a literal"),
        ("bad_version", MODEL.replace('"api": 1', '"api": "1"'), "expected a literal"),
        ("other_kind", 'EARTHBENCH = {"modles": {"a": "A"}}', "expected a literal"),
        ("bad_name", 'EARTHBENCH = {"models": {"../a": "A"}}', "expected a literal"),
        ("bad_class", 'EARTHBENCH = {"models": {"a": "os.system"}}', "expected a literal"),
        ("not_python", "def", "SyntaxError"),
        ("json", MODEL, "rename the file"),
    ],
)
def test_an_invalid_plugin_file_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(BrokenPluginError, match=words):
        plugins.use_plugin_files(["list", "--plugin", str(_file(tmp_path, name, text))])


@pytest.mark.parametrize("given", [["--plugin"], ["--plugin", "/not/there.py"], ["--plugin=/etc/hostname"]])
def test_a_missing_plugin_file_is_a_usage_error(given: list[str]) -> None:
    with pytest.raises(UsageError, match="--plugin"):
        plugins.use_plugin_files(["list", *given])


def test_a_file_cannot_take_a_builtin_name(tmp_path: Path) -> None:
    plugins.use_plugin_files(["--plugin", str(_file(tmp_path, "mine", MODEL.replace("NAME", "unet")))])
    with pytest.raises(NameClashError, match="registered twice"):
        registry.find("model", "unet")


def test_a_plugin_for_another_interface_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = _file(tmp_path, "from_tomorrow", MODEL.replace('"api": 1', '"api": 99'))
    assert main(["check", "from_tomorrow", "--plugin", str(newer)]) == 2
    error = capsys.readouterr().err
    assert "was written for v99 of the plugin interface" in error and "Upgrade earthbench" in error
    assert main(["list", "models"]) == 0
    listing = capsys.readouterr().out
    assert "BROKEN" in listing and "v99" in listing and "unet" in listing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "attribute"),
    [
        ("model", [], "MyOwn"), ("task", ["data.py"], "MyOwn"), ("metric", [], "MyOwn"), ("table", [], "MY_OWN"),
        ("constraint", [], "MyOwn"),
    ],
)  # fmt: skip
def test_a_new_plugin_package_passes_its_checks(
    kind: str, more: list[str], attribute: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "package"
    assert main(["new", kind, "my_own", "--out", str(out)]) == 0
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {
        "README.md", "pyproject.toml", "tox.ini", "tests/test_my_own.py",
        *(f"src/earthbench_my_own/{name}" for name in ("__init__.py", f"{kind}.py", *more)),
    }  # fmt: skip
    assert not [p for p in out.rglob("*") if p.is_file() and "$" in p.read_text()]
    environment = {**os.environ, "PYTHONPATH": str(out / "src")}
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", "-q", "-n0", "tests"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=out, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert main(["new", kind, "my_own", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    groups = tomllib.loads((out / "pyproject.toml").read_text())["project"]["entry-points"]
    assert groups[f"earthbench.{kind}s"] == {"my_own": f"earthbench_my_own.{kind}:{attribute}"}
    assert groups[plugins.API_GROUP] == {f"v{plugins.API_VERSION}": "earthbench_my_own"}


@pytest.mark.parametrize(("name", "words"), [("My-Net", "expected a-z"), ("unet", "registered already"), ("1x", "a-z")])
def test_a_bad_name_is_refused(tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "model", name, "--out", str(tmp_path / "x")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_check_covers_every_kind_and_suggests_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mse"]) == 0 and "metric mse keeps its contract" in capsys.readouterr().out
    assert main(["check", "sevr"]) == 2 and "'sevir'" in capsys.readouterr().err


def test_a_task_keeps_its_contract_with_and_without_data(storms: Path) -> None:
    check_task(Sevir)
    check_task(Sevir, data_root=storms)


def test_each_breach_of_a_task_is_found(storms: Path) -> None:
    class Overlapping(Sevir):
        def split_dates(self):
            return {split: (None, None) for split in super().split_dates()}

        @property
        def metrics(self):
            return {"beauty": {}}

        def normalise(self, physical):
            return super().normalise(physical) * 2

    with pytest.raises(ContractError, match="train and test share") as caught:
        check_task(Overlapping, data_root=storms)
    assert "unknown metric 'beauty'" in str(caught.value) and "does not undo" in str(caught.value)
    with pytest.raises(ContractError, match="not a subclass"):
        check_task(int)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", registry.names("metric"))
def test_every_registered_metric_keeps_the_contract(name: str) -> None:
    digits, corners = (
        torch.full((6, 3, 8, 8), 255.0),
        torch.rand((6, 2, 3, 2), generator=torch.Generator().manual_seed(1)),
    )
    nbody = {"shape": (3, 64, 64, 1), "labels": (digits, corners * 40)}
    # the square root of the covariances of fewer clips than features magnifies rounding
    square_root = {"tolerance": 1e-6} if name == "frechet" else {}
    check_metric(registry.find("metric", name).load(), **(nbody if name == "energy" else {}), **square_root)


class _MeanOfBatches(Metric):
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, forecast: torch.Tensor, target: torch.Tensor) -> None:
        self.total = self.total + (forecast - target).square().mean()
        self.count = self.count + 1
        forecast.zero_()

    def compute(self) -> dict[str, float]:
        return {"error": float(self.total / self.count)}


def test_each_breach_of_a_metric_is_found() -> None:
    with pytest.raises(ContractError, match="batches of another size") as caught:
        check_metric(_MeanOfBatches)
    assert "float32" in str(caught.value) and "changed its arguments" in str(caught.value)
    assert load_metric("mse") is not None


@pytest.mark.parametrize("name", registry.names("constraint"))
def test_every_registered_constraint_keeps_the_contract(name: str) -> None:
    assert check_constraint(registry.find("constraint", name).load()).name == name


def test_each_breach_of_a_constraint_is_found() -> None:
    class HeaviestOfBatch(registry.find("constraint", "mean_intensity").load()):  # type: ignore[misc]
        name = "Heaviest"

        def measure(self, frames: torch.Tensor, labels: object = ()) -> torch.Tensor:
            largest = frames.nan_to_num(nan=-torch.inf).amax(dim=(0, 2, 3, 4))
            return largest.expand(len(frames), -1)[..., None]

    with pytest.raises(ContractError, match="depends on the others of its batch") as caught:
        check_constraint(HeaviestOfBatch)
    assert "found 'Heaviest'" in str(caught.value) and "all pixels are missing, found inf" in str(caught.value)
    with pytest.raises(ContractError, match="is not a constraint"):
        check_constraint(int)

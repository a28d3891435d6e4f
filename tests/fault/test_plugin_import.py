"""Side effects of importing a plugin do not affect anything else (R03, R05)."""

from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import plugins
from bench.cli.main import main
from bench.models import load_model
from bench.plugins import restored_process_state
from bench.tasks import load_task

_MODEL = '''
"""A model."""
from torch import nn
EARTHBENCH = {"models": {"NAME": "Last"}}


class Last(nn.Module):
    """The last frame."""

    def __init__(self, input_shape, target_shape):
        super().__init__()
        self.t_out = target_shape[0]

    def forward(self, context):
        return context[:, -1:].repeat(1, self.t_out, 1, 1, 1)
'''


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))


def _file(folder: Path, name: str, more: str) -> list[str]:
    path = folder / f"{name}.py"
    path.write_text(_MODEL.replace("NAME", name) + more)
    return ["--plugin", str(path)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("torch_seed", "import torch; torch.manual_seed(5)"),
        ("torch_dtype", "import torch; torch.set_default_dtype(torch.float64)"),
        ("torch_threads", "import torch; torch.set_num_threads(torch.get_num_threads() + 1)"),
        ("torch_strict", "import torch; torch.use_deterministic_algorithms(True)"),
        ("numpy_seed", "import numpy; numpy.random.seed(5)"),
        ("python_seed", "import random; random.seed(5)"),
        ("fails_late", "import torch; torch.manual_seed(5); torch.set_default_dtype(torch.float64); 1 / 0"),
    ],
)
def test_process_wide_changes_of_a_plugin_are_undone_with_a_warning(tmp_path: Path, name: str, change: str) -> None:
    def state() -> list[object]:
        found = [torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]
        return [*found, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]

    plugins.use_plugin_files(_file(tmp_path, name, f"\n{change}\n"))
    before = state()
    task = load_task("sevir")
    with pytest.warns(UserWarning, match=rf"{name}\.py\) changed .* when it was imported: restored"):
        if name == "fails_late":
            with pytest.raises(Exception, match="ZeroDivisionError"):
                load_model(name, task)
        else:
            load_model(name, task)
    assert state() == before


def test_output_of_a_plugin_does_not_corrupt_json(tmp_path: Path, storms: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*_file(tmp_path, "talks", "\nprint('hello')\n"), "model=talks", f"data.root={storms}", "device=cpu"]
    assert main(["evaluate", *given, "progress=false", "picture=false", "--format", "json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["model"]["name"] == "talks" and "hello" in told.err


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("crashes", "import os; os.abort()"),
        ("hangs", "while True: pass"),
        ("leaves", "raise SystemExit(0)"),
        ("interrupts", "raise KeyboardInterrupt"),
    ],
)
def test_listing_and_showing_do_not_import_a_plugin(tmp_path: Path, capsys, name: str, ending: str) -> None:
    given = _file(tmp_path, name, f"\n{ending}\n")
    for verb in (["list", "models"], ["show", "model", name]):
        assert main([*given, *verb]) == 0
        assert "The last frame." in capsys.readouterr().out


def test_random_state_is_restored_after_our_own_imports() -> None:
    before = random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with restored_process_state("baselines.unet:UNet", ours=True):
            random.seed(3)
    assert random.getstate() == before

"""How many files one reads to follow a run: those with functions on the stack, from the command line down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench.engine.forecaster
import bench.engine.run
from bench.cli.main import main

PROJECT = Path(__file__).resolve().parents[2]


def _files_on_the_stack() -> list[str]:
    """Returns the project's files with a function on the stack, outermost first."""
    found: dict[str, None] = {}
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(PROJECT / package) for package in ("bench", "baselines", "earthformer")):
            found[path.relative_to(PROJECT).as_posix()] = None
        frame = frame.f_back  # type: ignore[assignment]
    return list(reversed(found))


def _watch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[list[str]]:
    original: Callable[..., Any] = getattr(module, name)
    seen: list[list[str]] = []

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(_files_on_the_stack())
        return original(*args, **options)

    monkeypatch.setattr(module, name, watched)
    return seen


def test_few_files_lead_from_the_command_line_to_record_and_loss(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = _watch(monkeypatch, bench.engine.run, "write_record")
    losses = _watch(monkeypatch, bench.engine.forecaster, "masked_mse")
    words = [
        "run", "task=sevir", "model=unet", "model.channels=[4]", f"data.root={storms}", "train.max_steps=1",
        f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}", "progress=false", "picture=false",
    ]  # fmt: skip
    assert main(words) == 0
    assert records[0] == ["bench/cli/main.py", "bench/cli/run.py", "bench/engine/run.py"]
    assert losses[0] == [*records[0], "bench/engine/train.py", "bench/engine/forecaster.py"]

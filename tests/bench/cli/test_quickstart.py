"""`earthbench quickstart` after an upgrade."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.quickstart import outputs_of_code
from bench.records import sources


def test_an_upgrade_gets_its_own_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = outputs_of_code(tmp_path)
    assert before == outputs_of_code(tmp_path) and before.is_relative_to(tmp_path)
    upgraded = sources.harness_source().model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(sources, "harness_source", lambda: upgraded)
    assert outputs_of_code(tmp_path) != before

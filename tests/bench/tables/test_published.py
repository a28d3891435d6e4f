"""Published figures: allowed sources, known places, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import registry
from bench.errors import DataError
from bench.tables import definitions, load_table
from bench.tables.definitions import load_published
from bench.tables.render import render

SEVIR = load_table("earthformer/sevir")


@pytest.mark.parametrize("name", [n for n in registry.names("table") if load_table(n).published])
def test_published_figures_have_allowed_sources_and_known_columns(name: str) -> None:
    table = load_table(name)
    published = load_published(table.published)
    assert published.table == table.name
    assert set(published.rows) <= {row.key for row in table.rows}
    assert {key for figures in published.rows.values() for key in figures} <= {column.key for column in table.columns}
    assert {source.kind for source in published.sources.values()} <= {"authors", "transcribed"}


def test_published_thresholds_average_to_the_published_csi_m() -> None:
    rows = load_published("earthformer_sevir.json").rows
    complete = [r for r in rows.values() if all(f"csi_{t}" in r for t in (16, 74, 133, 160, 181, 219))]
    assert len(complete) == 2
    for figures in complete:
        mean = sum(figures[f"csi_{t}"].value for t in (16, 74, 133, 160, 181, 219)) / 6
        assert mean == pytest.approx(figures["csi_m"].value, abs=1e-4)


def test_a_published_file_without_a_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((definitions.published_folder() / "earthformer_sevir.json").read_text())
    content["rows"]["unet"]["mse"] = {"value": 4.2, "text": "4.1", "sources": ["memory"]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    monkeypatch.setattr(definitions, "published_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"unet\.mse: source 'memory'") as caught:
        load_published("x.json")
    assert "'4.1' is not 4.2" in str(caught.value)


def test_a_plugin_table_has_its_own_file_of_figures(tmp_path: Path) -> None:
    content = json.loads((definitions.published_folder() / "earthformer_sevir.json").read_text())
    content["rows"] = {"unet": content["rows"]["unet"]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    table = SEVIR.model_copy(update={"name": "mine", "published": str(tmp_path / "mine.json")})
    text = render(table, [])
    assert content["rows"]["unet"]["csi_m"]["text"] in text and text.count("| published ") == 1

"""Pictures of results under `docs` show the committed results; the command next to each one makes it again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from bench.report.plots import INPUTS, digest_of, inputs_digest
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import table_data

ROOT = Path(__file__).parents[3]
MADE_BY = {
    "leaderboard.png": ("boards/nbody16", "python tests/report_picture.py"),
    "pictures/sst_decades_lead.png": (
        "boards/sst_decades",
        "earthbench board picture results/boards/sst_decades.yaml",
    ),
    "pictures/radar_days_lead.png": ("boards/radar_days", "earthbench board picture results/boards/radar_days.yaml"),
    "pictures/radar_places_lead.png": (
        "boards/radar_places",
        "earthbench board picture results/boards/radar_places.yaml",
    ),
    "pictures/radar_ensembles_lead.png": (
        "boards/radar_ensembles",
        "earthbench board picture results/boards/radar_ensembles.yaml",
    ),
    "pictures/nbody16_lead.png": ("boards/nbody16", "earthbench board picture results/boards/nbody16.yaml"),
    "pictures/nbody16_compute.png": ("boards/nbody16", "earthbench board picture results/boards/nbody16.yaml"),
    "pictures/nbody16_patterns_patterns.png": (
        "boards/nbody16_patterns",
        "earthbench board picture results/boards/nbody16_patterns.yaml",
    ),
}


@pytest.mark.parametrize("name", MADE_BY)
def test_pictures_are_up_to_date_with_their_tables(name: str) -> None:
    table, command = MADE_BY[name]
    rendered = json.loads((ROOT / f"results/tables/{table.replace('/', '_')}.json").read_text(encoding="utf-8"))
    with Image.open(ROOT / "docs" / name) as image:
        found = image.info.get(INPUTS)
    assert found == inputs_digest(rendered["blocks"]), f"docs/{name} is stale; make it again: {command}"


def test_every_picture_of_a_board_is_checked() -> None:
    assert {f"pictures/{path.name}" for path in (ROOT / "docs/pictures").iterdir()} <= set(MADE_BY)


def test_the_digest_of_a_rendering_depends_on_its_contents() -> None:
    table = load_table("runs/radar")
    contents = table_data(table, None, read_store(ROOT / "results", table.task)[0])
    rendered = json.loads((ROOT / "results/tables/runs_radar.json").read_text(encoding="utf-8"))
    assert digest_of(contents) == inputs_digest(rendered["blocks"])


def test_the_animation_equals_the_output_of_its_command() -> None:
    """The data are not in the repository; a changed command or number of frames shows that the animation is stale."""
    page = (ROOT / "docs/own_data.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^earthbench forecast .*radar_forecast\.gif$", page, re.MULTILINE)
    t_in, t_out = (int(re.search(rf"{key}[= ](\d+)", command)[1]) for key in ("t_in", "t_out"))
    path = ROOT / "docs/radar_forecast.gif"
    with Image.open(path) as image:
        title = image.info["comment"].decode()
        assert image.n_frames == t_in + t_out, f"docs/{path.name} is stale; make it again: {command}"
    assert title == re.search('--title "(.+?)"', command)[1], f"docs/{path.name} is stale: {command}"
    assert path.stat().st_size < 1_500_000
    assert "docs/radar_forecast.gif" in (ROOT / "README.md").read_text(encoding="utf-8")

"""Takes the picture of the leaderboard that the documentation shows: `python tests/browser/picture.py`.

`tests/bench/report/test_committed_pictures.py` fails where it is older than the table.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import sync_playwright

from bench.report import build
from bench.report.plots import INPUTS, digest_of
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import table_data

REPO = Path(__file__).resolve().parents[2]
TABLE, PAGE, OUT = "boards/nbody16", "table-boards_nbody16.html", REPO / "docs" / "leaderboard.png"


def main() -> None:
    """Builds the report of the committed records and photographs the page of the table that has some."""
    chromium = os.environ.get("EARTHBENCH_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        site = build(REPO / "results", Path(folder) / "site").parent
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1320, "height": 1400})
        page.set_default_timeout(240_000)  # a busy machine takes its time
        page.goto((site / PAGE).as_uri())
        page.wait_for_selector(".board[data-ready]")
        page.wait_for_selector(".chart .scatterlayer .trace")
        page.wait_for_timeout(500)  # the charts' last transition
        below = page.locator(".chart").first.bounding_box()
        page.set_viewport_size({"width": 1320, "height": int(below["y"] + below["height"] + 20)})
        page.wait_for_timeout(500)
        page.screenshot(path=OUT)
        browser.close()
    table = load_table(TABLE, REPO / "results")
    told = PngInfo()
    told.add_text(INPUTS, digest_of(table_data(table, None, *read_store(REPO / "results", table.task))))
    with Image.open(OUT) as picture:
        picture.load()
        picture.save(OUT, pnginfo=told, optimize=True)


if __name__ == "__main__":
    main()

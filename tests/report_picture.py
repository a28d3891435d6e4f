"""Takes the picture of a board's page that `docs/report.md` shows: `python tests/report_picture.py`.

`tests/bench/report/test_committed_pictures.py` fails if it is older than the table; `tests/browser` takes it again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.report import build
from bench.report.plots import INPUTS, inputs_digest

REPO = Path(__file__).resolve().parents[1]
PAGE, OUT = "table-boards_nbody16.html", REPO / "docs" / "leaderboard.png"
CHROMIUM = os.environ.get("EARTHBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WIDTH, HEIGHT = 1320, 1525


def photograph(browser: Any, site: Path, out: Path) -> None:
    """Takes the picture of the first screens of the board's page.

    Args:
        browser: Browser of Playwright.
        site: Folder of a report on the committed results.
        out: PNG file to write.
    """
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    page.set_default_timeout(240_000)  # a busy machine takes its time
    page.goto((site / PAGE).as_uri())
    page.wait_for_selector(".board[data-ready]")
    page.wait_for_selector(".chart .scatterlayer .trace")
    page.evaluate(
        "() => Promise.all([...document.images].map((one) => { one.loading = 'eager'; return one.decode(); }))"
    )
    page.wait_for_timeout(500)  # the charts' last transition
    page.screenshot(path=out)
    page.close()
    rendered = json.loads((REPO / "results/tables/boards_nbody16.json").read_text(encoding="utf-8"))
    told = PngInfo()
    told.add_text(INPUTS, inputs_digest(rendered["blocks"]))
    with Image.open(out) as picture:
        picture.load()
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=255).save(out, pnginfo=told, optimize=True)


def main() -> None:
    """Builds the report of the committed records and takes the picture."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        site = build(REPO / "results", Path(folder) / "site").parent
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        photograph(browser, site, OUT)
        browser.close()


if __name__ == "__main__":
    main()

"""Takes the picture of the leaderboard that README and documentation show: `python tests/browser/picture.py`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from bench.report import build

REPO = Path(__file__).resolve().parents[2]
PAGE, OUT = "table-runs_enso_ersst.html", REPO / "docs" / "leaderboard.png"


def main() -> None:
    """Builds the report of the committed records and photographs the page of the table that has some."""
    chromium = os.environ.get("EARTHBENCH_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        site = build(REPO / "results", Path(folder) / "site").parent
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1320, "height": 1400})
        page.goto((site / PAGE).as_uri())
        page.wait_for_selector(".board[data-ready]")
        page.wait_for_selector(".chart .scatterlayer .trace")
        page.wait_for_timeout(500)  # the charts' last transition
        page.screenshot(path=OUT)
        browser.close()


if __name__ == "__main__":
    main()

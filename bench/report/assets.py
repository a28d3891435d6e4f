"""What the pages need besides their text: DataTables and Plotly as their Python packages ship them, and our own."""

from __future__ import annotations

import base64
import importlib.util
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from bench.errors import ConfigError

OWN = ("report.css", "report.js")


def write_assets(folder: Path) -> dict[str, str]:
    """Writes scripts and styles into a folder and returns the versions of the libraries among them.

    DataTables comes as an ES module, which browsers refuse to load from the disk; as a data URL they take it.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    tables, charts = _package("itables"), _package("plotly")
    folder.mkdir(parents=True, exist_ok=True)
    own = files("bench.report") / "static"
    for name in OWN:
        (folder / name).write_text((own / name).read_text(encoding="utf-8"), encoding="utf-8")
    module = base64.b64encode((tables / "html" / "dt_bundle.js").read_bytes()).decode("ascii")
    (folder / "tables.js").write_text(
        f'window.dataTables = import("data:text/javascript;base64,{module}");\n', encoding="ascii"
    )
    (folder / "tables.css").write_bytes((tables / "html" / "dt_bundle.css").read_bytes())
    (folder / "charts.js").write_bytes((charts / "package_data" / "plotly.min.js").read_bytes())
    return {name: version(name) for name in ("itables", "plotly")}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(f"`earthbench report` needs {name}: pip install 'earthbench[report]'")
    return Path(spec.origin).parent

"""Where the data of a folder comes from, in a word that records and tables repeat."""

from __future__ import annotations

import json
from pathlib import Path

from bench.data.places import reading
from bench.errors import DataError


def origin(root: Path) -> str:
    """Returns what the data is: the `origin` of `DATASET.json` (written for generated data), else 'files'.

    Raises:
        DataError: `DATASET.json` is there but cannot be read.
    """
    try:
        with reading(root):
            return str(json.loads((root / "DATASET.json").read_text(encoding="utf-8"))["origin"])
    except FileNotFoundError:
        return "files"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / 'DATASET.json'} is not readable: {error}. Delete it or write it again.") from error

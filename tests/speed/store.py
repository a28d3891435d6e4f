"""Cost of checking and listing a store of 5,000 records, in units of bare reads of the same files.

    python tests/speed/store.py [RESULTS] [COUNT]

Makes the store in a temporary folder from the records of RESULTS (default: results), each with its own id.  A bare
read parses the JSON and, if statistics are checked, loads every array with numpy.  Both sides are measured in
processor time, so that other load does not matter.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.records.schema import content_sha256
from bench.records.store import read_records
from bench.records.verify import verify_records
from bench.tables.admission import read_store
from bench.tables.cells import table_data
from bench.tables.render import load_table


def make_store(source: Path, root: Path, count: int) -> None:
    """Copies records with their statistics until there are `count`, each with its own id and hash."""
    files = sorted((source / "runs").rglob("*.json"))
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for number in range(count):
        file, content = files[number % len(files)], dict(contents[number % len(files)])
        content["run_id"] = f"{content['run_id']}-{number:05d}"
        content["sha256"] = content_sha256(content)
        copy = root / file.relative_to(source).with_name(f"{content['run_id']}.json")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if file.with_suffix(".npz").is_file():
            shutil.copyfile(file.with_suffix(".npz"), copy.with_suffix(".npz"))


def bare_read(root: Path, *, arrays: bool) -> None:
    for path in (root / "runs").rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
        if arrays and path.with_suffix(".npz").is_file():
            with np.load(path.with_suffix(".npz")) as file:
                for name in file.files:
                    _ = file[name]


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def table(root: Path) -> None:
    """Makes a table of runs without its bootstrap, whose cost is per shown row and not per record."""
    of_runs = load_table("runs/radar")
    records, unreadable = read_store(root, of_runs.task)
    table_data(of_runs, None, records, unreadable)


def main(source: Path, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_store(source, root, count)
        verify_records(root), bare_read(root, arrays=True)  # imports, and files in the page cache
        json_only = seconds(lambda: bare_read(root, arrays=False))
        whole = seconds(lambda: bare_read(root, arrays=True))
        print(f"{count} records: bare read {json_only:.2f} s, with statistics {whole:.2f} s")
        took = seconds(lambda: verify_records(root))
        print(f"verify: {took:.2f} s, {took / whole:.1f} bare reads with statistics (aim 5)")
        took = seconds(lambda: read_records(root))
        print(f"read for tables: {took:.2f} s, {took / json_only:.1f} bare reads")
        took = seconds(lambda: table(root))
        print(f"table runs/radar: {took:.2f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results"), int(sys.argv[2]) if len(sys.argv) > 2 else 5_000)

"""Events left out by a catalogue or a date are named, and an event under two ids is found."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from sevir_files import IDS, NAME, create, made_codes, write_events

import bench
from bench.cli.main import main


def test_check_uses_the_fields_of_the_task(tmp_path: Path, capsys) -> None:
    codes = made_codes()
    codes[1, 0, 0, 0] = 255
    columns = {"pct_missing": [0.0, 0.1, 0.1, 0.0]}
    root = write_events(tmp_path, create(), codes=codes, columns=columns)
    words = ["data", "check", "sevir", "--root", str(root)]
    for fields, count in (([], 2), (["task.admit_missing=true"], 4)):
        assert main([*words, *fields]) == 0
        assert f"no problems: {count} events read" in capsys.readouterr().out
    info = ["data", "info", "sevir", "--root", str(root), "--format", "json", "task.val_from=2019-08-01"]
    assert main([*info, "task.test_from=2019-09-01"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["splits"]["train"]["events"] == 2 and facts["splits"]["test"]["events"] == 0
    expected = {"task.nothing=1": "task.nothing", "data.root=x": "task.admit_missing=true", "task.t_in=0": "t_in"}
    for wrong, message in expected.items():
        assert main([*words, wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img_type": "VIL"}, "none of 4 rows has img_type 'vil' (found: VIL)"),
        ({"pct_missing": ""}, "none of 4 rows has pct_missing 0 (0 have a number there"),
        ({"pct_missing": 0.5}, "none of 4 rows has pct_missing 0 (4 have a number there"),
        ({"id": "R0"}, "none of 4 rows has an id that no other row has"),
    ],
)
def test_a_filter_that_leaves_nothing_is_named(tmp_path: Path, columns: dict, message: str, capsys) -> None:
    root = write_events(tmp_path, create(), columns=columns)
    assert main(["data", "check", "sevir", "--root", str(root)]) == 2
    assert f"no events: {message}" in capsys.readouterr().err
    words = ["evaluate", "task=sevir", "model=persistence", f"data.root={root}", f"results.root={tmp_path}"]
    assert main([*words, f"work={tmp_path / 'w'}"]) == 2
    assert f"N{message[1:]}" in capsys.readouterr().err


def test_an_empty_split_names_the_date_that_empties_it(tmp_path: Path, capsys) -> None:
    root = write_events(tmp_path, create())
    assert main(["data", "check", "sevir", "--root", str(root)]) == 0
    found = capsys.readouterr().out
    assert "split train has no events: none of 4 rows has a time_utc up to 2019-01-01 00:00:00" in found


def test_one_event_under_two_ids_is_a_leak(tmp_path: Path, capsys) -> None:
    columns = {
        "file_index": [0, 1, 0, 3], "time_utc": ["2018-06-01", "2018-07-01", "2019-07-01", "2019-07-02"],
        "file_name": [NAME, NAME, "vil/link.h5", NAME],
    }  # fmt: skip
    root = write_events(
        tmp_path / "t", lambda f, c: (f.__setitem__("vil", c), f.__setitem__("id", IDS)), columns=columns
    )
    with h5py.File(root / "data" / NAME, "r+") as file:
        del file["id"]
    (root / "data/vil/link.h5").symlink_to(root / "data" / NAME)
    (leak,) = bench.load_task("sevir", root).leaks
    assert leak.splits == ("train", "test") and leak.ids == () and leak.stored_alike == ("R0 = R2",)
    assert bench.load_task("sevir", root).dataset("test").identity()["leaks"][0]["stored_alike"] == ["R0 = R2"]
    assert main(["data", "check", "sevir", "--root", str(root)]) == 2
    assert "splits train and test share 1 stored events under two ids: R0 = R2" in capsys.readouterr().err
    words = ["run", "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=4", f"data.root={root}"]
    assert main([*words, f"work={tmp_path / 'w'}", f"results.root={tmp_path / 'r'}", "progress=false"]) == 2
    assert "train and the evaluated test share 1 event: R2" in capsys.readouterr().err

"""The trees of observed radar, made bit by bit from the public archives' files on a local server."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from servers import serving

from bench.cli.main import main
from bench.data.radar_open.fetch import FetchRadarOpen, _verify
from bench.data.radar_open.trees import PARTS, events_of, frame_codes, originals
from bench.errors import DataError
from bench.tasks import load_task


def codes_of(root: Path) -> tuple[np.ndarray, np.ndarray]:
    (path,) = (root / "data").rglob("*.h5")
    with h5py.File(path) as file:
        return file["vil"][:], file["id"][:]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sevir49", "sevir25"])
def test_a_fetched_tree_is_the_recorded_one(
    part: str, observed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["data", "fetch", "radar_open", "--out", str(tmp_path), "--parts", part, "--workers", "1"]
    with serving(observed / "radar_raw") as server:
        assert main([*words, "--mirror", server.url]) == 0
        asked = len(server.requests)
        assert main([*words, "--mirror", server.url]) == 0  # there already
        assert len(server.requests) == asked
    made, theirs = tmp_path / "radar" / part, observed / "radar" / part
    assert (made / "CATALOG.csv").read_bytes() == (theirs / "CATALOG.csv").read_bytes()
    for ours, published in zip(codes_of(made), codes_of(theirs), strict=True):
        np.testing.assert_array_equal(ours, published)
    fields = {"t_in": 13, "t_out": 12, "admit_missing": True}
    identities = [load_task("radar", root, **fields).dataset("all").source.identity() for root in (made, theirs)]
    assert identities[0] == identities[1]
    capsys.readouterr()
    assert main(["data", "check", "radar", "--root", str(made), "task.admit_missing=true"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 3])
def test_mrms_windows_match_the_recorded_trees(number: int, observed: Path) -> None:
    """Four of the 36 files are available, each with a frame of every event."""
    trees = [*PARTS["sevir25_mrms"], *PARTS["radar_conus"]]
    names = [original.path for original in originals() if original.archive == "mrms_20190610"]
    events = {tree.path: events_of(tree.path) for tree in trees}
    every = [event for tree in trees for event in events[tree.path]]
    made = frame_codes(observed / "radar_raw" / names[number], trees[0].source, every)
    stored = np.concatenate([codes_of(observed / tree.path)[0][..., number] for tree in trees])
    np.testing.assert_array_equal(made, stored)


def test_digests_of_events_match_the_recorded_trees(observed: Path) -> None:
    for tree in [tree for trees in PARTS.values() for tree in trees][:3]:
        codes, ids = codes_of(observed / tree.path)
        assert [event.id.encode() for event in events_of(tree.path)] == ids.tolist()
        _verify(events_of(tree.path), codes, [Path("files")])
    codes[1, 5, 5, 5] ^= 1
    with pytest.raises(DataError, match=rf"1 of {len(codes)} events.*\n.*{ids[1].decode()}"):
        _verify(events_of(tree.path), codes, [Path("files/one")])


def test_checksums_match_the_files(observed: Path) -> None:
    there = 0
    for original in originals():
        path = observed / "radar_raw" / original.path
        assert path.is_file() == (original.sha256 is not None)
        if original.sha256 and original.archive.startswith("mrms"):
            assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (
                original.bytes,
                original.sha256,
            )
            there += 1
    assert there == 4
    assert Counter(original.archive for original in originals())["mrms_20190610"] == 36


def test_a_changed_file_is_refused(observed: Path, tmp_path: Path) -> None:
    verb = FetchRadarOpen(out=tmp_path, parts=("fmi_20160928",), workers=2)
    with serving(observed / "radar_raw") as server:
        server.faults.flip, server.faults.only = 100, "201609281545"
        with pytest.raises(DataError, match="not the published ones: expected"):
            verb.model_copy(update={"mirror": server.url}).run(lambda *_: None)
        bad = list(tmp_path.rglob("*.bad"))
        assert [path.name[:12] for path in bad] == ["201609281545"]
        server.faults.flip = None
        lines = verb.model_copy(update={"mirror": server.url}).run(lambda *_: None)
    assert lines[0].startswith("40 original files, verified")


def test_wrong_parts_get_a_suggestion_and_help_lists_the_data_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "fetch", "radar_open", "--out", str(tmp_path), "--parts", "sevir52"]) == 2
    assert "Did you mean 'sevir25'" in capsys.readouterr().err
    assert main(["data", "fetch", "--help"]) == 0
    said = capsys.readouterr().out
    assert "radar_open" in said and "ersst" in said

"""Times of a catalogue: unambiguous ones are read correctly, others are refused with both readings."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli.main import main
from bench.data.sevir.catalogue import read_catalogue, select_events
from bench.data.sevir.times import AmbiguousTimesError, as_iso, parse_times
from bench.errors import DataError

_JUNE_2 = datetime(2019, 6, 2, 3)


def _parsed(*texts: str | None) -> list:
    return [None if pd.isna(time) else time.to_pydatetime() for time in parse_times(pd.Series(texts, dtype=object))]


@pytest.mark.parametrize(
    "text",
    [
        "2019-06-02 03:00:00", "2019-06-02 03:00", "2019-06-02T03:00", "2019-06-02T03:00:00Z",
        "2019-06-02T03:00:00.000", "2019-06-02 05:00+02:00", "2019-06-02T00:00-0300", "2019-06-02 03:00 UTC",
        "2019/06/02 03:00", "2019-6-2 3:00", "20190602T0300", "  2019-06-02  03:00 ",
    ],
)  # fmt: skip
def test_iso_8601_is_read_as_utc(text: str) -> None:
    assert _parsed(text, "2018-01-31") == [_JUNE_2, datetime(2018, 1, 31)]


@pytest.mark.parametrize(
    "text",
    [
        "43618", "43618.125", "1559444400", "1559444400000", "19-06-02 03:00", "02-06-19", "2019", "2019-06", "now",
        "today", "2019-13-02", "2019-02-30", "2019-06-02 25:00", "0019-06-02", "2119-06-02", "2 June 2019", "03:00", "",
        "2019-06-02 03:00 EST", "nan", "2019-06-02x",
    ],
)  # fmt: skip
def test_other_formats_are_not_times(text: str) -> None:
    """Serial numbers of spreadsheets, seconds since 1970, two-digit years, names of months and zones."""
    assert _parsed(text, "2018-01-31") == [None, datetime(2018, 1, 31)]


@pytest.mark.parametrize("separator", ["/", ".", "-"])
def test_an_unambiguous_column_of_dates_is_read(separator: str) -> None:
    day_first, month_first = ("02/06/2019 03:00", "13/06/2019"), ("06/02/2019 3:00:00", "6/13/2019")
    for texts in (day_first, month_first):
        texts = tuple(text.replace("/", separator) for text in texts)
        assert _parsed(*texts) == [_JUNE_2, datetime(2019, 6, 13)]
    same = f"06{separator}06{separator}2019"
    assert _parsed(same) == [datetime(2019, 6, 6)], "both readings are one"
    assert _parsed(same, None, "no time") == [datetime(2019, 6, 6), None, None]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            ("06/06/2019", "02/06/2019 03:00"),
            ["nothing in the column tells", "line 3: '02/06/2019 03:00' is 2 June 2019 or 6 February 2019"],
        ),
        (
            ("13/06/2019", "06/14/2019"),
            ["both orders", "line 2: '13/06/2019' is 13 June 2019", "line 3: '06/14/2019' is 14 June 2019"],
        ),
    ],
)
def test_an_ambiguous_column_is_refused_with_both_readings(texts: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(AmbiguousTimesError) as caught:
        _parsed(*texts)
    assert all(word in str(caught.value) for word in [*words, "ISO 8601"])


def test_mixed_iso_and_other_dates_are_not_guessed() -> None:
    assert _parsed("2019-06-01", "13/06/2019") == [datetime(2019, 6, 1), None]


@given(st.lists(st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1)), min_size=1, max_size=9), st.booleans())
def test_a_column_saved_by_a_spreadsheet_is_read_correctly_or_refused(times: list[datetime], day_first: bool) -> None:
    times = [time.replace(second=0, microsecond=0) for time in times]
    form = "%d/%m/%Y %H:%M" if day_first else "%m/%d/%Y %H:%M"
    try:
        assert _parsed(*(time.strftime(form) for time in times)) == times
    except AmbiguousTimesError:
        assert all(time.day <= 12 for time in times)


def _catalogue(root: Path, *times: str) -> Path:
    rows = [f"e{number},f,{number},vil,{time},0" for number, time in enumerate(times)]
    lines = ["id,file_name,file_index,img_type,time_utc,pct_missing", *rows]
    (root / "CATALOG.csv").write_text("\n".join(lines))
    return root


def test_an_ambiguous_catalogue_gives_one_error_in_every_verb(tmp_path: Path, capsys) -> None:
    root = _catalogue(tmp_path, "02/06/2019", "03/06/2019")
    with pytest.raises(DataError, match=r"CATALOG.csv: time_utc: nothing in the column tells"):
        read_catalogue(root)
    for verb in ("info", "check"):
        assert main(["data", verb, "sevir", "--root", str(root)]) == 2
        assert "2 June 2019 or 6 February 2019" in capsys.readouterr().err
    assert main(["evaluate", "task=sevir", "model=persistence", f"data.root={root}", f"work={tmp_path}"]) == 2
    assert "2 June 2019 or 6 February 2019" in capsys.readouterr().err


def test_an_invalid_time_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: time_utc is not a time; expected ISO 8601.*found '43618'"):
        read_catalogue(_catalogue(tmp_path, "2019-06-02", "43618"))


def test_day_first_dates_keep_their_split(tmp_path: Path) -> None:
    table = read_catalogue(_catalogue(tmp_path, "02/06/2019 03:00", "28/05/2019"))
    assert [event.id for event in select_events(table, start=datetime(2019, 6, 1))] == ["e0"]


def test_a_subset_of_a_column_keeps_its_times() -> None:
    iso = pd.Series(["2019-06-02T03:00Z", "2019-06-13"])
    assert as_iso(iso) is iso
    taken = as_iso(pd.Series(["02/06/2019 03:00", "13/06/2019"]))[:1]
    assert list(taken) == ["2019-06-02 03:00:00"]


def test_folders_with_dates_in_two_styles_are_joined(storms: Path, tmp_path: Path) -> None:
    for name, form in (("a", "%d/%m/%Y %H:%M"), ("b", "%Y-%m-%d %H:%M:%S")):
        command = ["data", "make", "sevir", "--train", "0", "--val", "0", "--test", "100", "--size", "4"]
        assert main([*command, "--frames", "25", "--seed", str(ord(name)), "--out", str(tmp_path / name)]) == 0
        table = pd.read_csv(tmp_path / name / "CATALOG.csv")
        times = pd.to_datetime(table["time_utc"])
        table["time_utc"] = [time.strftime(form) for time in times]
        if name == "b":
            table["id"] = "x" + table["id"]
            import h5py

            with h5py.File(next((tmp_path / name).rglob("*.h5")), "r+") as file:
                del file["id"]
        table.to_csv(tmp_path / name / "CATALOG.csv", index=False)
    joined = ["data", "convert", "sevir", "radar", "--roots", f"{tmp_path / 'a'},{tmp_path / 'b'}"]
    assert main([*joined, "--out", str(tmp_path / "both")]) == 0
    assert sorted(read_catalogue(tmp_path / "both")["time_utc"]) == sorted([*times, *times])

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from official import as_official

from bench import registry
from bench.cli.main import main
from bench.errors import VerificationError
from bench.records.schema import SCHEMA_VERSION, RunRecord
from bench.records.store import write_record
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import table_data
from bench.tables.columns import PARAMETERS
from bench.tables.definitions import load_published
from bench.tables.lines import number as printed_number
from bench.tables.render import COMMITTED, FORMATS, check_renderings, render, write_renderings

SEVIR = load_table("earthformer/sevir")


@pytest.mark.parametrize("name", registry.names("table"))
@pytest.mark.parametrize("form", FORMATS)
def test_every_table_renders_without_records(name: str, form: str) -> None:
    text = render(load_table(name), [], form)
    assert text.endswith("\n") and (load_table(name).published is None or "not run" in text)


@pytest.mark.parametrize(
    ("parameters", "printed"), [(0, "0"), (12, "0.000012"), (14_912, "0.015"), (949_999, "0.95"), (13_100_000, "13.1")]
)
def test_only_models_without_parameters_show_none(parameters: int, printed: str) -> None:
    assert printed_number(parameters * PARAMETERS.scale, PARAMETERS) == printed


def test_a_table_names_what_to_cite(capsys) -> None:
    assert main(["table", "earthformer/sevir", "--format", "bib"]) == 0
    assert re.findall(r"@\w+{(\w+),", capsys.readouterr().out) == ["earthbench", "arxiv220705833"]
    assert main(["table", "runs/radar", "--format", "bib"]) == 0
    assert re.findall(r"@\w+{(\w+),", capsys.readouterr().out) == ["earthbench"]


def test_renderings_do_not_depend_on_the_order_of_records(measured: RunRecord) -> None:
    runs = [as_official(measured, run_id=f"2026-{seed}", seed=seed) for seed in range(4)]
    for form in FORMATS:
        assert render(SEVIR, runs, form) == render(SEVIR, runs[::-1], form)


def test_formats_parse(measured: RunRecord) -> None:
    record = [as_official(measured)]
    lines = list(csv.DictReader(io.StringIO(render(SEVIR, record, "csv"))))
    assert len(lines) == len(SEVIR.rows) * len(SEVIR.columns)
    assert {"published", "ours", "difference", "status", "sources"} <= set(lines[0])
    assert len(json.loads(render(SEVIR, record, "json"))["blocks"][0]["cells"]) == len(lines)
    latex = render(SEVIR, record, "latex")
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    widths = {line.count("&") for line in body.splitlines() if line.endswith(r"\\")}
    assert widths == {len(SEVIR.columns) + 1}
    html = render(SEVIR, record, "html")
    assert html.count("<tr>") == html.count("</tr>") == len(SEVIR.rows) + 2
    assert not HTMLParser().feed(html) and "http" not in html


@pytest.mark.parametrize("form", FORMATS)
def test_markup_in_a_name_is_escaped(measured: RunRecord, form: str) -> None:
    evil = {"x": "<script>alert(1)</script>|\n\\input{y}", "y": "a_b $z$ %"}
    model = measured.model.model_copy(update={"hyperparameters": evil, "is_preset": False})
    named = measured.model_copy(update={"model": model, "run_id": measured.run_id + "-evil"})
    text = render(load_table("runs/sevir"), [measured, named], form)
    label = "persistence (x=<script>alert(1)</script>|\n\\input{y}, y=a_b $z$ %)"
    if form == "json":
        assert label in {cell["row"] for cell in json.loads(text)["blocks"][0]["cells"]}
        return
    if form == "csv":
        assert {line["row"] for line in csv.DictReader(io.StringIO(text))} == {"persistence", label}
        return
    assert "<script>" not in text
    below = [line for line in render(load_table("runs/sevir"), [named], form).splitlines() if "alert(1)" in line]
    assert len(below) == 1 and (below[0].startswith("% ") if form == "latex" else "<script>" not in below[0])
    row = next(line for line in text.splitlines() if "alert(1)" in line)
    if form == "md":
        assert "&lt;script>" in row and row.replace("\\|", "").count("|") == len(load_table("runs/sevir").columns) + 2
    elif form == "latex":
        assert r"\textbackslash{}input\{y\}" in row and r"a\_b \$z\$ \%" in row


def test_a_stale_rendering_fails_the_check(measured: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no rendering"):
        check_renderings(SEVIR, tmp_path)
    write_renderings(SEVIR, tmp_path)
    assert len(check_renderings(SEVIR, tmp_path)) == len(COMMITTED)
    write_record(as_official(measured), tmp_path)
    with pytest.raises(VerificationError, match="stale") as caught:
        check_renderings(SEVIR, tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", [n for n in registry.names("table") if load_table(n).published])
def test_committed_renderings_are_up_to_date(name: str, committed_results: Path) -> None:
    check_renderings(load_table(name), committed_results)


def test_a_changed_record_and_one_of_a_newer_schema_are_named(measured: RunRecord, tmp_path: Path) -> None:
    changed, newer = (
        write_record(as_official(measured, run_id=f"2026-{name}"), tmp_path) for name in ("changed", "newer")
    )
    changed.write_text(changed.read_text().replace('"csi_m": 0.', '"csi_m": 0.9', 1))
    newer.write_text(newer.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99', 1))
    records, unreadable = read_store(tmp_path, "sevir")
    text = render(SEVIR, records, unreadable=unreadable)
    assert not records and {one.run_id for one in unreadable} == {"2026-changed", "2026-newer"}
    assert "2026-changed" in text and "tampered" in text and "2026-newer" in text and "upgrade" in text
    cells = table_data(SEVIR, load_published(SEVIR.published), records, unreadable).blocks[0].cells
    scores = [c for c in cells if c.model == "persistence" and c.column not in ("parameters", "gmacs")]
    assert {c.status for c in scores} == {"tampered"}


def test_500_records_render_in_two_seconds_without_torch(measured: RunRecord, tmp_path: Path) -> None:
    for number in range(500):
        model = measured.model.model_copy(update={"name": f"model_{number % 20:02d}"})
        changes = {"model": model, "seed": number // 20, "run_id": f"2026-{number:04d}"}
        path = tmp_path / "runs/sevir" / model.name / f"2026-{number:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(measured.model_copy(update=changes).sealed().model_dump_json())
    program = (
        "import resource, sys; from bench.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'lightning', 'matplotlib'} & set(sys.modules); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, sorted(heavy), file=sys.stderr)"
    )
    texts = []
    for environment in ({"LC_ALL": "C", "TZ": "Pacific/Kiritimati"}, {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program, "table", "runs/sevir", "--results", str(tmp_path)],
            capture_output=True, env={**os.environ, **environment, "PYTHONIOENCODING": "utf-8"}, check=True,
        )  # fmt: skip
        seconds, heavy = done.stderr.decode().split(maxsplit=1)
        assert heavy.strip() == "[]"
        texts.append((done.stdout, float(seconds)))
    assert texts[0][0] == texts[1][0] and texts[0][0].count(b"model_") == 20
    # Processor time of the whole command, so that other load does not matter; twice the target, for slow machines.
    assert min(seconds for _, seconds in texts) < 4.0

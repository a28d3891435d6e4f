"""A site of realistic records, and Debian's Chromium to open it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from official import PAPER_SETTINGS
from report_picture import CHROMIUM

import bench
from bench.records.samples import write_sample
from bench.records.schema import MetricStatistics, RunRecord, StatisticsPart, TrainingSummary
from bench.records.statistics import compact, content_sha256
from bench.records.store import write_record
from bench.report import build

MODELS = {
    "persistence": 0.26, "unet": 0.34, "convlstm": 0.41, "predrnn": 0.405, "earthformer": 0.43,
    "evil <script>window.hurt=1</script> | name": 0.1,
}  # fmt: skip


def _record(measured: RunRecord, number: int, name: str, csi: float) -> RunRecord:
    """A record as from the complete official test set; the evil one has its name only in a note."""
    assert measured.data is not None
    evil = "<script>" in name
    scores = dict(measured.scores)
    scores |= {
        "csi_m": csi,
        **{
            f"csi_{t}": csi * f
            for t, f in zip((16, 74, 133, 160, 181, 219), (1.7, 1.5, 1, 0.75, 0.6, 0.35), strict=True)
        },
    }
    scores["mse"] = (1 - csi) / 100
    leads = {
        "csi_m": [csi * (1.4 - 0.07 * lead) for lead in range(12)],
        "mse": [(1 - csi) / 100 * (0.4 + 0.1 * lead) for lead in range(12)],
    }
    model = measured.model.model_copy(
        update={
            "name": "unet" if evil else name,
            "parameters": 2_000_000 * (number - 1),
            "gmacs": 60.0 * (number - 1),
            "is_preset": not evil,
            "hyperparameters": {"note": name} if evil else {},
        }
    )
    training = TrainingSummary(
        settings=PAPER_SETTINGS,
        data_fingerprint="f" * 64,
        data_origin="files",
        sequence_count=35_718,
        validation_sequence_count=9_060,
        epochs=100,
        steps=1000,
        resumed_count=0,
        stopped_because="max_epochs",
        monitor="val/csi_m",
        best_score=csi,
        weights="best",
        averaged=False,
        final_loss=0.1,
        wall_s=100.0,
    )
    data = measured.data.model_copy(
        update={"origin": "files", "sequence_count": 12_159, "sequence_count_available": 12_159}
    )
    # eight events that agree on the order, which a mark requires
    counts = {"hits": csi, "misses": 1 - csi, "false_alarms": 0.0, "correct_negatives": 1.0}
    arrays = compact({f"skill.{key}": np.full((8, 1, 1), round(1000 * value)) for key, value in counts.items()})
    options = {"thresholds": [74], "convention": "upstream", "pools": [1]}
    statistics = StatisticsPart(
        kind="event",
        unit_count=8,
        units_sha256="eight",
        metrics={"skill": MetricStatistics(family="skill", options=options)},
        content_sha256=content_sha256(arrays),
    )
    made = measured.model_copy(
        update={
            "statistics": statistics,
            "run_id": f"20260101T00000{number}Z-0123456789-{number:04d}",
            "model": model,
            "data": data,
            "scores": scores,
            "scores_per_lead": {**measured.scores_per_lead, **leads},
            "training": training if number > 1 else None,
            "code": measured.code.model_copy(update={"dirty": False}),
        }
    )
    return made.with_arrays(arrays)


@pytest.fixture(scope="session")
def site(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first page of a report on six models, with forecasts of five."""
    measured = bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")
    root, out = (tmp_path_factory.mktemp(name) for name in ("results", "site"))
    context, target = bench.load_task("sevir", storms).dataset("test")[0]
    frames = [part[..., 0].numpy() * 255 for part in (context, target)]
    noise = np.random.default_rng(0)
    for number, (name, csi) in enumerate(MODELS.items(), start=1):
        record = _record(measured, number, name, csi)
        write_record(record, root)
        if "<" not in name:
            forecast = np.clip(frames[1] + noise.normal(0, 20 * (0.5 - csi), frames[1].shape), 0, 254)
            parts = {"context": frames[0], "target": frames[1], "forecast": forecast}
            write_sample({name: np.stack([part, part[:, ::-1]]) for name, part in parts.items()}, record, root)
    write_record(
        measured.model_copy(update={"run_id": "partial", "scope": "partial", "scope_because": "limit=2"}), root
    )

    def intervals(record: RunRecord, scores: Sequence[str]) -> dict[str, tuple[float, float] | None]:
        found = {}
        for score in scores:
            key, _, lead = score.rpartition("_lead_")
            known = record.scores_per_lead.get(key, [None] * 12)[int(lead) - 1] if lead.isdigit() else None
            value = known if lead.isdigit() else record.scores.get(score)
            found[score] = (value * 0.95, value * 1.05) if value is not None else None
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.tables.intervals.intervals", intervals)
        patch.setattr("bench.report.charts.intervals", intervals)
        return build(root, out)


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first page of the report on the committed results."""
    return build(Path(__file__).parents[2] / "results", tmp_path_factory.mktemp("committed"))


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    missing = None
    if CHROMIUM is None:
        missing = "no chromium on the path (Debian: apt-get install chromium); $EARTHBENCH_CHROMIUM may name one"
    elif importlib.util.find_spec("playwright") is None:
        missing = "playwright is installed by `tox -e browser`"
    if missing:
        (pytest.fail if os.environ.get("EARTHBENCH_REQUIRE_BROWSER") else pytest.skip)(missing)
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()

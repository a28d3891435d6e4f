"""The rules that a committed record keeps, checked from its file alone: none of the code that made it is asked.

Scores are formed again from the record's counts by formulas written here, so that an edited figure is named.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import registry
from bench.config import Config, explain, fingerprint, numbers_only
from bench.errors import EarthbenchError
from bench.records.schema import SCHEMA_VERSION, RunRecord, content_sha256, migrated
from bench.records.statistics import read_arrays
from bench.scores.names import MEMBERS

_STATES = ("hits", "misses", "false_alarms", "correct_negatives")
_THRESHOLDS = (16, 74, 133, 160, 181, 219)
# What float64 sums in another order may differ by.
_RELATIVE = 1e-9
_PER_LEAD_RELATIVE = 1e-6


@dataclass(frozen=True)
class Finding:
    """One broken rule."""

    path: Path
    field: str
    message: str

    def __str__(self) -> str:
        """Returns `path: field: message`."""
        return f"{self.path}: {self.field}: {self.message}"


def verify_records(root: Path) -> tuple[int, list[Finding]]:
    """Returns how many files there are under `ROOT/runs`, and everything that is wrong with them, in order of path."""
    files = sorted(path for path in (root / "runs").rglob("*") if path.is_file())
    findings: list[Finding] = []
    seen: dict[str, Path] = {}
    for path in files:
        if path.suffix == ".npz" and path.with_suffix(".json").is_file():
            continue  # a record's statistics, checked with it
        if path.suffix != ".json":
            findings.append(
                Finding(path, "file", "not of a record; a run that was killed leaves such files: delete it")
            )
            continue
        found = list(verify_file(path))
        findings += found
        if path.stem in seen:
            findings.append(Finding(path, "run_id", f"also the id of {seen[path.stem]}"))
        seen[path.stem] = path
    return sum(path.suffix == ".json" for path in files), findings


def verify_file(path: Path) -> Iterator[Finding]:
    """Yields every rule that a record's file breaks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Finding(path, "file", f"not readable JSON: {error}")
        return
    if not isinstance(content, dict):
        yield Finding(path, "file", f"expected a JSON object, found {type(content).__name__}")
        return
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        yield Finding(
            path, "schema_version", f"{version} is newer than this earthbench reads ({SCHEMA_VERSION}); upgrade"
        )
        return
    broken = [Finding(path, field, "not a finite number") for field in _not_finite(content)]
    if broken:  # such a file has no canonical form, and so no hash to compare
        yield from broken
        return
    try:
        record = RunRecord.model_validate(migrated(content))
    except ValidationError as error:
        for line in explain(error, RunRecord):
            field, _, message = line.partition(": ")
            yield Finding(path, field.partition(" = ")[0], message)
        return
    if record.sha256 != content_sha256(content):
        yield Finding(
            path, "sha256", "the content does not have the hash it carries: it was changed after it was written"
        )
    record = record.with_arrays(path.with_suffix(".npz"))
    rules = (_fingerprints, _statistics, _split, _versions, _values, _counts)
    found = itertools.chain(_identity(record, path), *(rule(record) for rule in rules))
    yield from (Finding(path, field, message) for field, message in found)


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _not_finite(item, f"{where}.{key}" if where else str(key))


def _identity(record: RunRecord, path: Path) -> Iterator[tuple[str, str]]:
    """The file lies where its content says."""
    for field, found, expected in (
        ("run_id", record.run_id, path.stem),
        ("model.name", record.model.name, path.parent.name),
        ("task.name", record.task.name, path.parent.parent.name),
    ):
        if found != expected:
            yield field, f"{found!r}, but the file lies at {expected!r}"


def _statistics(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What scores are resampled from is there, and is what the record names."""
    if record.statistics is None:
        return
    try:
        if read_arrays(record) is None:
            yield "statistics", f"{record.run_id}.npz is not there: no intervals can be given"
    except EarthbenchError as error:
        yield "statistics.content_sha256", str(error)


def _fingerprints(record: RunRecord) -> Iterator[tuple[str, str]]:
    try:
        config = record.config
        named = config if "api" in config else numbers_only(Config.model_validate(config))
    except ValidationError as error:
        yield "config", f"not a config of this earthbench: {explain(error, Config)[0]}"
    else:
        if fingerprint(named) != record.config_fingerprint:
            yield "config_fingerprint", "not that of the config"
    if record.data is not None and fingerprint(record.data.identity) != record.data.fingerprint:
        yield "data.fingerprint", "not that of data.identity"


def _split(record: RunRecord) -> Iterator[tuple[str, str]]:
    """A full run saw everything once; a run was not selected or trained on what it was evaluated on."""
    if record.status == "failed":
        if record.failure is None:
            yield "failure", "a failed run says why"
        if record.scores:
            yield "scores", "a failed run has none"
        return
    data, training = record.data, record.training
    if data is None:
        yield "data", "a run that did not fail was evaluated on something"
        return
    if data.sequence_count > data.sequence_count_available:
        yield "data.sequence_count", f"{data.sequence_count} of {data.sequence_count_available} sequences"
    if record.scope == "partial" and not record.scope_because:
        yield "scope_because", "a partial run says why"
    if record.scope == "full":
        if data.sequence_count != data.sequence_count_available:
            yield (
                "scope",
                f"'full', but {data.sequence_count} of {data.sequence_count_available} sequences were evaluated",
            )
        if training is not None and training.settings.get("limit") is not None:
            yield "scope", f"'full', but trained with train.limit={training.settings['limit']}"
    if training is not None:
        if record.scope == "full" and training.data_fingerprint == data.fingerprint:
            yield "training.data_fingerprint", "trained on the very data that it was evaluated on"
        if record.checkpoint_sha256 is None:
            yield "checkpoint_sha256", "a trained run names its weights"
        if (training.monitor or "").startswith("test"):
            yield "training.monitor", f"{training.monitor!r}: the weights were selected on the test split"


def _versions(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The metrics and the task are those that are registered now, as far as they are installed."""
    known = registry.names("metric")
    for name in record.conventions:
        if name.removesuffix(MEMBERS) not in known:
            yield f"conventions.{name}", "no registered metric; install its distribution, or leave the record out"
    if record.task.name not in registry.names("task"):
        yield "task.name", f"no registered task {record.task.name!r}; install its distribution, or leave the record out"
        return
    try:
        current = registry.find("task", record.task.name).load().version
    except EarthbenchError as error:
        yield "task.name", str(error)
        return
    if record.task.version != current:
        yield "task.version", f"{record.task.version}, registered is {current}: scores may have moved, run it again"


def _values(record: RunRecord) -> Iterator[tuple[str, str]]:
    for name, value in record.scores.items():
        if value is None and name not in record.undefined:
            yield f"scores.{name}", "null without a reason in `undefined`"
        if value is not None and name in record.undefined:
            yield f"scores.{name}", f"{value!r}, but `undefined` says: {record.undefined[name]}"
    lengths = {name: len(values) for name, values in record.scores_per_lead.items()}
    for name in ("mse", "mae"):  # every lead has as many pixels, so the mean over leads is the mean
        values, overall = record.scores_per_lead.get(name, []), record.scores.get(name)
        if not values or overall is None or any(value is None for value in values):
            continue
        mean = math.fsum(value for value in values if value is not None) / len(values)
        if not _has_missing(record) and not math.isclose(mean, overall, rel_tol=_PER_LEAD_RELATIVE, abs_tol=1e-300):
            yield f"scores.{name}", f"{overall!r}, but its lead times average {mean!r}"
    leads = lengths.get("mse")
    if leads is not None and record.counts is not None:
        for state, rows in record.counts.items():
            if len(rows) != leads:
                yield f"counts.{state}", f"{len(rows)} lead times, other scores have {leads}"


def _has_missing(record: RunRecord) -> bool:
    """Returns whether leads may have unequal numbers of pixels."""
    return bool(record.task.fields.get("mask_missing")) or any(
        options.get("convention") == "correct" for options in record.conventions.values()
    )


def _counts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Counts are whole and agree with one another and with the scores formed from them."""
    counts = record.counts
    if counts is None:
        return
    if set(counts) != set(_STATES):
        yield "counts", f"expected {', '.join(_STATES)}, found {', '.join(sorted(counts))}"
        return
    options = record.conventions.get("skill", {})
    thresholds = options.get("thresholds", _THRESHOLDS)
    pools = options.get("pools", (1,))
    columns = len(thresholds) * len(pools)
    for state in _STATES:
        if {len(row) for row in counts[state]} != {columns} or len(counts[state]) != len(counts["hits"]):
            yield f"counts.{state}", f"expected {len(counts['hits'])} lead times of {columns} thresholds and pools"
            return
        if any(value < 0 for row in counts[state] for value in row):
            yield f"counts.{state}", "a count is negative"
    for index, pool in enumerate(pools):
        own = slice(index * len(thresholds), (index + 1) * len(thresholds))
        of_pool = {state: [row[own] for row in counts[state]] for state in _STATES}
        for lead, rows in enumerate(zip(*of_pool.values(), strict=True), start=1):
            if len({sum(column) for column in zip(*rows, strict=True)}) > 1:
                yield "counts", f"lead {lead}: the thresholds have different numbers of pixels"
        ending = "" if pool == 1 else f"_pool{pool}"
        yield from _csi(record, of_pool, thresholds, str(options.get("convention", "upstream")), ending)


def _csi(
    record: RunRecord,
    counts: Mapping[str, list[list[int]]],
    thresholds: Sequence[float],
    convention: str,
    ending: str,
) -> Iterator[tuple[str, str]]:
    eps = 1e-4 if convention == "upstream" else 0.0
    by_lead: dict[str, list[float]] = {}
    pooled: dict[str, float] = {}
    for k, threshold in enumerate(thresholds):
        name = f"csi_{threshold:g}{ending}"
        hits, misses, alarms = ([row[k] for row in counts[state]] for state in _STATES[:3])
        pooled[name] = _ratio(sum(hits), sum(hits) + sum(misses) + sum(alarms) + eps)
        by_lead[name] = [_ratio(h, h + m + f + eps) for h, m, f in zip(hits, misses, alarms, strict=True)]
    defined = [value for value in pooled.values() if not math.isnan(value)]
    pooled[f"csi_m{ending}"] = math.fsum(defined) / len(defined) if defined else math.nan
    for name, value in pooled.items():
        if name in record.scores and not _equal(record.scores[name], value):
            yield f"scores.{name}", f"{record.scores[name]!r}, but the record's counts give {value!r}"
    for name, values in by_lead.items():
        found = record.scores_per_lead.get(name, [])
        for lead, (score, value) in enumerate(zip(found, values, strict=False), start=1):
            if not _equal(score, value):
                yield f"scores_per_lead.{name}", f"lead {lead}: {score!r}, but its counts give {value!r}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _equal(found: float | None, expected: float) -> bool:
    if found is None:
        return math.isnan(expected)
    return math.isclose(found, expected, rel_tol=_RELATIVE, abs_tol=1e-15)

"""The rules of a valid record, each a function that yields its violations.

Scores are recomputed from the sums and counts in the record; neither the model nor the data are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import ValidationError

from bench.config import Config, explain, fingerprint, numbers_only
from bench.metrics.skill.formulas import COUNTS, VIL_THRESHOLDS, skill_scores
from bench.records.rescoring import allowed, pixel_counts, scores_of, sequence_counts, undetermined
from bench.records.schema import RunRecord
from bench.records.statistics import Arrays

Broken = Iterator[tuple[str, str]]
"""Fields with their problems."""
Rule = Callable[[RunRecord], Broken]


def fingerprints(record: RunRecord) -> Broken:
    """Fingerprints are those of what they stand for."""
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


def outcome(record: RunRecord) -> Broken:
    """A run that failed says why and has no scores; another was evaluated on something."""
    if record.status == "failed":
        if record.failure is None:
            yield "failure", "a failed run says why"
        if record.scores or record.scores_per_lead:
            yield "scores", "a failed run has none"
    elif record.data is None:
        yield "data", "a run that did not fail was evaluated on something"


def scope(record: RunRecord) -> Broken:
    """A full run saw everything once."""
    data, training = record.data, record.training
    if record.status == "failed" or data is None:
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


def separate_training(record: RunRecord) -> Broken:
    """A run was not trained or selected on the data that it was evaluated on."""
    data, training = record.data, record.training
    if record.status == "failed" or data is None or training is None:
        return
    if record.scope == "full" and training.data_fingerprint == data.fingerprint:
        yield "training.data_fingerprint", "trained on the very data that it was evaluated on"
    if record.checkpoint_sha256 is None:
        yield "checkpoint_sha256", "a trained run names its weights"
    if (training.monitor or "").startswith("test"):
        yield "training.monitor", f"{training.monitor!r}: the weights were selected on the test split"


def same_code(record: RunRecord) -> Broken:
    """Weights were evaluated with the source that trained them: the model's, and that of a plugin's task.

    The harness may differ, because it changes with every release, and so may metrics, because they do not affect
    forecasts.  Partial records are exempt.
    """
    if record.scope == "partial":
        return
    identity = record.training.identity if record.training is not None else None
    for name, source in identity.sources.items() if identity is not None else ():
        used = record.code.sources.get(name)
        if used is not None and name in ("model", "task") and used.sha256 != source.sha256:
            where = f"code.sources.{name}"
            yield where, f"{used.module} is not the source that trained the weights ({source.origin}): evaluate with it"


def undefined(record: RunRecord) -> Broken:
    """A score is a number, or has a reason why it is undefined."""
    for name, value in record.scores.items():
        if value is None and name not in record.undefined:
            yield f"scores.{name}", "null without a reason in `undefined`"
        if value is not None and name in record.undefined:
            yield f"scores.{name}", f"{value!r}, but `undefined` says: {record.undefined[name]}"


def counts(record: RunRecord) -> Broken:
    """Counts are whole, agree with one another, and give the scores of the categorical metric."""
    found = record.counts
    if found is None:
        return
    if set(found) != set(COUNTS):
        yield "counts", f"expected {', '.join(COUNTS)}, found {', '.join(sorted(found))}"
        return
    options = record.conventions.get("skill", {})
    thresholds = options.get("thresholds", VIL_THRESHOLDS)
    leads = len(found["hits"])
    for state in COUNTS:
        if {len(row) for row in found[state]} - {len(thresholds)} or len(found[state]) != leads:
            yield f"counts.{state}", f"expected {leads} lead times of {len(thresholds)} thresholds"
            return
        if any(value < 0 for row in found[state] for value in row):
            yield f"counts.{state}", "a count is negative"
    table = np.array([found[state] for state in COUNTS], np.float64)
    for lead in np.flatnonzero(np.ptp(table.sum(0), axis=-1) if table.size else ()):
        yield "counts", f"lead {lead + 1}: the thresholds have different numbers of pixels"
    others = len(record.scores_per_lead.get("mse", ()))
    if others and others != leads:
        yield "counts", f"{leads} lead times, other scores have {others}"
    if record.statistics is None:  # else `statistics` checks the counts and the scores
        again = skill_scores(found, thresholds, options.get("convention", "upstream"))
        yield from _scores(record, again, "the record's counts")


RULES: tuple[Rule, ...] = (fingerprints, outcome, scope, separate_training, same_code, undefined, counts)
"""Rules about a single record.  A further rule is a function above and its name here."""


def statistics(record: RunRecord, arrays: Arrays) -> Broken:
    """Yields what disagrees with the sums per event: options, sequences, counts, and every score they determine."""
    part = record.statistics
    assert part is not None
    again: dict[str, float] = {}
    slack: dict[str, float] = {}
    for name, metric in part.metrics.items():
        where = f"statistics.metrics.{name}"
        given = record.conventions.get(name)
        if given is None:
            yield where, "no such metric in `conventions`"
            continue
        for key, value in metric.options.items():
            if key in given and given[key] != value:
                yield f"{where}.options.{key}", f"{value!r}, but `conventions` says {given[key]!r}"
        try:
            scores, sums = scores_of(part, name, arrays)
            slack |= allowed(metric, sums)
            sequences, of_metric = dict(sequence_counts(metric, sums)), pixel_counts(metric, sums)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            yield where, f"gives no scores: {type(error).__name__}: {error}"
            return
        again |= scores
        for key, number in sequences.items():
            if record.data is not None and number != record.data.sequence_count:
                yield "data.sequence_count", f"{record.data.sequence_count}, but {name}.{key} is of {number:g}"
        if of_metric is not None and record.counts is not None and of_metric != record.counts:
            yield "counts", f"not the sums of the statistics {name}"
    yield from _scores(record, again, "its statistics", slack)
    yield from _others(record, again)


def _scores(record: RunRecord, again: dict[str, float], source: str, slack: dict[str, float] | None = None) -> Broken:
    """Compares the scores of a record with recomputed ones; scores that were not recomputed are skipped."""
    slack = slack or {}
    for name, value in record.scores.items():
        if name in again and not _equal(value, again[name], slack.get(name, 0.0)):
            yield f"scores.{name}", f"{value!r}, but {source} give {_shown(again[name])}"
    for name, values in record.scores_per_lead.items():
        for lead, value in enumerate(values, start=1):
            of_lead = f"{name}_lead_{lead}"
            if of_lead in again and not _equal(value, again[of_lead], slack.get(of_lead, 0.0)):
                yield f"scores_per_lead.{name}", f"lead {lead}: {value!r}, but {source} give {_shown(again[of_lead])}"


def _others(record: RunRecord, again: dict[str, float]) -> Broken:
    """Yields the scores that no metric gives, and wrong counts of undefined leads."""
    assert record.statistics is not None
    all_kept = record.conventions.keys() <= record.statistics.metrics.keys()
    known = undetermined(record.statistics)
    for name, value in record.scores.items():
        base = name.removesuffix("_undefined_count")
        if name not in again and base != name and base in record.scores_per_lead:
            missing = sum(one is None for one in record.scores_per_lead[base])
            if value != missing:
                yield f"scores.{name}", f"{value!r}, but {missing} of its lead times are undefined"
        elif name not in again and all_kept and name not in known:
            yield f"scores.{name}", "no metric of this record gives such a score"
    for name, values in record.scores_per_lead.items():
        if f"{name}_lead_1" not in again:
            if all_kept:
                yield f"scores_per_lead.{name}", "no metric of this record gives such a score"
        elif f"{name}_lead_{len(values)}" not in again or f"{name}_lead_{len(values) + 1}" in again:
            yield f"scores_per_lead.{name}", f"{len(values)} lead times, its statistics have others"


def _equal(found: float | None, expected: float, slack: float) -> bool:
    if math.isnan(slack):  # the sums do not determine it
        return True
    if found is None:
        return not math.isfinite(expected)
    return math.isclose(found, expected, rel_tol=1e-9, abs_tol=slack + 1e-12)


def _shown(value: float) -> Any:
    return value if math.isfinite(value) else "none"

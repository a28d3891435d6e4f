"""The schema of a record.  A new field or meaning raises `SCHEMA_VERSION` and adds a migration."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from bench.config import Config, canonical_json, fingerprint, numbers_of, numbers_only
from bench.metrics.names import PER_LEAD

SCHEMA_VERSION = 4


class Part(BaseModel):
    """A part of a record: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskPart(Part):
    """The task, its version and its options."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: int
    fields: dict[str, Any]
    is_default: bool
    """Whether every option has the task's default: a table's rows require it."""


class ModelPart(Part):
    """The model, its hyperparameters and its cost."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    origin: str
    hyperparameters: dict[str, Any]
    is_preset: bool
    """Whether the hyperparameters are the model's preset for the task: a table's rows require it."""
    parameters: int
    gmacs: float | None
    gmacs_missing_because: str | None = None


class DataPart(Part):
    """The data of the evaluation."""

    origin: str
    fingerprint: str
    identity: dict[str, Any]
    cadence_minutes: float
    split: Literal["train", "val", "test", "all"]
    sequence_count: int
    """Sequences evaluated."""
    sequence_count_available: int
    """Sequences of the split."""

    @property
    def described(self) -> str:
        """The origin as tables and pages print it."""
        return self.origin.replace("every 1 frames", "every frame")  # as trees of older code call it


class SourcePart(Part):
    """The source of a model, a plugin or the harness."""

    module: str
    origin: str
    """Where its name was registered, or its distribution."""
    version: str | None
    commit: str | None
    """Commit of the checkout it lies in."""
    dirty: bool | None
    """Whether it has changed since that commit."""
    sha256: str
    """Digest of the files."""


class SplitPart(Part):
    """A split that a training saw."""

    fingerprint: str
    event_count: int
    sequence_count: int
    incomplete: str | None = None
    """Why this was not the whole split."""


class TrainingIdentity(Part):
    """Everything that trained weights depend on: trainings with equal identities are the same training."""

    model: str
    stage: str | None = None
    """Name of the stage, for a model that is trained in stages."""
    hyperparameters: dict[str, Any]
    """All that weights depend on, defaults included."""
    task: str
    task_version: int
    task_fields: dict[str, Any]
    settings: dict[str, Any]
    """Other settings of the config that can change the weights."""
    seed: int
    train: SplitPart
    val: SplitPart | None
    before: tuple[str, ...] = ()
    """Identities of earlier stages, or digests of given weights."""
    sources: dict[str, SourcePart]
    """`model`, `harness`, and `task` and `metric NAME` if they are plugins."""
    libraries: dict[str, str]

    @property
    def name(self) -> str:
        """Returns the SHA-256 of the identity without the harness and the libraries.

        These change with every release, and weights of another release still belong to the same training; differences
        are reported.
        """
        content = self.model_dump(mode="json", exclude={"sources", "libraries"})
        sources = {key: source.sha256 for key, source in self.sources.items() if key != "harness"}
        return fingerprint({**content, "sources": sources})


class TrainingSummary(Part):
    """The summary of a training."""

    settings: dict[str, Any]
    """The config's `train` section."""
    data_fingerprint: str
    data_origin: str
    sequence_count: int
    validation_sequence_count: int
    epochs: int
    steps: int
    resumed_count: int
    stopped_because: str
    monitor: str | None
    best_score: float | None
    weights: Literal["best", "last"]
    averaged: bool
    final_loss: float | None
    wall_s: float
    identity: TrainingIdentity | None = None
    """None in records of schemas 1 and 2, which did not have it."""
    checkpoints: dict[str, str] = {}
    """The seal of each checkpoint of the training, by its stem: `best`, `last`."""
    micro_batch: int | None = None
    """Sequences that one device took at a time; None without a step, and for a model trained in stages."""
    cpu_s: float | None = None
    """CPU seconds of the training steps, over all threads and processes except those of the loaders; None if older
    code trained."""
    device_s: float | None = None
    """Seconds that the training steps took on a GPU; None without one."""
    validation_s: float | None = None
    """Wall time of the validations in seconds; None if older code trained, and for a fit."""
    budget_steps: int | None = None
    """Optimiser steps that a compute budget was converted to; None without one, and for a model trained in stages."""


class CodePart(Part):
    """The code that evaluated."""

    version: str
    commit: str | None
    dirty: bool | None
    diff_sha256: str | None
    sources: dict[str, SourcePart] = {}
    """As in `TrainingIdentity`; empty in records of schemas 1 and 2, which did not have them."""


class TimePart(Part):
    """Wall time of the phases."""

    evaluation_s: float
    training_s: float | None = None


class FailurePart(Part):
    """Why a run has no scores."""

    phase: str
    message: str


class MembersPart(Part):
    """The ensemble that was scored."""

    count: int
    seed: int
    """Seeds each sequence's members, together with its index."""


class MetricStatistics(Part):
    """How the statistics of a metric become scores: `bench.metrics.families.FAMILIES[family](arrays, options)`."""

    family: str
    options: dict[str, Any]
    ending: str = ""
    """Suffix of the names of its scores, before `_lead_L`."""


class StatisticsPart(Part):
    """Sums per event, from which scores are resampled, in the file `RUN_ID.npz` beside the record."""

    kind: Literal["event", "block"]
    """Whether a unit is an event, or a block of consecutive windows of one long record."""
    unit_count: int
    units_sha256: str
    """Digest of the units' names in order: runs with equal digests can be paired."""
    metrics: dict[str, MetricStatistics]
    content_sha256: str
    """Digest of the arrays, see `bench.records.statistics`."""


class RunRecord(Part):
    """One run: model, data, scores, time and hardware.  Written once, never changed."""

    schema_version: Literal[4] = 4
    run_id: str = Field(pattern=r"^[0-9A-Za-z-]+$")
    created_utc: str
    status: Literal["ok", "failed"]
    scope: Literal["full", "partial"]
    scope_because: str | None = None
    task: TaskPart
    model: ModelPart
    data: DataPart | None
    training: TrainingSummary | None
    checkpoint_sha256: str | None = None
    seed: int
    config: dict[str, Any]
    config_fingerprint: str
    code: CodePart
    versions: dict[str, str]
    hardware: dict[str, Any]
    micro_batch: int | None = None
    """Sequences that one device took at a time in the evaluation."""
    environment: tuple[str, ...] | None = None
    """Packages in other versions than those of `constraints.txt`; None if that file was missing."""
    time: TimePart
    conventions: dict[str, dict[str, Any]]
    """Each metric of the task and the options it was computed with."""
    scores: dict[str, float | None]
    """Overall scores; None where undefined, see `undefined`."""
    scores_per_lead: dict[str, list[float | None]]
    """The same scores per lead time, first lead first."""
    undefined: dict[str, str]
    """Why a score is None."""
    counts: dict[str, list[list[int]]] | None = None
    """Hits, misses, false alarms, correct negatives `[lead][threshold]`, if the task has thresholds."""
    curves: dict[str, dict[str, list[float | None]]] = {}
    """Reliability curves and rank histograms of ensembles: columns of equal length by name."""
    members: MembersPart | None = None
    """None for a run without an ensemble."""
    statistics: StatisticsPart | None = None
    """None if no metric keeps any."""
    degraded: dict[str, int] = {}
    """Number of sequences for which the model fell back on a simpler forecast, by reason."""
    failure: FailurePart | None = None
    sha256: str | None = None
    """SHA-256 of the canonical JSON of all other fields."""

    # The statistics or their path; they are too large for a file that every listing reads.
    _arrays: Mapping[str, np.ndarray] | Path | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        """Returns whether two records have equal content, wherever their statistics are stored."""
        return isinstance(other, RunRecord) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @property
    def arrays(self) -> Mapping[str, np.ndarray] | Path | None:
        """Returns the statistics by `METRIC.STATISTIC` if the record is not written yet, else their file's path."""
        return self._arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray] | Path | None) -> RunRecord:
        """Returns the record with its statistics attached."""
        copy = self.model_copy()
        copy._arrays = arrays
        return copy

    def sealed(self) -> RunRecord:
        """Returns the record with its own hash."""
        return self.model_copy(update={"sha256": self.content_sha256()})

    def content_sha256(self) -> str:
        """Returns the SHA-256 of the canonical JSON of all fields except the hash."""
        return content_sha256(self.model_dump(mode="json"))


def split_scores(
    flat: dict[str, float],
) -> tuple[dict[str, float | None], dict[str, list[float | None]], dict[str, str]]:
    """Returns overall scores, scores per lead time and the reasons for undefined ones, from a metric's flat dict."""
    overall: dict[str, float | None] = {}
    leads: dict[str, dict[int, float | None]] = {}
    undefined: dict[str, str] = {}
    for name, value in flat.items():
        known = math.isfinite(value)
        if not known:
            undefined[name] = "infinite" if math.isinf(value) else "not defined: zero divided by zero, or not a number"
        match = PER_LEAD.match(name)
        if match:
            leads.setdefault(match["score"], {})[int(match["lead"])] = value if known else None
        else:
            overall[name] = value if known else None
    per_lead = {score: [by_lead[lead] for lead in sorted(by_lead)] for score, by_lead in leads.items()}
    return overall, per_lead, undefined


def migrated(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a record's content, read from JSON, migrated from an older schema to the current one.

    Version 1 had neither ensembles nor statistics, version 2 no identity of the training and no source digests; in
    both, the batch of a step was `data.batch_size` times `train.accumulate`.  A valid fingerprint of the old config is
    replaced by that of the new one.  Version 3 did not count degraded forecasts, because no model had any.
    """
    version = content.get("schema_version")
    if version == 1:
        content = {**content, "curves": {}, "members": None, "statistics": None}
    if version not in (1, 2, 3):
        return content
    content = copy.deepcopy(content) | {"schema_version": SCHEMA_VERSION, "degraded": {}}
    if version == 3:
        return content
    with suppress(AttributeError, KeyError, TypeError, ValidationError):  # its reader reports the error
        _with_totals(content)
    return content


def _with_totals(content: dict[str, Any]) -> None:
    """Rewrites the config of schemas 1 and 2 in place."""
    config, trainings = content["config"], []
    if (summary := content.get("training")) is not None:
        trainings.append(summary["settings"])
    if "api" not in config:
        right = fingerprint(numbers_of(config)) == content["config_fingerprint"]
        micro_batch = config["data"]["batch_size"]
        config["data"]["batch_size"] *= config["train"].get("accumulate", 1)
        config["data"]["micro_batch"] = micro_batch
        trainings.append(config["train"])
        for train in trainings:
            for stage in train.get("stages", {}).values():
                if "accumulate" in stage:
                    stage["batch_size"] = micro_batch * stage.pop("accumulate")
    for train in trainings:
        train.pop("accumulate", None)
        train["matmul_precision"] = "highest"  # PyTorch's default, the only choice then
    if "api" not in config and right:
        content["config_fingerprint"] = fingerprint(numbers_only(Config.model_validate(config)))


def content_sha256(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the canonical JSON of a record's content without the hash."""
    kept = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()

"""What a record holds.  A new field or meaning raises `SCHEMA_VERSION` and adds a migration."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.config import canonical_json

SCHEMA_VERSION = 1
_PER_LEAD = re.compile(r"^(?P<score>.+)_lead_(?P<lead>\d+)$")


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
    """The model, what it was made from and what it costs."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    origin: str
    hyperparameters: dict[str, Any]
    is_preset: bool
    """Whether the hyperparameters are the model's preset for the task: a table's rows require it."""
    parameters: int
    gmacs: float | None
    gmacs_missing_because: str | None = None


class DataPart(Part):
    """The data that was evaluated on."""

    origin: str
    fingerprint: str
    identity: dict[str, Any]
    cadence_minutes: float
    split: Literal["train", "val", "test", "all"]
    sequence_count: int
    """Sequences evaluated."""
    sequence_count_available: int
    """Sequences of the split."""


class TrainingSummary(Part):
    """How the weights came about."""

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


class CodePart(Part):
    """The code that ran."""

    version: str
    commit: str | None
    dirty: bool | None
    diff_sha256: str | None


class TimePart(Part):
    """Wall time of the phases."""

    evaluation_s: float
    training_s: float | None = None


class FailurePart(Part):
    """Why a run has no scores."""

    phase: str
    message: str


class RunRecord(Part):
    """One run: what ran, on what, what it scored, how long it took.  Written once, never changed."""

    schema_version: Literal[1] = 1
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
    """Hits, misses, false alarms, correct negatives `[lead][threshold]`, where the task has thresholds."""
    failure: FailurePart | None = None
    sha256: str | None = None
    """SHA-256 of the canonical JSON of all other fields."""

    def sealed(self) -> RunRecord:
        """Returns the record with its own hash."""
        return self.model_copy(update={"sha256": self.content_sha256()})

    def content_sha256(self) -> str:
        """Returns the SHA-256 of the canonical JSON of everything but the hash."""
        content = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


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
        match = _PER_LEAD.match(name)
        if match:
            leads.setdefault(match["score"], {})[int(match["lead"])] = value if known else None
        else:
            overall[name] = value if known else None
    per_lead = {score: [by_lead[lead] for lead in sorted(by_lead)] for score, by_lead in leads.items()}
    return overall, per_lead, undefined

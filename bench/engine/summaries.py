"""The summary of a training beside its checkpoints; a run that finds it has nothing left to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bench.checkpoint_format import SHARED, seal_of, shared_config
from bench.config import Train
from bench.errors import DataError
from bench.files import replacing
from bench.models import trained
from bench.paths import AnyPath
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.safe_text import content_without_secrets
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "training.json"


def settings_and_data(task: Task, train: Train, identity: TrainingIdentity) -> dict[str, Any]:
    """Returns the fields of a summary on its settings and its training data."""
    return {
        "identity": identity,
        "settings": content_without_secrets(train.model_dump(mode="json")),
        "data_fingerprint": task.data_fingerprint("train"),
        "data_origin": str(task.dataset("train").identity().get("origin", "files")),
    }


def read_summary(path: AnyPath) -> TrainingSummary | None:
    """Returns the summary of a training from its file, or None if there is none.

    Raises:
        DataError: it is not readable.
    """
    if not path.is_file():
        return None
    try:
        return TrainingSummary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a readable training summary: delete it to train again ({error})") from error


def summary_beside(checkpoint: AnyPath, model: nn.Module) -> TrainingSummary | None:
    """Returns the summary of the training of a run's checkpoint; None for a file from elsewhere.

    Args:
        checkpoint: The file, where the run wrote it.
        model: The model that has loaded it.
    """
    stem, weights = checkpoint.stem, trained(model)
    if weights is not None and weights.path is not None and weights.path.name == SHARED:
        return _shared_summary(weights.path, weights.identity)
    path = checkpoint.parent / SUMMARY
    summary = read_summary(path) if stem in ("best", "last") else None
    if summary is None or weights is None or weights.identity is None:
        return None
    if summary.identity != weights.identity or summary.checkpoints.get(stem) != seal_of(checkpoint):
        return None  # the summary is of another training in this folder, later or earlier
    return summary.model_copy(update={"weights": stem})


def _shared_summary(path: Path, identity: TrainingIdentity | None) -> TrainingSummary | None:
    """Returns the training summary in the `config.json` beside shared weights, whose checksum was verified."""
    said = shared_config(path).get("training")
    if said is None or identity is None:
        return None
    try:
        summary = TrainingSummary.model_validate(said)
    except ValidationError as error:
        raise DataError(f"{path.parent} has no readable description of how its weights were trained") from error
    return summary if summary.identity == identity else None


def write_summary(summary: TrainingSummary, path: AnyPath) -> None:
    """Writes the summary of a training, whole or not at all."""
    text = summary.model_dump_json(indent=1) + "\n"
    if isinstance(path, Path):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    else:
        path.fs.pipe_file(path.path, text.encode())  # object stores publish an object whole

"""Which record makes a run unnecessary: one of the same config, data and code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.config import Config, fingerprint, numbers_only
from bench.records.identity import source_differences
from bench.records.schema import RunRecord, SourcePart


@dataclass(frozen=True)
class ExpectedRun:
    """What a run would be, besides its config."""

    task_version: int
    tested_on: str
    """Fingerprint of the data to evaluate on."""
    trained_on: str | None
    """Fingerprint of the training data; None where there is nothing to train."""
    selected_on: str | None
    """Fingerprint of the validation data; None where there are none."""
    sources: Mapping[str, SourcePart]
    """The code that would run."""


def newest_of_same_run(records: Iterable[RunRecord], config: Config, expected: ExpectedRun) -> RunRecord | None:
    """Returns the newest record of a run that would come out the same, or None.

    The config's fingerprint leaves out where data lies and knows no code, so both are compared.  The harness and the
    libraries need not be those of the record where `train.resume=anyway` says so.

    Args:
        records: Oldest first, as `read_records` gives them.
        config: The config of the run.
        expected: What it would be.
    """
    wanted = fingerprint(numbers_only(config))
    anyway = config.train.resume == "anyway"
    sources = {key: source for key, source in expected.sources.items() if key != "harness" or not anyway}
    same = [
        record
        for record in records
        if record.status == "ok"
        and record.config_fingerprint == wanted
        and record.task.version == expected.task_version
        and record.data is not None
        and record.data.fingerprint == expected.tested_on
        and not source_differences(record.code.sources, sources)
        and _same_training(record, config, expected, sources)
    ]
    return same[-1] if same else None


def _same_training(record: RunRecord, config: Config, expected: ExpectedRun, sources: Mapping[str, SourcePart]) -> bool:
    if record.training is None:
        return True
    trained = record.training.identity
    return (
        trained is not None
        and trained.train.fingerprint == expected.trained_on
        and (trained.val.fingerprint if trained.val else None) == expected.selected_on
        and not source_differences(trained.sources, sources)
        # Said of models with batch statistics only.
        and trained.settings["data"].get("micro_batch") in (None, config.micro_batch_limit)
    )

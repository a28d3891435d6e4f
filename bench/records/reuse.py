"""Which record makes a run unnecessary: one of the same config on the same data."""

from __future__ import annotations

from collections.abc import Iterable

from bench.config import Config, fingerprint, numbers_only
from bench.records.schema import RunRecord


def newest_of_same_run(
    records: Iterable[RunRecord], config: Config, *, task_version: int, tested_on: str, trained_on: str | None
) -> RunRecord | None:
    """Returns the newest record of a run that would come out the same, or None.

    The config's fingerprint leaves out where data lies, so the data itself is compared.

    Args:
        records: Oldest first, as `read_records` gives them.
        config: The config of the run.
        task_version: The registered version of its task.
        tested_on: Fingerprint of the data to evaluate on.
        trained_on: Fingerprint of the training data; a record of a model that was not trained has none to compare.
    """
    wanted = fingerprint(numbers_only(config))
    same = [
        record
        for record in records
        if record.status == "ok"
        and record.config_fingerprint == wanted
        and record.task.version == task_version
        and record.data is not None
        and record.data.fingerprint == tested_on
        and (record.training is None or record.training.data_fingerprint == trained_on)
    ]
    return same[-1] if same else None

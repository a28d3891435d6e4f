"""Captions of the runs behind a table's rows: budget, seeds, data, device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.records.schema import RunRecord, TrainingSummary
from bench.tables.admission import of_a_plugin, training_seed

Rows = Sequence[tuple[str, Sequence[RunRecord]]]
"""Label of each row, and its records, one per seed."""


def captions(rows: Rows) -> list[str]:
    """Returns lines on the training and the devices of rows; facts common to all trained rows are given once.

    Args:
        rows: The rows that have records.
    """
    trained = [(label, [r for r in records if r.training is not None]) for label, records in rows]
    facts = {
        label: {name: _distinct_texts(tell, mine) for name, tell in _FACTS.items()} for label, mine in trained if mine
    }
    shared = {}
    if len(facts) > 1:
        shared = {name: text for name in _FACTS if (text := _same([told[name] for told in facts.values()]))}
    lines = [f"trained rows: {'; '.join(shared.values())}"] if shared else []
    for label, told in facts.items():
        own = [text for name, text in told.items() if text and name not in shared]
        if own:
            lines.append(f"{label}: {'; '.join(own)}")
    devices = sorted({_device(record) for _, records in rows for record in records})
    return [*lines, f"ran on {', '.join(devices)}"] if devices else lines


def code_remark(records: Sequence[RunRecord]) -> str:
    """Returns a line if seeds of a plugin's model ran different code, which its version does not show; else empty."""
    seeds: dict[str, list[str]] = {}
    for record in records:
        if of_a_plugin(record) and (source := record.code.sources.get("model")) is not None:
            seeds.setdefault(source.sha256[:10], []).append(str(training_seed(record)))
    told = "; ".join(f"seed {', '.join(mine)}: source {digest}" for digest, mine in seeds.items())
    return f"the model's code changed between these runs; run them again ({told})" if len(seeds) > 1 else ""


def _distinct_texts(tell: Callable[[RunRecord, TrainingSummary], str], records: Sequence[RunRecord]) -> str:
    """Returns the texts about some records, each once, in order."""
    texts = [tell(record, record.training) for record in records if record.training is not None]
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _same(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else ""


def _seed(record: RunRecord, _: TrainingSummary) -> str:
    return f"seed {training_seed(record)}"


def _data(_: RunRecord, training: TrainingSummary) -> str:
    validated = f", {training.validation_sequence_count} to validate" if training.validation_sequence_count else ""
    return (
        f"{training.sequence_count} training sequences{validated} ({training.data_origin}, "
        f"data {training.data_fingerprint[:10]})"
    )


_LENGTHS = {"max_steps": "steps", "max_cpu_s": "s of processor time", "max_device_s": "s of device time"}
"""Units of the settings that end a training before its epochs do."""


def _budget(record: RunRecord, training: TrainingSummary) -> str:
    if not training.steps:
        return ""
    # A model that is trained from Python has no `data` section: its batches are not known.
    settings, batch = training.settings, record.config.get("data", {}).get("batch_size")
    if not (stages := settings.get("stages")):
        return _recipe(settings, batch)
    return "; ".join(
        f"{stage}: {_recipe({**settings, **own}, own.get('batch_size', batch))}" for stage, own in stages.items()
    )


def _recipe(settings: Mapping[str, Any], batch: int | None) -> str:
    at_most = next(
        (f"{settings[key]:g} {unit}" for key, unit in _LENGTHS.items() if settings.get(key)),
        f"{settings.get('max_epochs')} epochs",
    )
    of_batch = f" of batch {batch}" if batch else ""
    rest = (settings.get("optimizer"), f"lr {settings['lr']:g}" if "lr" in settings else None)
    return ", ".join(text for text in (f"at most {at_most}{of_batch}", *rest) if text)


def _outcome(_: RunRecord, training: TrainingSummary) -> str:
    if not training.steps:
        return training.stopped_because
    kept = f"best {training.monitor}" if training.weights == "best" else "last weights"
    return f"{training.steps} steps run ({training.stopped_because}; {kept})"


_FACTS = {"seed": _seed, "data": _data, "budget": _budget, "outcome": _outcome}


def _device(record: RunRecord) -> str:
    found = record.hardware
    if found.get("accelerator"):
        return str(found["accelerator"])
    threads = f", {found['threads']} threads" if found.get("threads") else ""
    return f"{found.get('cpu')} ({found.get('cores')} cores{threads})"

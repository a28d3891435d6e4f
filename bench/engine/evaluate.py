"""Evaluation: Lightning's trainer streams every sequence of a split once into exact counts and sums."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import Split
from bench.config import fingerprint
from bench.engine.ensembles import Ensemble
from bench.engine.hardware import describe_hardware
from bench.engine.identity import seen_events
from bench.engine.processes import Processes
from bench.engine.summaries import summary_beside
from bench.errors import ConfigError, ContractError, counted
from bench.models import has_weights, load_model, made_from, trained
from bench.records.provenance import code_state, differences_or_none, hardware, versions
from bench.records.schema import (
    CodePart,
    DataPart,
    FailurePart,
    MembersPart,
    MetricStatistics,
    ModelPart,
    RunRecord,
    StatisticsPart,
    TaskPart,
    TimePart,
    TrainingSummary,
    split_scores,
)
from bench.records.sources import sources_of
from bench.records.statistics import compact, content_sha256
from bench.records.store import new_run_id
from bench.tasks.task import Task

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from torch import Tensor, nn

    from bench.data.sequences import Events


@dataclass(frozen=True)
class EvaluationSettings:
    """The data to evaluate, how they are loaded, and where the model runs."""

    where: Mapping[str, Any]
    """Lightning's arguments, see `trainer_device`."""
    split: Split = "test"
    limit: int | None = None
    """Only the first `limit` sequences; None for all."""
    batch_size: int = 8
    """Sequences per forward pass in one process."""
    num_workers: int = 0
    timeout_s: int = 0
    """Seconds without data from a loader process after which the evaluation ends; 0 waits forever."""
    compile: bool = False
    progress: bool = False
    """Show a bar."""
    ensemble: Ensemble | None = None
    added_metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`evaluate.metrics`, see `scorings_of`."""
    processes: Processes = field(default_factory=Processes)


def evaluate(
    model: nn.Module | str,
    task: Task,
    split: Split = "test",
    limit: int | None = None,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
    seed: int = 0,
    progress: bool = False,
    members: int | None = None,
    member_seed: int = 0,
) -> RunRecord:
    """Returns the record of a model's scores on a split; `bench.write_record(record, root)` keeps it.

    Args:
        model: A model for the task's shapes, or a registered name (freshly initialised).
        task: With a data root.
        split: train, val, test or all.
        limit: Evaluate only the first `limit` sequences; the record then says `scope: partial`.
        batch_size: Sequences per forward pass; scores do not depend on it.
        num_workers: Loader processes.
        device: auto, cpu, cuda or cuda:N.
        seed: Recorded.
        progress: Show a progress bar.
        members: Score an ensemble of this size, drawn by the model's `sample`; 1 works for any model.
        member_seed: Seeds the members of a sequence, together with its index.

    Raises:
        ConfigError: no such split or device, or several members of a model that cannot draw any.
        DataError: the split has no sequences, or its files have problems.
        ContractError: the model's forecast has the wrong shape, dtype or device.
        RunFailedError: the forecast has NaN.
    """
    from bench.engine.trainer import trainer_device

    if isinstance(model, str):
        model = load_model(model, task)
    config = {
        "api": "bench.evaluate",
        "task": task.name,
        "model": made_from(model).name,
        "split": split,
        "limit": limit,
        "members": members,
        "member_seed": member_seed,
    }
    if members is not None and members < 1:
        raise ConfigError(f"members={members}: expected a number >= 1, or None for a single forecast")
    settings = EvaluationSettings(
        where=trainer_device(device),
        split=split,
        limit=limit,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        ensemble=None if members is None else Ensemble(members, member_seed),
    )
    described = {"config": config, "config_fingerprint": fingerprint(config), "seed": seed}
    training = None if (weights := trained(model)) is None else summary_beside(weights.path, model)
    return evaluate_with_sample(model, task, settings, described, training=training)[0]


def evaluate_with_sample(
    model: nn.Module,
    task: Task,
    settings: EvaluationSettings,
    described: Mapping[str, Any],
    *,
    training: TrainingSummary | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[RunRecord, dict[str, Tensor]]:
    """Returns the record as `evaluate` does, and the sequences for pictures from `Pictured.sample`.

    With several processes, each returns the record of the whole split, and its own sequences.

    Args:
        model: For the task's shapes.
        task: With a data root.
        settings: Settings of the evaluation.
        described: Fields that the record repeats: `config`, `config_fingerprint` and `seed`.
        training: Summary of the training of the weights.
        callbacks: Callbacks of Lightning's trainer.
    """
    import lightning
    from lightning.pytorch.callbacks import RichProgressBar

    from bench.data.loading import evaluation_loader
    from bench.data.plausibility import refuse_constant, refuse_empty
    from bench.data.sequences import events_of
    from bench.engine.compiling import compiled
    from bench.engine.forecaster import Forecaster
    from bench.engine.trainer import quiet_lightning, translated_errors

    quiet_lightning()
    split, limit, processes, ensemble = settings.split, settings.limit, settings.processes, settings.ensemble
    bar = settings.progress and processes.main
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: expected a number >= 1, or null for all")
    data = task.dataset(split)
    refuse_empty(data)
    refuse_constant(data)
    used = len(data) if limit is None else min(limit, len(data))
    refuse_trained_events(model, task, split)
    events = events_of(data.source.units, window=task.input_shape[0] + task.target_shape[0], used=used)
    forecaster = Forecaster(model, task, ensemble=ensemble, added_metrics=settings.added_metrics)
    forecaster.track_events(events.of_sequence.tolist(), len(events.ids))
    trainer = lightning.Trainer(
        **settings.where,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        callbacks=[*callbacks, *([RichProgressBar(leave=True)] if bar else [])],
        inference_mode=True,
    )
    loader = evaluation_loader(
        data.source,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        pinned=settings.where["accelerator"] == "gpu",
        limit=limit,
        timeout_s=settings.timeout_s,
        rank=processes.rank,
        world=processes.world,
    )
    started = time.perf_counter()
    at = f"evaluation at micro-batch {settings.batch_size}"
    with compiled(*([model] if settings.compile else [])), translated_errors(at, model=made_from(model).name):
        trainer.test(forecaster, loader, verbose=False)
    took = time.perf_counter() - started
    assert forecaster.scored is not None
    scored = forecaster.scored
    scores, per_lead, undefined = split_scores(scored.scores)
    because = _partial(model, task, split) or data.incomplete
    if because is None and used != len(data):
        because = f"limit={limit} of {len(data)} sequences"
    statistics, arrays = statistics_of(events, scored.statistics)
    record = _record(
        model,
        task,
        described,
        training=training,
        checkpoint_sha256=weights.sha256 if (weights := trained(model)) else None,
        status="ok",
        scope="partial" if because else "full",
        scope_because=because,
        data=describe_data(task, split, used),
        hardware=describe_hardware(trainer.strategy.root_device, processes.world, compiled=settings.compile),
        micro_batch=settings.batch_size,
        time=TimePart(evaluation_s=took, training_s=training.wall_s if training else None),
        conventions=forecaster.scores.conventions(),
        scores=scores,
        scores_per_lead=per_lead,
        undefined=undefined,
        counts=scored.counts,
        curves=scored.curves,
        members=MembersPart(count=ensemble.members, seed=ensemble.seed) if ensemble else None,
        statistics=statistics,
        degraded=forecaster.degraded.total(made_from(model).name, used, warn=processes.main),
    )
    return record.with_arrays(arrays).sealed(), forecaster.pictured.sample()


def refuse_trained_events(model: nn.Module, task: Task, split: Split) -> None:
    """Refuses to evaluate weights on events that they were trained or selected on, whatever the task's options.

    The training split and the whole data may be evaluated; the record is then partial.

    Raises:
        ConfigError: names the events.
    """
    weights = trained(model)
    if weights is None or split not in ("val", "test"):
        return
    for seen, verb in (("train", "trained"), ("val", "selected"))[: 1 + (split == "test")]:
        by_design = split == "val" and frozenset({"train", "val"}) in task.shared_by_design
        shared = seen_events(weights.events[seen], task.dataset(split)) if seen in weights.events else []
        if shared and not by_design:
            raise ConfigError(
                f"the weights were {verb} on {len(shared)} of the {len(task.dataset(split).ids)} events of "
                f"split {split!r}: {', '.join(shared[:5])}. Evaluate them on a split that they have not seen (with the "
                "task options of their training), or train again."
            )


def _partial(model: nn.Module, task: Task, split: Split) -> str | None:
    """Returns why a model's scores do not count as those of a complete training on unseen data, or None if they do."""
    if not has_weights(model):
        return None
    weights = trained(model)
    if weights is None:
        return "untrained weights" if made_from(model).task else "weights of unknown training"
    if weights.other_code:
        return f"weights that other code trained: {'; '.join(weights.other_code)}"
    if weights.identity is None:
        return None
    training = weights.identity.settings["train"]
    limits = [part["limit"] for part in (training, *training["stages"].values()) if part.get("limit") is not None]
    if limits:
        return f"trained on {min(*limits, weights.identity.train.sequence_count)} sequences only"
    if weights.identity.train.incomplete:
        return f"trained with {weights.identity.train.incomplete}"
    shared = seen_events(weights.events["train"], task.dataset(split)) if split in ("train", "all") else []
    return f"evaluated on {counted(len(shared), 'event')} that it was trained on" if shared else None


def statistics_of(
    events: Events, found: dict[str, tuple[MetricStatistics, dict[str, Any]]]
) -> tuple[StatisticsPart | None, dict[str, Any] | None]:
    """Returns a record's description of its metrics' statistics per event, and their arrays; None without any."""
    if not found:
        return None, None
    arrays = compact({f"{name}.{key}": values for name, (_, own) in found.items() for key, values in own.items()})
    part = StatisticsPart(
        kind=events.kind,
        unit_count=len(events.ids),
        units_sha256=fingerprint([*events.ids]),
        metrics={name: how for name, (how, _) in found.items()},
        content_sha256=content_sha256(arrays),
    )
    return part, arrays


def describe_data(task: Task, split: Split, used: int) -> DataPart:
    """Returns a split's identity as stored in a record."""
    data = task.dataset(split)
    identity = data.identity()
    return DataPart(
        origin=str(identity.get("origin", "files")),
        fingerprint=fingerprint(identity),
        identity=identity,
        cadence_minutes=task.cadence_minutes,
        split=split,
        sequence_count=used,
        sequence_count_available=len(data),
    )


def failed_record(model: nn.Module, task: Task, described: Mapping[str, Any], *, phase: str, message: str) -> RunRecord:
    """Returns the record of a run that started and failed: the reason, and no scores."""
    return _record(
        model,
        task,
        described,
        training=None,
        status="failed",
        scope="partial",
        data=None,
        hardware=hardware(),
        time=TimePart(evaluation_s=0.0),
        conventions={},
        scores={},
        scores_per_lead={},
        undefined={},
        failure=FailurePart(phase=phase, message=message),
    )


def _record(model: nn.Module, task: Task, described: Mapping[str, Any], **outcome: Any) -> RunRecord:
    """Returns a validated record: the fields common to all records, and the outcome of this run."""
    from bench.cost import count_model

    made = made_from(model)
    run_id, created = new_run_id(described["config_fingerprint"])
    gmacs, missing = None, None
    try:
        gmacs = count_model(model, task.input_shape).gmacs
    except ContractError as error:  # a plugin with its own kernels still has scores
        missing = str(error)
    return RunRecord(
        run_id=run_id,
        created_utc=created,
        task=TaskPart(
            name=task.name,
            version=task.version,
            fields=task.fields(),
            is_default=task.fields() == task.defaults(),
        ),
        model=ModelPart(
            name=made.name,
            origin=made.origin,
            hyperparameters=made.hyperparameters,
            is_preset=made.preset,
            parameters=sum(p.numel() for p in model.parameters()),
            gmacs=gmacs,
            gmacs_missing_because=missing,
        ),
        code=CodePart(
            **code_state().model_dump(exclude={"sources"}), sources=sources_of(type(model), type(task), task.metrics)
        ),
        versions=versions(),
        environment=differences_or_none(),
        **described,
        **outcome,
    )


def sample_arrays(sample: dict[str, Tensor]) -> dict[str, Any]:
    """Returns a sample's first channel as numpy arrays `(N,T,H,W)`, for drawing."""
    return {name: part[..., 0].numpy() for name, part in sample.items()}


def work_folder(root: str | Path, task: str, model: str, config_fingerprint: str) -> Path:
    """Returns the folder of a run's checkpoints, logs and pictures, the same for the same config."""
    return Path(root).expanduser() / task / model / config_fingerprint[:12]

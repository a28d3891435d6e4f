"""`earthbench rescore RECORD...`: evaluates the weights of finished runs again, with further metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.cli.flags import RESULTS, add_overrides, results_root
from bench.cli.outcome import print_outcome
from bench.config import Config, validate
from bench.config.hydra import composed_by_hydra, to_plain
from bench.errors import DataError, UsageError
from bench.files import sha256_of
from bench.records.schema import RunRecord
from bench.records.store import read_record, read_records

EXAMPLES = (
    "earthbench rescore 20260101T000000Z-0123456789-abcd 'evaluate.metrics.skill.thresholds=[1,3]'",
    "earthbench rescore results/runs/sevir/unet/20260101T000000Z-0123456789-abcd.json evaluate.metrics.mse.scale=1",
)
_TAKES = ("evaluate.", "data.root", "data.test_root", "device", "work", "picture", "progress", "results.root")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("records", nargs="+", metavar="RECORD", help="files of records, or run ids")
    add_overrides(parser, "e.g. evaluate.metrics.skill.thresholds=[1,3]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where run ids are looked up (default: results)")


def run(options: argparse.Namespace) -> int:
    """Finds each record's weights, evaluates them with its config, and writes a further record."""
    from bench.engine.run import run as run_pipeline

    words = [*options.records, *options.overrides]
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    wrong = [word for word in overrides if not word.startswith(_TAKES)]
    if wrong:
        raise UsageError(
            f"earthbench rescore: {wrong[0]}: expected one of {', '.join(_TAKES)}; the rest comes from the record"
        )
    if not names:
        raise UsageError("earthbench rescore: expected the file of a record, or a run id")
    configs = [_config(_record(name, options.results), overrides) for name in names]
    for config in configs:
        print_outcome(run_pipeline(config, training=False))
    return 0


def _record(name: str, results: Path) -> RunRecord:
    path = Path(name).expanduser()
    if path.suffix == ".json":
        return read_record(path)
    found = [record for record in read_records(results_root(results))[0] if record.run_id == name]
    if not found:
        raise DataError(f"no record {name!r} under {results}: give its file, or --results DIR")
    return found[0]


def _config(record: RunRecord, overrides: Sequence[str]) -> Config:
    """Returns the config that evaluates the weights of a record again."""
    if record.status != "ok" or "task" not in record.config or not isinstance(record.config["task"], dict):
        raise DataError(f"record {record.run_id} is not of a finished `earthbench run`; there is nothing to rescore")
    plain = dict(record.config)
    given = to_plain(composed_by_hydra([f"task={record.task.name}", f"model={record.model.name}", *overrides]))
    for word in overrides:
        section, _, key = word.partition("=")[0].partition(".")
        key = key.partition(".")[0]
        plain[section] = {**plain.get(section, {}), key: given[section][key]} if key else given[section]
    config = validate(plain)
    if record.checkpoint_sha256 is None:
        return config
    return config.model_copy(update={"checkpoint": str(_weights(record, config))})


def _weights(record: RunRecord, config: Config) -> Path:
    """Returns the checkpoint whose digest the record has.

    Raises:
        DataError: it is no longer there.
    """
    given = record.config.get("checkpoint")
    folder = Path(config.work).expanduser() / record.task.name / record.model.name
    roots = [folder, *([Path(config.train.checkpoints).expanduser()] if config.train.checkpoints else [])]
    files = [*([Path(given)] if given else []), *(path for root in roots for path in sorted(root.rglob("*.ckpt")))]
    for path in files:
        if path.is_file() and sha256_of(path) == record.checkpoint_sha256:
            return path
    raise DataError(
        f"record {record.run_id}: its weights ({str(record.checkpoint_sha256)[:10]}) are not under "
        f"{', '.join(map(str, roots))}: give work=DIR of the run"
    )

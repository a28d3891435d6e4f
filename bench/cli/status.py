"""`earthbench status`: what every run of a sweep is doing, or of a work folder; reads no data and imports no torch."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cli.printing import print
from bench.cli.run import overrides_and_flags
from bench.config import Config, compose, composed_by_hydra, expand_sweep, fingerprint, numbers_only
from bench.errors import ConfigError
from bench.overrides import is_sweep, quoted
from bench.places import local_folder, place
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.running.runfolder import Owner, read_owner, state

TAKES_HYDRA_FLAGS = True


@dataclass(frozen=True)
class Line:
    """One run."""

    run: str
    """The overrides that set it apart, or its folder."""
    state: str
    """recorded, running, done, failed, stopped, killed or waiting."""
    where: str
    """The record, the process that runs it, or why it ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="those of the sweep, e.g. model=unet,convlstm seed=0,1,2: one line per job; "
        "without any sweep: every run under work=DIR",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object, on stdout")


def run(options: argparse.Namespace) -> int:
    """Prints one line per run and a count per state."""
    overrides = quoted(overrides_and_flags(options)[0])
    composed_by_hydra([override for override in overrides if not is_sweep(override)])  # refuses what the sweep refuses
    jobs = expand_sweep(overrides)
    configs = [compose(job) for job in jobs]
    for config in configs:
        _refuse_files(config)
    lines = _of_sweep(jobs, configs) if len(jobs) > 1 else _of_folder(configs[0])
    counts = Counter(line.state for line in lines)
    if options.format == "json":
        print(json.dumps({"runs": [asdict(line) for line in lines], "counts": counts}, indent=1))
        return 0
    for line in lines:
        print(f"{line.state:<9} {line.run}" + (f"  ({line.where})" if line.where else ""))
    print(f"{len(lines)} runs: " + (", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"))
    return 0


def _refuse_files(config: Config) -> None:
    for key, folder in (
        ("work", local_folder(config.work, "work")),
        ("results.root", place(config.results.root, "results.root")),
    ):
        if isinstance(folder, Path) and folder.exists() and not folder.is_dir():
            raise ConfigError(f"{key}={folder} is not a folder")


def _of_sweep(jobs: list[list[str]], configs: list[Config]) -> list[Line]:
    varying = {override for job in jobs for override in job if not all(override in other for other in jobs)}
    records: dict[str, list[RunRecord]] = {}
    for root in {config.results.root for config in configs}:
        records[root] = read_records(root)[0]
    owners = {work: _owners(local_folder(work, "work")) for work in {config.work for config in configs}}
    lines = []
    for job, config in zip(jobs, configs, strict=True):
        name = " ".join(override for override in job if override in varying)
        lines.append(_line(name, config, records[config.results.root], owners[config.work]))
    return lines


def _line(name: str, config: Config, records: list[RunRecord], owners: list[tuple[Path, Owner]]) -> Line:
    named = fingerprint(numbers_only(config))
    kept = [record for record in records if record.config_fingerprint == named]
    good = [record for record in kept if record.status == "ok"]
    mine = [(folder, owner) for folder, owner in owners if owner.config_fingerprint == named]
    states = {state(folder, owner): (folder, owner) for folder, owner in mine}
    if "running" in states:
        return Line(name, "running", _who(states["running"][1]))
    if good:
        root = place(config.results.root, "results.root")
        return Line(name, "recorded", str(root / "runs" / config.task.name / config.model.name / good[-1].run_id))
    for found, (_, owner) in states.items():
        return Line(name, found, owner.why or _who(owner))
    if kept and kept[-1].failure is not None:
        return Line(name, "failed", kept[-1].failure.message.splitlines()[0])
    return Line(name, "waiting", "")


def _of_folder(config: Config) -> list[Line]:
    return [
        Line(str(folder), state(folder, owner), owner.why or _who(owner))
        for folder, owner in _owners(local_folder(config.work, "work"))
    ]


def _owners(work: Path) -> list[tuple[Path, Owner]]:
    found = ((path.parent, read_owner(path.parent)) for path in sorted(work.glob("*/*/*/owner.json")))
    return [(folder, owner) for folder, owner in found if owner is not None]


def _who(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}" + (f", job {owner.job}" if owner.job else "")

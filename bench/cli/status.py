"""`earthbench status`: the state of every run of a sweep or a work folder; reads no data and imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cli.flags import add_overrides
from bench.cli.printing import print, wrapped
from bench.cli.run import overrides_and_flags
from bench.config import Config, compose, composed_by_hydra, expand_sweep, fingerprint, numbers_of, numbers_only
from bench.config.hydra_keys import leaves
from bench.config.overrides import is_sweep, literal, quoted
from bench.engine.runfolder import Owner, Progress, State, read_owner, read_progress, state
from bench.errors import ConfigError, DataError, UsageError, counted
from bench.paths import as_path, local_folder
from bench.protocols.entries import key_of
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.safe_text import for_terminal

TAKES_HYDRA_FLAGS = True
_WATCH_EVERY_S = 5.0
_PLACES = ("work", "results.root")
_MAX_SETTINGS = 4


@dataclass(frozen=True)
class Line:
    """One run."""

    run: str
    """The overrides that set it apart, or its folder."""
    state: str
    """recorded, running, done, failed, stopped, killed or waiting."""
    where: str
    """The record, the process that runs it, or why it ended."""
    progress: Progress | None = None
    """Its last reported progress; None if it is done or has not reported any."""

    def __str__(self) -> str:
        """Returns the line that is printed."""
        far = f"  {self.progress}" if self.progress is not None else ""
        return f"{self.state:<9} {self.run}{far}" + (f"  ({self.where})" if self.where else "")


EXAMPLES = (
    "earthbench status",
    "earthbench status --watch",
    "earthbench status model=unet,convlstm seed=0,1,2 data.root=DIR",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_overrides(
        parser,
        "overrides of the run or sweep, e.g. model=unet,convlstm seed=0,1,2: one line per job; "
        "without overrides: every run under work=DIR",
    )
    parser.add_argument("--watch", action="store_true", help="repeat every few seconds until no run is active")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object, on stdout")


def run(options: argparse.Namespace) -> int:
    """Prints one line per run and a count per state; with `--watch` until nothing runs."""
    overrides = quoted(overrides_and_flags(options)[0])
    composed_by_hydra([override for override in overrides if not is_sweep(override)])  # refuses what the sweep refuses
    jobs = expand_sweep(overrides)
    configs = [compose(job) for job in jobs]
    for config in configs:
        _refuse_files(config)
    if options.watch and options.format == "json":
        raise UsageError("--watch is for readers: leave it out for the current state as JSON")
    if options.watch:
        return _watch(jobs, configs)
    lines = _found(jobs, configs)
    if options.format == "json":
        runs = [{**asdict(line), "progress": _as_json(line.progress)} for line in lines]
        print(json.dumps({"runs": runs, "counts": Counter(line.state for line in lines)}, indent=1))
        return 0
    print(_text(lines))
    return 0


def _found(jobs: list[list[str]], configs: list[Config]) -> list[Line]:
    chosen = [one for one in jobs[0] if not one.startswith("hydra") and key_of(one) not in _PLACES]
    return _of_sweep(jobs, configs) if len(jobs) > 1 or chosen else _of_folder(configs[0])


def _text(lines: list[Line]) -> str:
    counts = sorted(Counter(line.state for line in lines).items())
    ending = f"{counted(len(lines), 'run')}: " + (", ".join(f"{count} {name}" for name, count in counts) or "none")
    return "\n".join([*(wrapped(str(line), 10) for line in lines), ending])


def _as_json(progress: Progress | None) -> dict[str, object] | None:
    return progress.model_dump(mode="json") if progress is not None else None


def _watch(jobs: list[list[str]], configs: list[Config]) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with suppress(KeyboardInterrupt):
        if not sys.stdout.isatty():
            while not _none_running(lines := _found(jobs, configs)):
                print(_text(lines), flush=True)
                time.sleep(_WATCH_EVERY_S)
            print(_text(lines), flush=True)
            return 0
        with Live(console=Console(), auto_refresh=False) as live:
            while True:
                lines = _found(jobs, configs)
                live.update(Text(for_terminal(_text(lines))), refresh=True)
                if _none_running(lines):
                    return 0
                time.sleep(_WATCH_EVERY_S)
    return 0


def _none_running(lines: list[Line]) -> bool:
    return not any(line.state == "running" for line in lines)


def _refuse_files(config: Config) -> None:
    for key, folder in (
        ("work", local_folder(config.work, "work")),
        ("results.root", as_path(config.results.root, "results.root")),
    ):
        if isinstance(folder, Path) and folder.exists() and not folder.is_dir():
            raise ConfigError(f"{key}={folder} is not a folder")


def _of_sweep(jobs: list[list[str]], configs: list[Config]) -> list[Line]:
    varying = {override for job in jobs for override in job if not all(override in other for other in jobs)}
    varying = varying or set(jobs[0])  # there is one
    return lines_of([" ".join(override for override in job if override in varying) for job in jobs], configs)


def lines_of(names: list[str], configs: list[Config]) -> list[Line]:
    """Returns how the run of each config stands, under the name that it is given."""
    records: dict[str, list[RunRecord]] = {}
    for root in {config.results.root for config in configs}:
        records[root] = read_records(root)[0]
    owners = {work: _owners(local_folder(work, "work")) for work in {config.work for config in configs}}
    return [
        _line(name, config, records[config.results.root], owners[config.work])
        for name, config in zip(names, configs, strict=True)
    ]


def _line(name: str, config: Config, records: list[RunRecord], owners: list[tuple[Path, Owner]]) -> Line:
    named = fingerprint(numbers_only(config))
    kept = [record for record in records if record.config_fingerprint == named]
    good = [record for record in kept if record.status == "ok"]
    mine = [(folder, owner) for folder, owner in owners if owner.config_fingerprint == named]
    states = {state(folder, owner): (folder, owner) for folder, owner in mine}
    if "running" in states:
        folder, owner = states["running"]
        return Line(name, "running", _process_name(owner), read_progress(folder))
    if good:
        root = as_path(config.results.root, "results.root")
        return Line(name, "recorded", str(root / "runs" / config.task.name / config.model.name / good[-1].run_id))
    for found, (folder, owner) in states.items():
        return Line(name, found, owner.why or _process_name(owner), _progress(folder, found))
    if kept and kept[-1].failure is not None:
        return Line(name, "failed", kept[-1].failure.message.splitlines()[0])
    return Line(name, "waiting", _recorded_with(config, records))


def _recorded_with(config: Config, records: list[RunRecord]) -> str:
    """Returns what sets the most similar recorded run of a config's task, model and seed apart; empty without any."""
    wanted = _settings(numbers_only(config))
    found: list[list[str]] = []
    for record in records:
        same = (config.task.name, config.model.name, config.seed)
        asked = _settings(record.config).get("model.name")
        if record.status != "ok" or (record.task.name, asked, record.seed) != same:
            continue
        has = _settings(numbers_of(record.config))
        other = [key for key in {**has, **wanted} if has.get(key) != wanted.get(key)]
        found.append([f"{key}={literal(has.get(key))}" for key in other])
    if not found:
        return ""
    nearest = min(reversed(found), key=len)
    more = f" and {len(nearest) - _MAX_SETTINGS} more" if len(nearest) > _MAX_SETTINGS else ""
    return f"recorded with other settings: {' '.join(nearest[:_MAX_SETTINGS])}{more}"


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config by their dotted keys, without those that are not set."""
    return {key: value for key, value in leaves(section) if value is not None and value != {}}


def _of_folder(config: Config) -> list[Line]:
    found, work = [], local_folder(config.work, "work")
    if not work.is_dir() and config.work != Config.model_fields["work"].default:
        raise DataError(f"work={config.work} is not a folder: expected the work folder of a run")
    for folder, owner in _owners(work):
        now = state(folder, owner)
        found.append(Line(str(folder), now, owner.why or _process_name(owner), _progress(folder, now)))
    return found


def _progress(folder: Path, now: State) -> Progress | None:
    return read_progress(folder) if now != "done" else None


def _owners(work: Path) -> list[tuple[Path, Owner]]:
    found = ((path.parent, read_owner(path.parent)) for path in sorted(work.glob("*/*/*/owner.json")))
    return [(folder, owner) for folder, owner in found if owner is not None]


def _process_name(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}" + (f", job {owner.job}" if owner.job else "")

"""`earthbench forecast`: forecasts one sequence or file and writes a NetCDF file and a picture; or all of a split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from bench.api import MONTH_MINUTES
from bench.cli.outcome import FAR_TOO_VARIED, far_too_varied
from bench.cli.printing import print
from bench.config import Config, compose
from bench.errors import ConfigError, UsageError, counted
from bench.logs import log

if TYPE_CHECKING:
    from datetime import datetime

    from torch import Tensor, nn

    from bench.engine.forecast import Case
    from bench.tasks.task import Task

Controls = tuple[float, ...] | None
_NETCDF = (".nc", ".nc4", ".netcdf")
EXAMPLES = (
    "earthbench forecast task=sevir model=persistence data.root=DIR --picture forecast.png",
    "earthbench forecast task=sevir model=unet checkpoint=FILE data.root=DIR --sequence 3 --out forecast.nc",
    "earthbench forecast task=radar model=optical_flow data.root=DIR --beside persistence --picture radar.gif",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="Hydra overrides, e.g. task=sevir model=unet checkpoint=FILE data.root=DIR split=test",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--sequence", type=int, default=0, help="number of the sequence in the split (default 0)")
    start.add_argument("--input", type=Path, help="take the context from this .npy or NetCDF file instead")
    start.add_argument(
        "--latest", action="store_true", help="forecast from the newest frames of the data into the future"
    )
    start.add_argument(
        "--all",
        action="store_true",
        help="forecast every sequence of the split (the first limit=N), each into a file of the folder --out",
    )
    parser.add_argument("--members", type=int, default=1, help="members to draw, for probabilistic models (default 1)")
    parser.add_argument("--control", help="strengths of the knowledge control, e.g. --control=-4,-2,0,2,4")
    parser.add_argument("--threshold", type=float, help="draw the share of members at or above this value")
    parser.add_argument("--out", type=Path, help="NetCDF file (default forecast.nc); with --all a folder (forecasts)")
    parser.add_argument("--picture", type=Path, help="also draw to this .png, .svg, .pdf, .gif or .mp4")
    parser.add_argument(
        "--beside", metavar="MODEL,...", help="also draw these models, which need no weights, e.g. persistence"
    )
    parser.add_argument("--title", help="title of the picture (default: model, task, sequence and start)")
    parser.add_argument("--colours", help="colour map of matplotlib for --picture, e.g. cividis (default: the task's)")


def run(options: argparse.Namespace) -> int:
    """Forecasts, writes and draws."""
    from bench.checkpoint_format import local_weights
    from bench.engine.forecast import case_from_file, case_from_split, case_of_latest
    from bench.engine.trainer import torch_device
    from bench.models import has_weights, load_model, load_weights, options_of_weights
    from bench.tables.look import Look
    from bench.tables.pictures import FORMATS
    from bench.tasks import load_task

    if options.picture is not None and options.picture.suffix not in FORMATS:
        raise UsageError(f"--picture {options.picture}: expected a name that ends in {', '.join(FORMATS)}")
    if options.out is not None and not options.all and options.out.suffix not in _NETCDF:
        raise UsageError(f"--out {options.out}: a forecast is a NetCDF file; expected a name that ends in .nc")
    if options.picture is not None and options.all:
        raise UsageError("--picture shows one forecast and --all makes many: give --sequence N instead")
    for flag in ("beside", "title", "colours"):
        if getattr(options, flag) is not None and options.picture is None:
            raise UsageError(f"--{flag} is for the picture: give --picture FILE, too")
    controls = _numbers(options.control)
    config = compose(options.overrides)
    device = torch_device(config.device)
    if options.input is None and config.data.root is None:
        raise ConfigError("nothing to forecast from: give data.root=DIR, or --input FILE")
    options_of_task = options_of_weights(config.task.name, config.checkpoint) | config.task.options
    task = load_task(config.task.name, config.data.root, **options_of_task)
    look = Look.of(task, options.colours)
    model = load_model(config.model.name, task, **config.model.options)
    if config.checkpoint is not None:
        with TemporaryDirectory() as scratch:
            local = local_weights(config.checkpoint, "checkpoint", Path(scratch))
            load_weights(model, local, other_code=config.train.resume == "anyway")
    elif has_weights(model):
        raise ConfigError(f"model {config.model.name!r} has weights to load: give checkpoint=FILE")
    others = {name: load_model(name, task) for name in (options.beside or "").split(",") if name}
    if trained := [name for name, other in others.items() if has_weights(other)]:
        raise UsageError(f"--beside {trained[0]}: it has weights to load; expected models without, e.g. persistence")
    if options.all:
        folder = options.out or Path("forecasts")
        _forecast_all(model, task, folder, options.members, controls, config, device)
        return 0
    if options.input is not None:
        case = case_from_file(task, options.input)
    elif options.latest:
        case = case_of_latest(task)
    else:
        case = case_from_split(task, config.split, options.sequence)
    path = options.out or Path("forecast.nc")
    forecasts = _forecast(model, task, case, path, options.members, controls, config, device)
    print(f"forecast: {path}")
    shown, seen = case.where_observed(forecasts)[..., 0].numpy(), case.observed_context[..., 0].numpy()
    spread = float(np.nanstd(seen))
    if spread > 0 and (share := float(np.nanstd(shown)) / spread) > FAR_TOO_VARIED:
        log.warning(far_too_varied("the forecast", share, "observed before"))
    if options.picture is not None:
        from bench.engine.forecast import forecast
        from bench.tables.pictures import Panel, draw, panels_of

        panels = panels_of(
            seen,
            None if case.target is None else case.target[..., 0].numpy(),
            shown,
            name=config.model.name,
            threshold=options.threshold,
            controls=controls,
        )
        for name, other in others.items():
            found = case.where_observed(forecast(other, task, case.context, device=device))
            panels.append(Panel(name, found[0, ..., 0].numpy()))
        title = _title(config, case) if options.title is None else options.title
        draw(options.picture, panels, look=look.at(case.coordinates), cadence_minutes=case.cadence_minutes, title=title)
        print(f"picture: {options.picture}")
    return 0


def _title(config: Config, case: Case) -> str:
    """Returns model, task, the variable that is drawn if there are several, sequence and start."""
    parts = [f"{config.model.name} on {config.task.name}"]
    if case.coordinates is None:
        return ", ".join([*parts, case.name])
    variables, start = case.coordinates.variables, case.coordinates.start
    if len(variables) > 1:
        parts.append(variables[0])
    if case.name != str(start):  # forecasts from the newest frames are named by their time
        parts.append(case.name)
    return ", ".join([*parts, f"from {_moment(start.item(), case.cadence_minutes)}"])


def _moment(time: datetime, cadence_minutes: float) -> str:
    """Returns a time for a title; only the month if frames are months."""
    return f"{time:%B %Y}" if cadence_minutes >= MONTH_MINUTES else f"{time.day} {time:%B %Y, %H:%M} UTC"


def _forecast(
    model: nn.Module,
    task: Task,
    case: Case,
    path: Path,
    members: int,
    controls: Controls,
    config: Config,
    device: str,
) -> Tensor:
    """Writes a forecast, and returns its members `(M,T,H,W,C)`; with N controls `(N,M,T,H,W,C)`."""
    import torch

    from bench.engine.forecast import as_dataset, forecast, write_netcdf

    blocks = [
        forecast(
            model, task, case.context, members=members, seed=config.evaluate.member_seed, sequence=case.sequence,
            control=control, device=device,
        )
        for control in controls or (None,)
    ]  # fmt: skip
    forecasts = torch.stack(blocks) if controls else blocks[0]
    write_netcdf(as_dataset(case, forecasts, task, model, controls=controls), path)
    return forecasts


def _forecast_all(
    model: nn.Module, task: Task, folder: Path, members: int, controls: Controls, config: Config, device: str
) -> None:
    """Writes a file for every sequence of the split, under its number."""
    from rich.console import Console
    from rich.progress import track

    from bench.data.plausibility import refuse_empty
    from bench.engine.forecast import case_from_split

    data = task.dataset(config.split)
    refuse_empty(data)
    count = len(data)
    numbers = range(min(count, config.limit or count))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for number in track(numbers, "forecasts", console=console, transient=True, disable=not sys.stderr.isatty()):
        case = case_from_split(task, config.split, number)
        _forecast(model, task, case, folder / f"{number:06d}.nc", members, controls, config, device)
    print(f"forecasts: {counted(len(numbers), 'file')} in {folder}")


def _numbers(text: str | None) -> Controls:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--control {text!r}: expected numbers, e.g. --control=-4,-2,0,2,4") from error

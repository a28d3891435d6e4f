"""`earthbench forecast`: one sequence or file in, a NetCDF file of members and a picture out."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.config import compose
from bench.errors import ConfigError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides, e.g. task=sevir model=unet checkpoint=FILE data.root=DIR split=test",
    )
    parser.add_argument("--sequence", type=int, default=0, help="which sequence of the split (default 0)")
    parser.add_argument("--input", type=Path, help="take the context from this .npy or NetCDF file instead")
    parser.add_argument("--members", type=int, default=1, help="members to draw, for probabilistic models (default 1)")
    parser.add_argument("--control", help="strengths of the knowledge control, e.g. --control=-4,-2,0,2,4")
    parser.add_argument("--threshold", type=float, help="draw the share of members at or above this value")
    parser.add_argument("--out", type=Path, default=Path("forecast.nc"), help="NetCDF file (default forecast.nc)")
    parser.add_argument("--picture", type=Path, help="a .png, .gif or .mp4 beside it")


def run(options: argparse.Namespace) -> int:
    """Forecasts, writes and draws."""
    import torch

    from bench.models import has_weights, load_model, load_weights
    from bench.running.forecasting import as_dataset, case_from_file, case_from_split, forecast, write_netcdf
    from bench.running.trainer import torch_device
    from bench.tables.panels import FORMATS, draw, panels_of
    from bench.tasks import load_task

    if options.picture is not None and options.picture.suffix not in FORMATS:
        raise UsageError(f"--picture {options.picture}: expected a name that ends in {', '.join(FORMATS)}")
    controls = _numbers(options.control)
    config = compose(options.overrides)
    device = torch_device(config.device)
    task = load_task(config.task.name, config.data.root, **config.task.options)
    if options.input is not None:
        case = case_from_file(task, options.input)
    elif config.data.root is None:
        raise ConfigError("nothing to forecast from: give data.root=DIR, or --input FILE")
    else:
        case = case_from_split(task, config.split, options.sequence)
    model = load_model(config.model.name, task, **config.model.options)
    if config.checkpoint is not None:
        load_weights(model, config.checkpoint)
    elif has_weights(model):
        raise ConfigError(f"model {config.model.name!r} has weights to load: give checkpoint=FILE")
    blocks = [
        forecast(model, task, case.context, members=options.members, seed=config.seed, control=control, device=device)
        for control in controls or (None,)
    ]
    forecasts = torch.stack(blocks) if controls else blocks[0]
    print(f"forecast: {write_netcdf(as_dataset(case, forecasts, task, model, controls=controls), options.out)}")
    if options.picture is not None:
        panels = panels_of(
            case.context[..., 0].numpy(),
            None if case.target is None else case.target[..., 0].numpy(),
            forecasts[..., 0].numpy(),
            threshold=options.threshold,
            controls=controls,
        )
        picture = draw(
            options.picture,
            panels,
            palette=task.palette,
            units=task.units,
            cadence_minutes=case.cadence_minutes,
            title=f"{config.model.name} on {task.name}, {case.name}",
        )
        print(f"picture: {picture}")
    return 0


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--control {text!r}: expected numbers, e.g. --control=-4,-2,0,2,4") from error

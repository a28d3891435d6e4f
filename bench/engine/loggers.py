"""Lightning's loggers by the names in `train.loggers`, and their logs."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from bench.errors import ConfigError, first_line
from bench.records.learning_curves import LearningCurve, Points

LOGS = "logs"
"""Folder of a training's logs, in the run's folder."""
_PART = "part_"
_MOST_POINTS = 100  # of a learning curve: a picture shows no more, and the file stays small


def part_folder(logs: Path) -> Path:
    """Returns the log folder of the next start of a training; a resumed training has one per start."""
    return logs / f"{_PART}{len(list(logs.glob(f'{_PART}*')))}"


def make_loggers(names: Sequence[str], run: str, folder: Path, work: Path) -> list[Logger]:
    """Returns the loggers of `train.loggers`.

    Args:
        names: Of the loggers.
        run: Name of the run in W&B and MLflow.
        folder: The run's folder, which they write to.
        work: The folder of all runs, which holds MLflow's store: it compares them.

    Raises:
        ConfigError: a logger's package is not installed, or its server refuses.
    """
    place: dict[str, Any] = {"save_dir": str(folder.parent), "name": None, "version": folder.name}
    made: list[Logger] = []
    for name in names:
        try:
            if name == "csv":
                made.append(CSVLogger(**place))
            elif name == "tensorboard":
                made.append(TensorBoardLogger(**place, default_hp_metric=False))
            elif name == "wandb":
                made.append(_started(WandbLogger(save_dir=str(folder), project="earthbench", name=run)))
            else:
                # Newer versions of MLflow write to a folder only with this variable; a server ignores it.
                server = os.environ.get("MLFLOW_TRACKING_URI")
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
                store = str(work / "mlruns")
                made.append(_started(MLFlowLogger("earthbench", run, tracking_uri=server, save_dir=store)))
        except ModuleNotFoundError as error:
            why, _, _ = first_line(error).partition(" HINT")  # Lightning's is of the package alone, of any version
            raise ConfigError(
                f"train.loggers has {name!r}: {why} Install it: pip install 'earthbench[{name}]'"
            ) from error
    return made


_CURES = {
    WandbLogger: "`wandb login` stores a key; with WANDB_MODE=offline it logs to the run's folder",
    MLFlowLogger: "MLFLOW_TRACKING_URI names its server; without it, runs are logged to WORK/mlruns",
}


def _started(logger: WandbLogger | MLFlowLogger) -> Logger:
    """Returns a logger whose service has taken the run: before hours of training, and said in one line."""
    try:
        logger.experiment  # noqa: B018 - it connects
    except Exception as error:  # W&B's and MLflow's, which share no base
        name = "wandb" if isinstance(logger, WandbLogger) else "mlflow"
        why = first_line(error).rstrip(".")
        raise ConfigError(f"train.loggers has {name!r}, which does not start: {why}. {_CURES[type(logger)]}") from error
    return logger


def takes_pictures(logger: Logger) -> bool:
    """Returns whether `log_picture` supports a logger."""
    return isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger)


def log_picture(logger: Logger, name: str, pixels: np.ndarray, step: int) -> None:
    """Logs an image `(H,W,3)`, uint8, with the logger's own function for images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, key=name, step=step)


@contextmanager
def finished(loggers: list[Logger]) -> Iterator[None]:
    """Flushes the logs of a stopped training, and ends the W&B run.

    Lightning does neither: the last hundred steps would be lost, and this process's next run would log to the same one.
    """
    try:
        yield
    except BaseException:
        for logger in loggers:
            with suppress(OSError):  # a full disk must not hide the error that ended the training
                logger.save()
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


def logged_curve(logs: Path) -> LearningCurve | None:
    """Returns the losses of a training from its `csv` logs; None without any.

    Training losses are means over at most 100 equal spans of steps. For steps that a resumed training repeated, the
    last losses count.
    """
    train: dict[int, float] = {}
    val: dict[int, float] = {}
    for part in sorted(logs.glob(f"{_PART}*/metrics.csv"), key=lambda path: int(path.parent.name.removeprefix(_PART))):
        with part.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        own_train, own_val = _losses(rows, "train/loss"), _losses(rows, "val/loss")
        start = min([*own_train, *own_val], default=None)
        if start is not None:
            train = {step: loss for step, loss in train.items() if step < start} | own_train
            val = {step: loss for step, loss in val.items() if step < start} | own_val
    return LearningCurve(_spans(train), tuple(sorted(val.items()))) if train else None


def _losses(rows: Iterable[dict[str, str]], column: str) -> dict[int, float]:
    found = {}
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):  # a row of other columns, or a line cut by a kill
            found[int(row["step"]) + 1] = float(row[column])
    return found


def _spans(losses: dict[int, float]) -> Points:
    width = -(-max(losses) // _MOST_POINTS)
    spans: dict[int, list[float]] = {}
    for step in sorted(losses):
        spans.setdefault((step - 1) // width, []).append(losses[step])
    last = max(losses)
    return tuple((min((span + 1) * width, last), sum(found) / len(found)) for span, found in spans.items())

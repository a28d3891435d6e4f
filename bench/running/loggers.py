"""Lightning's loggers by the names that `train.loggers` takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from bench.config import Config
from bench.errors import ConfigError


def make_loggers(config: Config, folder: Path) -> list[Logger]:
    """Returns the loggers of a config, which write to a folder.

    Raises:
        ConfigError: a logger's package is not installed.
    """
    place: dict[str, Any] = {"save_dir": str(folder.parent), "name": None, "version": folder.name}
    made: list[Logger] = []
    for name in config.train.loggers:
        try:
            if name == "csv":
                made.append(CSVLogger(**place))
            elif name == "tensorboard":
                made.append(TensorBoardLogger(**place))
            elif name == "wandb":
                made.append(WandbLogger(save_dir=str(folder), project="earthbench", name=config.model.name))
            else:
                # Newer versions of MLflow write to a folder only when told so; a server needs nothing of the kind.
                server = os.environ.get("MLFLOW_TRACKING_URI")
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
                made.append(MLFlowLogger("earthbench", tracking_uri=server, save_dir=str(folder / "mlruns")))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.loggers has {name!r}: {error}. Install it: pip install 'earthbench[{name}]'"
            ) from error
    return made


@contextmanager
def finished(loggers: list[Logger]) -> Iterator[None]:
    """Ends the W&B run, which Lightning leaves open: the next run of this process would write into it."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()

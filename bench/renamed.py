"""Modules under their names before 0.1, which can be imported until 0.3, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "ablation.variants": "protocols.variants",
    "config_errors": "config.messages",
    "data.archive_fetch": "data.author_archives",
    "data.archives": "data.transfer.archives",
    "data.digits": "data.mnist",
    "data.download": "data.transfer.download",
    "data.enso_ersst": "data.ersst.dataset",
    "data.ersst": "data.ersst.anomalies",
    "data.ersst_fetch": "data.ersst.download",
    "data.events": "data.sequences",
    "data.http": "data.transfer.http",
    "data.icar_enso": "data.icar_enso.dataset",
    "data.icar_enso_report": "data.icar_enso.check",
    "data.make_mnist": "data.mnist",
    "data.manifest": "data.transfer.manifest",
    "data.moving_mnist": "data.moving_mnist.dataset",
    "data.moving_mnist_motion": "data.moving_mnist.synthetic",
    "data.nbody": "data.nbody_mnist.simulation",
    "data.nbody_draws": "data.nbody_mnist.draws",
    "data.nbody_mnist": "data.nbody_mnist.dataset",
    "data.origin": "data.transfer.manifest",
    "data.places": "data.transfer.paths",
    "data.random_split": "data.sevir.splits",
    "data.sevir": "data.sevir.dataset",
    "data.sevir_axes": "data.sevir.files",
    "data.sevir_catalogue": "data.sevir.catalogue",
    "data.sevir_convert": "data.sevir.convert",
    "data.sevir_dates": "data.sevir.splits",
    "data.sevir_fetch": "data.sevir.download",
    "data.sevir_files": "data.sevir.files",
    "data.sevir_join": "data.sevir.join",
    "data.sevir_report": "data.sevir.check",
    "data.sevir_subset": "data.sevir.subset",
    "data.sevir_times": "data.sevir.times",
    "data.storms": "data.sevir.synthetic",
    "data.weights": "data.transfer.weights",
    "global_state": "plugins",
    "hydra_keys": "config.hydra_keys",
    "hydra_messages": "config.messages",
    "interpolation": "config.interpolation",
    "metrics.by_event": "metrics.states",
    "metrics.contingency": "metrics.skill.contingency",
    "metrics.energy": "metrics.energy.metric",
    "metrics.ensembles": "metrics.ensemble.sums",
    "metrics.frame_scores": "metrics.frames.metric",
    "metrics.frames": "metrics.pairs",
    "metrics.frechet": "metrics.frechet.metric",
    "metrics.i3d": "metrics.frechet.i3d",
    "metrics.neighbourhood": "metrics.skill.neighbourhood",
    "metrics.nino": "metrics.enso.metric",
    "metrics.pixelwise": "metrics.errors.metric",
    "metrics.pooling": "metrics.skill.neighbourhood",
    "metrics.probabilistic": "metrics.ensemble.metric",
    "metrics.sharing": "metrics.pairs",
    "metrics.similarity": "metrics.frames.similarity",
    "metrics.skill": "metrics.skill.metric",
    "metrics.tracking": "metrics.energy.tracking",
    "metrics.weighted_mean": "engine.losses",
    "overrides": "config.overrides",
    "places": "paths",
    "records.reuse": "records.identity",
    "report.assets": "report.site",
    "report.figures": "report.plots",
    "report.models": "report.model_pages",
    "running": "engine",
    "running.accumulation": "engine.accumulation",
    "running.astray": "engine.callbacks.divergence",
    "running.averaging": "engine.weights",
    "running.checkpoints": "engine.checkpoints",
    "running.compiling": "engine.compiling",
    "running.device_floats": "engine.hardware",
    "running.ensembles": "engine.ensembles",
    "running.evaluation": "engine.evaluate",
    "running.fitting": "engine.train",
    "running.forecaster": "engine.forecaster",
    "running.forecasting": "engine.forecast",
    "running.hardware": "engine.hardware",
    "running.identity": "engine.identity",
    "running.independence": "engine.independence",
    "running.loggers": "engine.loggers",
    "running.losses": "engine.losses",
    "running.micro_batch": "engine.micro_batch",
    "running.pipeline": "engine.run",
    "running.preflight": "engine.preflight",
    "running.processes": "engine.processes",
    "running.progress": "engine.callbacks.progress",
    "running.randomness": "engine.randomness",
    "running.resuming": "engine.callbacks.resume",
    "running.runfolder": "engine.runfolder",
    "running.scorer": "engine.scorer",
    "running.selection": "engine.callbacks.selection",
    "running.sharding": "engine.weights",
    "running.stages": "engine.stages",
    "running.stopping": "engine.callbacks.signals",
    "running.summaries": "engine.summaries",
    "running.trainer": "engine.trainer",
    "running.training": "engine.train",
    "scores": "metrics.families",
    "scores.correlation": "metrics.enso.formulas",
    "scores.directions": "metrics.names",
    "scores.energy": "metrics.energy.formulas",
    "scores.frames": "metrics.frames.formulas",
    "scores.jackknife": "metrics.resampling",
    "scores.means": "metrics.means",
    "scores.names": "metrics.names",
    "scores.probabilistic": "metrics.ensemble.formulas",
    "scores.skill": "metrics.skill.formulas",
    "tables.panels": "tables.pictures",
    "user_yaml": "config.user_yaml",
}
"""New names by old ones, below `bench`."""


def attributes(package: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package that has the name of a former module."""
    old = package.removeprefix("bench.")

    def attribute(name: str) -> Any:
        if not name.startswith("__"):
            value = getattr(importlib.import_module(f"bench.{MODULES[old]}"), name)
            if not isinstance(value, ModuleType):  # pickling asks every module for names such as `torch`
                _warn(f"{old}.{name}", f"{MODULES[old]}.{name}")
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


class RenamedModules(MetaPathFinder, Loader):
    """Finds modules by their former names, after every other finder."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the spec of a former module, None for any other name."""
        if name.removeprefix("bench.") not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=True)  # `bench.running.training` is looked for in `bench.running`

    def exec_module(self, module: ModuleType) -> None:
        """Makes the former module show the new one's names."""
        old = module.__name__.removeprefix("bench.")
        _warn(old, MODULES[old])
        new = importlib.import_module(f"bench.{MODULES[old]}")
        module.__dict__["__getattr__"] = lambda name: getattr(new, name)


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"bench.{old} is now bench.{new}; the old name will be removed in 0.3", DeprecationWarning, stacklevel=4
    )


if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
    sys.meta_path.append(RenamedModules())

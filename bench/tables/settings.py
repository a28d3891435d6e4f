"""Sources of a row's training settings: a paper, the authors' release, their answers, or none."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from bench import registry
from bench.config import Config, Train, explain
from bench.config.overrides import literal
from bench.errors import DataError, one_message
from bench.tables.definitions import Row, StrictModel, Table, published_folder

ASSUMED = "assumed"
TOTAL_BATCH = "total_batch"
# Locations and logging; `limit` is not part of a paper's training, and stages are compared one by one.
_NO_SETTING = {
    "accumulate", "checkpoints", "compile", "deterministic", "divergence_factor", "limit", "loggers", "resume",
    "save_every_minutes", "stages",
}  # fmt: skip


_OF_COSINE = {"warmup_fraction", "warmup_start_ratio", "min_lr_ratio"}
_SAMPLING = ("sampler", "steps", "eta", "members")
"""Hyperparameters of models that sample: `members` are averaged into the forecast that CSI scores."""
_OWN_OPTIMIZERS = ("generator_lr", "discriminator_lr", "betas", "discriminator_steps", "grid_weight", "grid_samples")
"""Hyperparameters of models with `optimizers()`: how they are trained, instead of `train.lr` and `train.betas`."""
_NOT_OF_TRAIN = {"batch_size", "checkpoint", "micro_batch"}
"""Keys of a stage besides the settings of a training."""


class SettingSource(StrictModel):
    """A source of settings."""

    title: str
    kind: Literal["paper", "authors' released config", "authors' released code", "maintainers' answer"]
    url: str
    note: str

    def __str__(self) -> str:
        """Returns kind, title and address."""
        return f"{self.kind}, {self.title}: {self.url} ({self.note})"


class Setting(StrictModel):
    """One setting that a source gives."""

    key: str
    """As in the config; `total_batch`: sequences per optimiser step."""
    value: Any
    rows: tuple[str, ...] = Field(min_length=1)
    sources: tuple[str, ...] = Field(min_length=1)
    note: str | None = None


class Settings(StrictModel):
    """Known training settings of a table's rows."""

    schema_version: Literal[1]
    table: str
    sources: dict[str, SettingSource]
    assumed: str
    """Why the settings that no source gives are what they are."""
    untrained: tuple[str, ...] = ()
    """Rows without anything to train."""
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class SourcedSetting:
    """One training setting of a run and where it comes from."""

    key: str
    value: Any
    sources: tuple[str, ...]
    """Kind, title and address of each source; empty if the setting is assumed."""
    note: str
    """Note: why it is assumed, or the source's other value."""
    differs: bool = False
    """Whether the source gives another value."""

    @property
    def kind(self) -> str:
        """Returns `assumed`, or the kinds of the sources."""
        return " and ".join(dict.fromkeys(source.partition(",")[0] for source in self.sources)) or ASSUMED


def load_settings(table: Table) -> Settings | None:
    """Returns the known training settings of a table's rows, or None if nobody has looked.

    Raises:
        DataError: the file is not valid.
    """
    if table.settings is None:
        return None
    path = published_folder() / "settings" / table.settings
    try:
        found = Settings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(one_message(f"{path} is not valid:", explain(error, Settings))) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    unknown = sorted({name for one in found.settings for name in one.sources if name not in found.sources})
    if unknown:
        raise DataError(f"{path} is not valid: sources that are not described: {', '.join(unknown)}")
    return found


def overrides_of(table: Table, row: Row, given: Sequence[str], seed: int) -> tuple[str, ...]:
    """Returns the config of a row as Hydra overrides: the paper's training, then the caller's overrides."""
    options = tuple(f"model.{key}={literal(value)}" for key, value in row.options.items())
    options += tuple(f"task.{key}={literal(value)}" for key, value in table.task_options_of(row).items())
    paper = row.experiment or table.experiment
    own = tuple(word for word in given if not word.startswith("seed="))
    return (f"task={table.task}", f"model={row.model}", *options, *paper, *own, f"seed={seed}")


def forecast_settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Yields key and value of settings outside `train` that affect forecasts, scores and the loss."""
    card = registry.find("model", config.model.name).card()
    for key, value in config.task.options.items():
        yield f"task.{key}", value
    own = {"stages": "of each stage", "training_loss": "of the model"}
    given = {**card.presets.get(config.task.name, {}), **config.model.options}
    if "loss" in card.parameters:
        yield "loss", given.get("loss", _literal_or_text(card.parameters["loss"]))
    else:
        yield "loss", next((said for name, said in own.items() if name in card.methods), "mse")
    named: tuple[str, ...] = _SAMPLING if "sample" in card.methods else ()
    named += _OWN_OPTIMIZERS if "optimizers" in card.methods else ()
    for key in named:
        if key in card.parameters:
            yield f"model.{key}", given.get(key, _literal_or_text(card.parameters[key]))
    if config.evaluate.members is not None:
        yield "evaluate.members", config.evaluate.members


def _literal_or_text(source: str) -> Any:
    """Returns the value of a default's source text; the text itself if it is not a literal."""
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def is_trained(table: Table, row: str) -> bool:
    """Returns whether a row, given by its key, has anything to train, as far as is known."""
    known = load_settings(table)
    return known is None or row not in known.untrained


def sourced_settings(table: Table, row: str, config: Config) -> list[SourcedSetting]:
    """Returns every training setting of a run of a row, with its source.

    For a row without training, these are the settings of its sampling, if any.

    Args:
        table: The table.
        row: Key of the row.
        config: Config of the run; differences from a source are marked.
    """
    known = load_settings(table)
    stated = [*training_settings(config), *forecast_settings(config)]
    if not is_trained(table, row):
        samples = "sample" in registry.find("model", config.model.name).card().methods
        stated = [pair for pair in forecast_settings(config) if samples and pair[0] != "loss"]
    given = {one.key: one for one in known.settings if row in one.rows} if known else {}
    why = "no source gives it" if known else "no source was looked for"
    if known and is_trained(table, row) and not any(key.startswith(("train.", TOTAL_BATCH)) for key in given):
        why = known.assumed
    found = []
    for key, value in stated:
        if key not in given:
            found.append(SourcedSetting(key, value, (), why))
            continue
        one = given[key]
        assert known is not None
        differs = not equal(value, one.value)
        said = [f"the source says {_shown(one.value)}"] if differs else []
        note = "; ".join([*said, *([one.note] if one.note else [])])
        found.append(SourcedSetting(key, value, tuple(str(known.sources[name]) for name in one.sources), note, differs))
    return found


def total_batch(config: Config, stage: str = "") -> int:
    """Returns the sequences per optimiser step over all devices, of the training or of a stage."""
    return int(config.train.stages.get(stage, {}).get("batch_size", config.data.batch_size))


def micro_batch(config: Config) -> int:
    """Returns the sequences that one device takes at a time, according to the config."""
    return config.micro_batch_limit


def stage_settings(config: Config) -> dict[str, Train]:
    """Returns the settings of each stage that the config names, by stage."""
    base = {**config.train.model_dump(), "stages": {}}
    return {
        name: Train.model_validate({**base, **{key: value for key, value in own.items() if key not in _NOT_OF_TRAIN}})
        for name, own in config.train.stages.items()
    }


def training_settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Yields key and value of all settings that affect a training, for each stage if the config names stages."""
    stages = stage_settings(config)
    own_rates = "optimizers" in registry.find("model", config.model.name).card().methods
    for name, train in stages.items() or [("", config.train)]:
        prefix = f"train.stages.{name}." if name else "train."
        schedule = "constant" if _is_constant(train) else train.schedule
        yield f"{prefix}{TOTAL_BATCH}" if name else TOTAL_BATCH, total_batch(config, name)
        for key, value in train.model_dump(mode="json").items():
            if key in _NO_SETTING or (key == "max_steps" and value is None):
                continue
            if (key in _OF_COSINE and schedule != "cosine") or (own_rates and key in ("lr", "betas")):
                continue
            if isinstance(value, dict):
                yield from ((f"{prefix}{key}.{part}", own) for part, own in value.items())
            else:
                yield f"{prefix}{key}", value
        if train.schedule == "cosine":  # the default, which a dump leaves out
            yield f"{prefix}schedule", schedule
    yield "seed", config.seed


def _is_constant(train: Train) -> bool:
    """Returns whether the learning rate is constant: a cosine without warm-up that ends where it starts."""
    return train.schedule == "cosine" and not train.warmup_fraction and train.min_lr_ratio == 1


def summary_lines(settings: list[SourcedSetting]) -> list[str]:
    """Returns one line per kind of source with its settings."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in settings:
        kind = f"differ from the {one.kind}" if one.differs else one.kind
        why = one.note if one.kind == ASSUMED or one.differs else ""
        groups.setdefault((kind, why), []).append(f"{one.key}={_shown(one.value)}")
    return [f"{kind}{f' ({why})' if why else ''}: {' '.join(shown)}" for (kind, why), shown in groups.items()]


def setting_lines(settings: list[SourcedSetting]) -> list[str]:
    """Returns a line per setting with its kind of source, then reasons for assumed ones, and the sources."""
    width = max((len(f"{one.key}={_shown(one.value)}") for one in settings), default=0)
    lines = []
    for one in settings:
        shown, note = f"{one.key}={_shown(one.value)}", one.note if one.sources else ""
        lines.append(f"{shown:<{width}}  {one.kind}" + (f": {note}" if note else ""))
    lines += [f"{ASSUMED}: {why}" for why in dict.fromkeys(one.note for one in settings if not one.sources)]
    return lines + [f"source: {source}" for source in dict.fromkeys(s for one in settings for s in one.sources)]


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value).replace('"', "")


def equal(one: Any, other: Any) -> bool:
    """Returns whether two values of a setting are the same: numbers to rounding, lists as tuples."""
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=1e-9)
    return json.dumps(one) == json.dumps(other)

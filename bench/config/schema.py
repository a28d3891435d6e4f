"""The run's config: composed by Hydra, checked by pydantic, named by a fingerprint.

Hydra decides which value a key has; the classes here decide whether it is allowed.  Both happen before any data is
read.  `task` and `model` are open groups: besides `name` they hold the fields of the task and the hyperparameters of
the model, which are checked against what the registered class accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from bench import registry
from bench.api import Split
from bench.cards import TARGET
from bench.config.messages import ACCUMULATE, explain, instead_of_accumulate
from bench.errors import ConfigError, did_you_mean, one_message

ADDRESSES = {
    "data": ("root", "test_root"),
    "results": ("root",),
    "train": ("checkpoints",),
    "": ("work", "checkpoint"),
}
"""Keys that hold a path or URL, by section; those of the top level are under an empty name."""
BUDGETS = ("max_cpu_s", "max_device_s")
"""Keys of `train` that limit a training's compute."""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    if isinstance(value, Mapping):
        for item in value.values():
            _finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _finite(item)
    return value


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")
    return value


Finite = Annotated[float, BeforeValidator(_not_boolean), AfterValidator(_finite)]
Count = Annotated[int, BeforeValidator(_not_boolean)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Open(BaseModel):
    """A group whose further keys belong to the registered class that `name` names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_]+$")

    @property
    def options(self) -> dict[str, Any]:
        """Returns the keys besides `name`."""
        return _finite(dict(self.model_extra or {}))


class Data(Section):
    """The location of the data, and how they are loaded."""

    root: str | None = None
    """Folder of the data set."""
    test_root: str | None = None
    """Evaluate on this data set instead of `root`; the evaluated split must not share events with the training data."""
    batch_size: Count = Field(8, ge=1)
    """Sequences of one optimiser step, over all devices."""
    micro_batch: Literal["auto"] | Annotated[Count, Field(ge=1)] = "auto"
    """Sequences that one device takes at a time, in training and evaluation; `auto`: see `bench.engine.micro_batch`.
    It changes numbers by rounding only, except for models with batch statistics, where it is part of the identity."""
    num_workers: Literal["auto"] | Annotated[Count, Field(ge=0)] = "auto"
    """Loader processes per device; `auto`: none if the CPU computes, else its share of the cores, at most 8."""
    timeout_s: Count = Field(120, ge=0)
    """Seconds without data from a loader process after which the run ends; 0 waits forever."""


class EarlyStopping(Section):
    """When to stop, and which checkpoint counts as best."""

    monitor: str = "val/loss"
    """The validation loss, or any score of the task, e.g. `val/csi_m`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """`auto`: the direction of the score itself."""
    patience: Count = Field(20, ge=1)


class Train(Section):
    """The optimiser and its schedule; defaults are those that the Earthformer paper's released configs share.

    Their specs of the six data sets differ in `lr`, `weight_decay` and patience.
    """

    max_epochs: Count = Field(100, ge=1)
    max_steps: Count | None = Field(None, ge=1)
    """Stop after this many optimiser steps; the schedule then ends there."""
    max_cpu_s: Finite | None = Field(None, gt=0)
    """A budget in processor seconds of the training steps, over all threads and processes except those of the loaders.
    A few steps are timed first, and the training is then that of `max_steps=N`. `max_epochs` does not end it, and
    validation does not count."""
    max_device_s: Finite | None = Field(None, gt=0)
    """The same in seconds of each device: wall time of training steps, including waits for data."""
    limit: Count | None = Field(None, ge=1)
    """Train on the first `limit` sequences only; the record then says `scope: partial`."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Finite = Field(1e-3, gt=0)
    weight_decay: Finite = Field(0.0, ge=0)
    """Applies to weights with two or more dimensions, never to norms and biases."""
    warmup_fraction: Finite = Field(0.2, ge=0, lt=1)
    min_lr_ratio: Finite = Field(1e-3, ge=0, le=1)
    """Where the cosine ends, as a share of `lr`."""
    clip_norm: Finite | None = Field(1.0, gt=0)
    warmup_start_ratio: Finite = Field(0.0, ge=0, le=1)
    """Where the warm-up starts, as a share of `lr`."""
    ema_decay: Finite | None = Field(None, gt=0, lt=1)
    """Evaluate a running average of the weights with this decay, e.g. 0.999."""
    ema_warmup: bool = False
    """The decay of the n-th update is at most (1 + n) / (10 + n)."""
    betas: tuple[Finite, Finite] | None = None
    """Betas of Adam and AdamW; None for their defaults."""
    schedule: Literal["cosine", "onecycle", "plateau"] = "cosine"
    """`cosine`: linear warm-up, then cosine decay; `onecycle`: `torch.optim.lr_scheduler.OneCycleLR` with its defaults,
    over all steps. From `lr` / 25 up to `lr` for 30 % of them, then down to `lr` / 250,000, and momentum (Adam's first
    beta) the other way between 0.95 and 0.85. `plateau`: no warm-up, and a tenth of the rate after more than
    `plateau_patience` validations without a lower loss (`torch.optim.lr_scheduler.ReduceLROnPlateau`)."""
    plateau_patience: Count = Field(10, ge=0)
    """Validations without a lower loss before the schedule `plateau` lowers the rate."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products on a GPU, in training and evaluation. `highest`: float32, as used by
    Earthformer's authors (the default of their PyTorch 1.12.1); `high`: TF32, as used by PreDiff's authors, and several
    times as fast; `medium`: bfloat16. Convolutions may use TF32 in all three, as they did in both papers."""
    compile: bool = False
    """Compile the model with `torch.compile`, for training and evaluation."""
    deterministic: bool | Literal["warn"] = False
    """Use only deterministic operations on a GPU: slower, see decision 10. A CPU gives equal bits without it."""
    early_stopping: EarlyStopping = EarlyStopping()
    val_every_epochs: Count = Field(1, ge=1)
    val_every_steps: Count | None = Field(None, ge=1)
    """Instead of `val_every_epochs`: optimiser steps between validations; the last step is followed by one, too."""
    stages: dict[str, dict[str, Any]] = {}
    """For a model that is trained in stages: by stage, settings that differ from those above and from
    `data.batch_size` and `data.micro_batch`. `checkpoint`: a file of weights to use instead of training that stage."""
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = ["csv", "tensorboard"]
    """`wandb` and `mlflow` need the extras of the same name."""
    resume: bool | Literal["anyway"] = True
    """Resume a stopped run; `anyway` also after the code or the libraries changed."""
    checkpoints: str | None = None
    """Where checkpoints go: a folder or an fsspec URL; None for the run's own folder."""
    save_every_minutes: Finite | None = Field(30.0, gt=0)
    """Save a checkpoint at this interval, besides the end of every epoch."""
    divergence_factor: Finite | None = Field(1e4, gt=1)
    """A loss of more than this multiple of the first one ends the run."""

    @field_validator("schedule")
    @classmethod
    def _refuse_ignored_settings(cls, schedule: str, info: ValidationInfo) -> str:
        """Refuses settings that the schedule would ignore."""
        keys = ["warmup_fraction", "warmup_start_ratio", "min_lr_ratio", *(["betas"] if schedule == "onecycle" else [])]
        default = {key: cls.model_fields[key].default for key in keys}
        given = [f"{key}={info.data[key]}" for key in keys if info.data.get(key, default[key]) != default[key]]
        if schedule != "cosine" and given:
            ways = ", ".join(f"{key}={'null' if value is None else value}" for key, value in default.items())
            raise ValueError(
                f"has its own warm-up, last rate and momentum, found {', '.join(given)}; expected the defaults ({ways})"
            )
        return schedule

    @field_validator("max_cpu_s", "max_device_s")
    @classmethod
    def _refuse_second_limit(cls, budget: float | None, info: ValidationInfo) -> float | None:
        """Refuses a budget beside another one or beside a number of steps."""
        given = [f"{key}={info.data[key]:g}" for key in ("max_steps", *BUDGETS) if info.data.get(key) is not None]
        if budget is not None and given:
            raise ValueError(
                f"a budget decides the number of steps, found {', '.join(given)} beside it; expected one of "
                f"max_steps, {', '.join(BUDGETS)}, and null for the others"
            )
        return budget

    @field_validator("val_every_steps")
    @classmethod
    def _refuse_second_interval(cls, steps: int | None, info: ValidationInfo) -> int | None:
        """Refuses two intervals between validations."""
        epochs = info.data.get("val_every_epochs", 1)
        if steps is not None and epochs != 1:
            raise ValueError(f"found val_every_epochs={epochs} beside it; expected one of the two")
        return steps

    @property
    def budget(self) -> tuple[str, float] | None:
        """Returns the key of the compute budget and its seconds, if there is one."""
        given = [(key, getattr(self, key)) for key in BUDGETS if getattr(self, key) is not None]
        return given[0] if given else None

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out unset keys that are newer than existing records and checkpoints, whose names then stay valid."""
        plain: dict[str, Any] = handler(self)
        if plain.get("schedule") != "plateau":
            plain.pop("plateau_patience", None)
        if plain.get("schedule") == "cosine":
            del plain["schedule"]
        for key in (*BUDGETS, "val_every_steps"):
            if plain.get(key) is None:
                plain.pop(key, None)
        return plain


class Evaluate(Section):
    """Ensembles and further metrics in the evaluation."""

    members: Count | None = Field(None, ge=1)
    """Members that a model with `sample` draws per sequence; 1 scores a deterministic model as an ensemble of one."""
    member_seed: Count = Field(0, ge=0, lt=2**32)
    """Seeds the members of a sequence, together with its index."""
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], dict[str, Any]] = {}
    """Metrics besides the task's: options by registered name, or by any name with `metric: NAME` among them.  Other
    options are as in the task."""

    @model_serializer(mode="wrap")
    def _without_empty_metrics(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `metrics` out if empty, because older records were named without the key."""
        plain: dict[str, Any] = handler(self)
        if not plain.get("metrics"):
            plain.pop("metrics", None)
        return plain


class Results(Section):
    """Where records are written."""

    root: str = "results"
    """Records go to ROOT/runs; a folder or an fsspec URL (s3://...)."""


class Config(Section):
    """One run: train (unless the model has nothing to train), then evaluate, then publish a record."""

    task: Open
    model: Open
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    results: Results = Results()
    split: Split = "test"
    limit: Count | None = Field(None, ge=1)
    """Evaluate the first `limit` sequences only; the record then says `scope: partial`."""
    checkpoint: str | None = None
    """Weights to evaluate, for `earthbench evaluate`."""
    seed: Count = Field(0, ge=0, lt=2**32)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`: CUDA if available, else the CPU; Apple's `mps` by name only."""
    devices: Count = Field(1, ge=1)
    """Processes per node, each on a device of its own."""
    nodes: Count = Field(1, ge=1)
    """Machines; a cluster's launcher starts the processes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """`auto`: DDP for several devices; `fsdp`: weights in shards."""
    work: str = "outputs"
    """Checkpoints, logs and pictures: WORK/TASK/MODEL/FINGERPRINT."""
    picture: bool = True
    """Whether to draw context, target and forecast of the first sequence."""
    progress: bool = True

    @property
    def micro_batch_limit(self) -> int:
        """Returns the largest micro-batch that the config allows: sequences that one device takes at a time.

        Models with batch statistics use exactly this one, because their numbers must not depend on the device.
        """
        share = math.ceil(self.data.batch_size / (self.devices * self.nodes))
        return share if self.data.micro_batch == "auto" else min(self.data.micro_batch, share)


def validate(plain: Mapping[str, Any]) -> Config:
    """Returns the checked config for plain containers.

    Raises:
        ConfigError: names every key and value that is wrong, what was expected, and the nearest key.
    """
    for kind in ("task", "model"):
        group = plain.get(kind)
        if isinstance(group, Mapping) and isinstance(group.get("name"), str):
            registry.find(kind, group["name"])
    train, data = plain.get("train"), plain.get("data")
    if isinstance(train, Mapping) and ACCUMULATE in train:
        micro_batch = data.get("batch_size", Data().batch_size) if isinstance(data, Mapping) else Data().batch_size
        raise ConfigError(f"train.{ACCUMULATE}: {instead_of_accumulate(train[ACCUMULATE], micro_batch)}")
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(one_message("the config is not valid:", explain(error, Config))) from error
    _refuse_empty_addresses(config)
    for group in (config.task, config.model):
        try:
            _finite(group.options)
        except ValueError as error:
            raise ConfigError(f"the config is not valid: {group.name}: {error}") from error
    check_hyperparameters(config.model.name, config.model.options)
    return config


def _refuse_empty_addresses(config: Config) -> None:
    for section, keys in ADDRESSES.items():
        part = getattr(config, section) if section else config
        for key in keys:
            if getattr(part, key) == "":
                name = f"{section}.{key}" if section else key
                raise ConfigError(
                    f"{name}=: expected a path or an address, found an empty text. Give one, or leave it out"
                )


def check_hyperparameters(model: str, given: Mapping[str, Any]) -> None:
    """Refuses hyperparameters that the model's constructor does not have, from its source, without importing it.

    Raises:
        ConfigError: names the unknown hyperparameters and the nearest known ones.
    """
    card = registry.find("model", model).card()
    known = [*card.parameters, *([TARGET] if card.widths else [])]
    unknown = [] if card.accepts_any_parameter else [key for key in given if key not in known]
    if unknown:
        lines = [f"model.{key}: {did_you_mean(key, known)}" for key in unknown]
        raise ConfigError(one_message(f"model {model!r} has no such hyperparameter:", lines))

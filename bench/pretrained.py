"""Trained weights to share, as a folder or a repository of the Hugging Face Hub, with a model card.

    model = bench.load_model("unet", task, weights="outputs/.../best.ckpt")
    bench.as_pretrained(model, record, license="cc-by-4.0").save_pretrained("folder")  # or .push_to_hub("owner/name")
    bench.load_model("unet", task, weights="folder")  # or hf://owner/name

A folder has `model.safetensors`, `config.json` (the model's arguments, the identity of its training, all its scores)
and the card, `README.md`, with the main scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from torch import Tensor, nn

from bench import registry
from bench.checkpoint_format import OURS, SHARED, SHARED_CONFIG
from bench.config.overrides import literal
from bench.errors import ConfigError
from bench.files import sha256_of
from bench.models import made_for, made_from, trained, trained_hyperparameters
from bench.records.schema import RunRecord, TrainingSummary
from bench.tables.terminal import main_columns

_LIBRARY = "earthbench"


class PretrainedModel(nn.Module, PyTorchModelHubMixin, library_name=_LIBRARY):
    """A registered model with trained weights, and `save_pretrained` and `from_pretrained` of `huggingface_hub`.

    Args:
        name: The registered model.
        input_shape: `(T, H, W, C)` of a context.
        target_shape: `(T, H, W, C)` of a forecast.
        hyperparameters: The model's.
        preset: Whether they are its preset for the task.
        task: The task's name.
        task_options: The task's options that differ from the defaults.
        trained: `identity` and `events` from the checkpoint.
        training: The training's `TrainingSummary` as JSON.
        scores: All scores of the record.
        main_scores: Names of the scores that the card shows.
        members: Number of ensemble members behind the scores; None for a deterministic forecast.
        member_seed: Seed of the members.
        data: Description of the data that they were scored on.
        license: Licence of the weights, by its name on the Hub.
    """

    def __init__(
        self,
        *,
        name: str,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        hyperparameters: dict[str, Any],
        preset: bool = False,
        task: str = "",
        task_options: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        scores: dict[str, Any] | None = None,
        main_scores: Sequence[str] = (),
        members: int | None = None,
        member_seed: int = 0,
        data: str = "",
        license: str = "",
    ) -> None:
        super().__init__()
        context, target = tuple(input_shape), tuple(target_shape)
        self.model = made_for(registry.find("model", name).load(), context, target, hyperparameters)  # type: ignore[arg-type]

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast `(B, T_out, H, W, C)` of contexts `(B, T_in, H, W, C)`, both normalised."""
        forecast: Tensor = self.model(context)
        return forecast

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes the weights and `config.json` with their SHA-256, and removes the card of earlier weights."""
        (save_directory / "README.md").unlink(missing_ok=True)  # the mixin keeps an existing card
        super()._save_pretrained(save_directory)
        text = json.dumps({**self._said(), "sha256": sha256_of(save_directory / SHARED)}, sort_keys=True, indent=1)
        (save_directory / SHARED_CONFIG).write_text(text + "\n", encoding="utf-8")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Returns the card: identity, scores, licence, and the command that scores the weights."""
        return ModelCard(_card(self._said()))

    def _said(self) -> dict[str, Any]:
        """Returns the constructor's arguments, which the mixin keeps."""
        config = self._hub_mixin_config
        assert isinstance(config, dict)
        return config


def as_pretrained(model: nn.Module, record: RunRecord | None = None, *, license: str = "") -> PretrainedModel:
    """Returns a model that can be saved and shared with its card.

    Args:
        model: Its weights were loaded by `load_model(..., weights=...)` or `load_weights`.
        record: A record of these weights, whose scores and training go on the card and whose sampler the model gets.
        license: Licence of the weights by its name on the Hub, e.g. `cc-by-4.0`.

    Raises:
        ConfigError: the origin of the weights is unknown, or the record belongs to other weights.
    """
    made, known = made_from(model), trained(model)
    if known is None or known.identity is None or made.task is None:
        raise ConfigError(
            f"model {made.name!r}: only weights whose training is known can be shared; load a checkpoint of a run: "
            "bench.load_model(name, task, weights=FILE)"
        )
    if record is not None and record.checkpoint_sha256 not in (None, known.sha256):
        raise ConfigError(
            f"record {record.run_id} is of other weights: SHA-256 {record.checkpoint_sha256}, expected {known.sha256}"
        )
    task, defaults = made.task, made.task.defaults()
    own = trained_hyperparameters(model)
    scored_with = {k: v for k, v in record.model.hyperparameters.items() if k not in own} if record else {}
    hyperparameters = {**made.hyperparameters, **scored_with}
    training: TrainingSummary | None = record.training if record else None
    events = {
        split: {"ids": sorted(part.ids), "contents": sorted(part.contents)} for split, part in known.events.items()
    }
    shared = PretrainedModel(
        name=made.name,
        input_shape=list(task.input_shape),
        target_shape=list(task.target_shape),
        hyperparameters=hyperparameters,
        preset=made.preset and hyperparameters == made.hyperparameters,
        task=task.name,
        task_options={key: value for key, value in task.fields().items() if value != defaults.get(key)},
        trained={"identity": known.identity.model_dump(mode="json"), "events": events},
        training=training.model_dump(mode="json") if training else None,
        scores=dict(record.scores) if record else None,
        main_scores=[column.key for column in main_columns(record)] if record else [],
        members=record.members.count if record and record.members else None,
        member_seed=record.members.seed if record and record.members else 0,
        data=_data(record),
        license=license,
    )
    shared.model.load_state_dict(model.state_dict())
    return shared


def _data(record: RunRecord | None) -> str:
    if record is None or record.data is None:
        return ""
    data = record.data
    return (
        f"{data.origin}, {data.split} split, {data.sequence_count} sequences ({record.scope}), fingerprint "
        f"{data.fingerprint[:16]}; record {record.run_id}"
    )


def _card(config: dict[str, Any]) -> str:
    identity = config[OURS]["identity"]
    tags = ["earth-system-forecasting", config["task"], config["name"]]
    about = ModelCardData(library_name=_LIBRARY, tags=tags, license=config["license"] or None)
    words = [f"task={config['task']}", *(f"task.{k}={literal(v)}" for k, v in config["task_options"].items())]
    words += [f"model={config['name']}"]
    if not config["preset"]:
        words += [f"model.{k}={literal(v)}" for k, v in config["hyperparameters"].items()]
    if config["members"]:
        words += [f"evaluate.{key}={config[key]}" for key in ("members", "member_seed") if config[key]]
    lines = [
        f"# {config['name']} on {config['task']}",
        "",
        f"- context {tuple(config['input_shape'])}, forecast {tuple(config['target_shape'])}: (T, H, W, C)",
        f"- trained with seed {identity['seed']} on {identity['train']['sequence_count']} sequences, version "
        f"{identity['task_version']} of the task",
        f"- licence: {config['license'] or 'not stated'}",
        "",
        "Score them:",
        "",
        "```sh",
        f"earthbench evaluate {' '.join(words)} checkpoint=ADDRESS data.root=DIR",
        "```",
    ]
    if config["scores"]:
        shown = {key: config["scores"].get(key) for key in config["main_scores"]}
        lines += ["", f"Scores ({config['data']}):", "", "| score | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in shown.items() if value is not None]
    return f"---\n{about.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"

"""The stored form of a config, and the fingerprint of its settings that can change a number."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.config.schema import Config
from bench.safe_text import content_without_secrets

# Settings that never change a number: locations and speed.
_NOT_IN_FINGERPRINT = {
    "data": {"root", "test_root", "micro_batch", "num_workers", "timeout_s"},
    "results": {"root"},
    "train": {"loggers", "resume", "checkpoints", "save_every_minutes", "divergence_factor"},
}
_NOT_IN_FINGERPRINT_TOP = {"work", "device", "devices", "nodes", "strategy", "progress", "picture"}
# Further settings that trained weights do not depend on.
_EVALUATION_ONLY = {"split", "limit", "checkpoint", "evaluate"}


def canonical_json(content: Any) -> str:
    """Returns JSON text that is equal for equal content: with sorted keys, without spaces and NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(content: Any) -> str:
    """Returns the SHA-256 of the canonical JSON of plain content."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def stored(config: Config) -> dict[str, Any]:
    """Returns a config as stored in records, checkpoints and logs: JSON types, without credentials.

    The folders of results and work are made relative if they lie in the current folder: a sweep makes them absolute
    for its launcher, and records are read on other machines.
    """
    content = dict(content_without_secrets(config.model_dump(mode="json")))
    content["results"]["root"], content["work"] = map(_relative_to_cwd, (content["results"]["root"], content["work"]))
    return content


def _relative_to_cwd(folder: str) -> str:
    path, here = Path(folder), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else folder


def numbers_only(config: Config, *, training: bool = False) -> dict[str, Any]:
    """Returns the part of a config that can change a number: without paths, device, workers, loggers.

    Args:
        config: The whole config.
        training: Only what can change trained weights.
    """
    return numbers_of(stored(config), training=training)


def numbers_of(config: Mapping[str, Any], *, training: bool = False) -> dict[str, Any]:
    """Returns the same as `numbers_only`, for a config as plain containers, possibly of another schema."""
    plain = copy.deepcopy(dict(config))
    for section, keys in _NOT_IN_FINGERPRINT.items():
        plain[section] = {k: v for k, v in plain[section].items() if k not in keys}
    plain["train"]["deterministic"] = "warn"  # like the device, it makes no other run; earlier records had this value
    stop = plain["train"]["early_stopping"]
    if (stop["monitor"], stop["mode"]) == ("val/loss", "auto"):
        stop["mode"] = "min"  # the same training, under the default's name in older records
    left_out = _NOT_IN_FINGERPRINT_TOP | (_EVALUATION_ONLY if training else set())
    return {k: v for k, v in plain.items() if k not in left_out}

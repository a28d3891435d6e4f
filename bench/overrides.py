"""Values as Hydra's override grammar writes them."""

from __future__ import annotations

from typing import Any


def literal(value: Any) -> str:
    """Returns a JSON value as the right side of an override: `null`, `true`, `[16,32]`, `0.001`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    return str(value)

"""Values as Hydra's override grammar writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_STRUCTURE = set("'\"\\()[]{}")
_UNKNOWN = re.compile(r"[^\w\s,.:/$%*@?|+-]", re.ASCII)
"""Characters that Hydra's grammar takes in quotes only."""


def literal(value: Any) -> str:
    """Returns a JSON value as the right side of an override: `null`, `true`, `[16,32]`, `0.001`, `'/home/jörg'`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and "${" not in value and _needs_quotes(value):
        from hydra.core.override_parser.types import Quote, QuotedString

        return str(QuotedString(value, Quote.single).with_quotes())
    return str(value)


def _needs_quotes(text: str) -> bool:
    return text != text.strip() or not _STRUCTURE.isdisjoint(text) or "," in text or bool(_UNKNOWN.search(text))


def is_sweep(override: str) -> bool:
    """Returns whether an override has several values; one that does not parse has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:
        return False


def quoted(overrides: Sequence[str]) -> list[str]:
    """Returns overrides with `~/folder`, `données.nc` and `runs/lr=0.1` in quotes, which Hydra's grammar requires."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        text = _UNKNOWN.search(value) and not set(value) & _STRUCTURE
        found.append(key + equals + ",".join(f"'{part}'" for part in value.split(",")) if text else override)
    return found

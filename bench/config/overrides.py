"""Values as Hydra's override grammar writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Values that Hydra's grammar takes in quotes only, though they are one plain path or several: `~/a`, `/home/jörg/a`.
_TO_QUOTE = re.compile(r"^[^=\s]+=(~|[\x00-\x7f]*[^\x00-\x7f])")
# Texts that it takes as they are.
_PLAIN = re.compile(r"[\w./+@%:?*|$-]+( +[\w./+@%:?*|$-]+)*", re.ASCII)


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
    if isinstance(value, str) and value and "${" not in value and not _PLAIN.fullmatch(value):
        from hydra.core.override_parser.types import Quote, QuotedString

        return str(QuotedString(value, Quote.single).with_quotes())
    return str(value)


def is_sweep(override: str) -> bool:
    """Returns whether an override has several values; one that does not parse has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:
        return False


def quoted(overrides: Sequence[str]) -> list[str]:
    """Returns overrides with `~/folder` and `/home/jörg` in quotes: Hydra's grammar takes no such value without."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        bare = _TO_QUOTE.match(override) and not set(value) & set("'\"[](){}")
        found.append(key + equals + ",".join(f"'{part}'" for part in value.split(",")) if bare else override)
    return found

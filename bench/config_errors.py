"""What is wrong with a config, in words: one line per problem."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import did_you_mean

ACCUMULATE = "accumulate"
"""A key of `train` until schema 3 of the records."""


def explain(error: ValidationError, schema: type[BaseModel], *, prefix: str = "") -> list[str]:
    """Returns one line per problem of a pydantic error: key, value found, what was expected, nearest key."""
    lines = []
    for problem in error.errors():
        *parents, last = [str(part) for part in problem["loc"]] or [""]
        where = prefix + ".".join([*parents, last])
        if problem["type"] == "extra_forbidden" and last == ACCUMULATE:
            lines.append(f"{where}: {instead_of_accumulate(problem['input'], section=prefix or 'data.')}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key. {did_you_mean(last, fields_at(schema, parents))}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            lines.append(f"{where} = {problem['input']!r}: {problem['msg']}")
    return lines


def instead_of_accumulate(accumulate: Any, micro_batch: Any = None, section: str = "data.") -> str:
    """Returns how an accumulation of so many batches is written now.

    Args:
        accumulate: The value of the old key.
        micro_batch: What `data.batch_size` was, if that is known.
        section: Where the keys go: a stage's own, or `data.`.
    """
    own = micro_batch or "N"
    total, rest = f"N times {accumulate}", ", with N the size of a batch till now"
    with suppress(TypeError, ValueError):
        total, rest = str(int(accumulate) * int(micro_batch)), ""
    return (
        f"there is no such key any more: {section}batch_size is the total batch of an optimiser step over all devices, "
        f"{section}micro_batch what one device takes at a time. Instead of {ACCUMULATE}={accumulate} with a batch size "
        f"of {own}, write {section}batch_size={total} {section}micro_batch={own}{rest}"
    )


def fields_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Returns the keys that a schema has below a path; none where there is no section."""
    for part in path:
        inner = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)

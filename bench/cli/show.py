"""`earthbench show KIND NAME`: describes a registered object without importing torch; `show pattern NAME` draws."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.api import Picture
from bench.cards import TARGET
from bench.cli.printing import print, wrapped
from bench.errors import ConfigError, UnknownNameError, UsageError, did_you_mean
from bench.files import replacing

_SOURCE_WIDTH = 100
"""Where docstrings are wrapped: a line ends before the first word that would exceed it."""
EXAMPLES = (
    "earthbench show model unet",
    "earthbench show table earthformer/sevir",
    "earthbench show pattern axial --size 6,4,4 --out axial.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    pictures = registry.names("picture")
    parser.add_argument("kind", type=_kind, choices=[*registry.KINDS, *pictures])
    parser.add_argument("name", nargs="?", help=f"optional for {', '.join(pictures)}: without it, the names are listed")
    parser.add_argument("--size", type=_size, metavar="T,H,W", help="grid that a picture is for, e.g. 6,4,4")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw to this file (.png, .svg, .pdf)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def _kind(text: str) -> str:
    for kind in registry.KINDS:
        if kind != "picture" and text in registry.names(kind):
            raise argparse.ArgumentTypeError(f"{text!r} is a {kind}: `earthbench show {kind} {text}`")
    return text


def _size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        size = ()
    if len(size) != 3 or min(size) < 1:
        raise argparse.ArgumentTypeError(f"expected three positive numbers T,H,W such as 6,4,4, found {text!r}")
    return size


def run(options: argparse.Namespace) -> int:
    """Prints the object's description, and draws it if `--out` is given."""
    if options.kind in registry.names("picture"):
        shown = _picture(options)
    elif options.size is not None or options.out is not None:
        raise UsageError(f"--size and --out are for {', '.join(registry.names('picture'))}, not for a {options.kind}")
    elif options.name is None:
        raise UsageError(f"earthbench show {options.kind}: expected a name, see `earthbench list {options.kind}s`")
    else:
        shown = _registered(options.kind, options.name)
    if options.format == "json":
        print(json.dumps(shown, indent=1, default=str))
    else:
        _print(shown)
    return 0


def _registered(kind: registry.Kind, name: str) -> dict[str, Any]:
    entry = registry.find(kind, name)
    card = entry.card()
    shown: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "origin": entry.origin,
        "summary": card.summary,
    }
    shown["description"] = card.doc.removeprefix(card.summary).lstrip() or card.doc
    if entry.kind in ("model", "metric"):
        shown["hyperparameters" if entry.kind == "model" else "options"] = card.parameters
    if entry.kind == "model":
        shown["presets"] = card.presets
        shown["widths"] = {f"model.{TARGET}=N scales": ", ".join(card.widths)} if card.widths else "not scaled"
    elif entry.kind == "task":
        shown |= _task(entry.name)
    elif entry.kind == "table":
        shown |= _table(entry.name)
    return shown


def _picture(options: argparse.Namespace) -> dict[str, Any]:
    picture: Picture = registry.find("picture", options.kind).load()
    names = picture.names()
    if options.name is None:
        return {f"{options.kind}s": names}
    if options.name not in names:
        raise UnknownNameError(f"unknown {options.kind} {options.name!r}. {did_you_mean(options.name, names)}")
    size = {} if options.size is None else {"size": options.size}
    try:
        shown = {"name": options.name, **picture.describe(options.name, **size)}
        if options.out is not None:
            drawn = picture.draw(options.name, options.out.suffix.removeprefix(".") or "png", **size)
            with replacing(options.out.expanduser()) as part:
                part.write_bytes(drawn)
            shown["picture"] = str(options.out)
    except ValueError as error:
        raise ConfigError(f"{options.kind} {options.name}: {error}") from error
    return shown


def _task(name: str) -> dict[str, Any]:
    from bench.tasks import load_task

    task = load_task(name)
    return {
        "version": task.version,
        "units": task.physical_units,
        "input_shape": list(task.input_shape),
        "target_shape": list(task.target_shape),
        "cadence_minutes": task.cadence_minutes,
        "metrics": task.metrics,
        "published_sequences": task.published_sequences,
        "fields": {
            key: {"default": getattr(task, key), "meaning": field.description or ""}
            for key, field in type(task).model_fields.items()
            if key != "data_root"
        },
    }


def _table(name: str) -> dict[str, Any]:
    from bench.tables import load_table
    from bench.tables.definitions import load_published

    table = load_table(name)
    published = load_published(table.published) if table.published else None
    return {
        "title": table.title,
        "task": table.task,
        "columns": {column.key: column.label for column in table.columns},
        "rows": {row.key: row.label for row in [*table.rows, *(row for group in table.groups for row in group.rows)]}
        or "one per model that has a complete run",
        "published": published.paper if published else None,
        "note": table.note,
    }


def _print(shown: dict[str, Any], indent: str = "") -> None:
    for key, value in shown.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key}:")
            _print(value, indent + "  ")
        elif isinstance(value, str) and "\n" in value:
            print(f"{indent}{key}:")
            for line in _unwrapped(value.splitlines()) if sys.stdout.isatty() else value.splitlines():
                own = len(line) - len(line.lstrip())
                print(wrapped(f"{indent}  {line}".rstrip(), len(indent) + 2 + own))
        else:
            of_words = isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value)
            text = ", ".join(value) if of_words else "none" if value in ({}, None, "") else value
            print(wrapped(f"{indent}{key}: {text}", len(indent) + 2))


def _unwrapped(lines: Sequence[str]) -> list[str]:
    """Returns the lines of a docstring, joining those that were wrapped at the width of the source."""
    joined: list[str] = []
    before = 0
    for line in lines:
        word = line.lstrip().partition(" ")[0]
        if joined and word not in ("", "-") and before + 1 + len(word) > _SOURCE_WIDTH:
            joined[-1] += f" {line.lstrip()}"
        else:
            joined.append(line)
        before = len(line)
    return joined

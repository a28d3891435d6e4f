"""Command-line flags from the fields of a pydantic model, and the model from the flags."""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bench.config.messages import reason
from bench.errors import DataError, UsageError, did_you_mean, one_message

RESULTS = Path("results")
"""Default of `--results`."""
ModelT = TypeVar("ModelT", bound=BaseModel)


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError`: one message, with the nearest valid word."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and keeps the words: an unknown flag among them explains an error better than argparse does."""
        self._given = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises a `UsageError`."""
        for word in self._given:
            if word.startswith("--") and word.partition("=")[0] not in {"--", *self._option_string_actions}:
                raise UsageError(f"{self.prog}: unknown argument {word}. {self.suggestion(word)}")
        end = "" if message.endswith((".", "?")) else "."
        raise UsageError(f"{self.prog}: {message}{end} `{self.prog} --help` shows examples")

    def add_examples(self, examples: Sequence[str]) -> None:
        """Shows commands at the end of the help; that of a sub-command shows its own."""
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.epilog = "\n  ".join(["examples:", *examples])
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    parser.add_examples([one for one in examples if one.startswith(parser.prog)])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}. {did_you_mean(str(value), known)}")

    def suggestion(self, word: str) -> str:
        """Returns the nearest flag to an unknown one, or where the flags are listed."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        near = did_you_mean(word.partition("=")[0], flags) if word.startswith("-") else ""
        return near if near.startswith("Did") else f"`{self.prog} --help` lists what it takes."


def parse_flags(model: type[ModelT], words: Sequence[str], *, command: str, summary: str) -> ModelT:
    """Returns the model whose fields the words give as flags; `--help` prints them and exits.

    A field `events_per_file` is `--events-per-file`; one with an alias has that name.  Booleans take no value,
    sequences one with commas.

    Args:
        model: Its fields are the flags.
        words: Those of the command line.
        command: How the user called it, for messages.
        summary: For `--help`.

    Raises:
        UsageError: an unknown flag, or missing or invalid ones, which are all listed.
        SystemExit: after `--help`.
    """
    parser = Parser(prog=command, description=summary, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, field in sorted(model.model_fields.items(), key=lambda item: not item[1].is_required()):
        _add(parser, name, field)
    required = [f"{flag(name)} {name.upper()}" for name, field in model.model_fields.items() if field.is_required()]
    parser.add_examples([" ".join([command, *required])])
    options, unknown = parser.parse_known_args(list(words))
    if unknown:
        known = [flag(field.alias or name) for name, field in model.model_fields.items()]
        raise UsageError(f"{command}: unknown argument {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
    try:
        return model(**vars(options))
    except ValidationError as error:
        lines = [
            f"{flag(str(problem['loc'][0]))} {problem['input']}: {reason(problem)}"
            if problem["loc"]
            else reason(problem)
            for problem in error.errors()
        ]
        raise UsageError(one_message(f"{command} cannot run with these arguments:", lines)) from error


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds the overrides of a run as positional arguments, with `text` as their help."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=text)


def results_root(given: Path, *, may_be_made: bool = False) -> Path:
    """Returns the folder that `--results` names; the default need not exist yet.

    Raises:
        DataError: it is not a folder, or one that holds the folder that is meant.
    """
    root = given.expanduser()
    if not root.is_dir() and (root.exists() or not (may_be_made or given == RESULTS)):
        raise DataError(f"results root {str(root)!r} is not a folder. Set --results DIR")
    inner = root / RESULTS
    if not (root / "runs").exists() and (inner / "runs").is_dir():
        raise DataError(f"results root {str(root)!r} has no runs/, {str(inner)!r} has. Set --results {inner}")
    return root


def flag(name: str) -> str:
    """Returns the flag of a field."""
    return "--" + name.replace("_", "-")


def _add(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    words = [field.description or ""]
    if not field.is_required() and field.default not in (None, (), False):
        words.append(f"(default {field.default})")
    settings: dict[str, Any] = {"dest": name, "help": " ".join(words).strip().replace("%", "%%")}
    kind, named = _required_type(field.annotation), flag(field.alias or name)
    if kind is bool:
        action = argparse.BooleanOptionalAction if field.default is True else "store_true"
        parser.add_argument(named, action=action, **settings)
        return
    if get_origin(kind) in (tuple, list):
        settings |= {"type": lambda text: [part for part in text.split(",") if part], "metavar": f"{name.upper()},..."}
    else:
        settings["metavar"] = "N" if kind is int else name.upper()
    parser.add_argument(named, required=field.is_required(), **settings)


def _required_type(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)][:1]
    return annotation

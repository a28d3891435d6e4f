"""One tree of errors: each kind of failure has one exit code and one message that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from bench.safe_text import without_secrets


class EarthbenchError(Exception):
    """Base of all errors of this package; raised directly, it reports a bug of earthbench (exit code 1)."""

    exit_code = 1

    def __str__(self) -> str:
        """Returns the message with the credentials of the addresses in it masked."""
        return without_secrets(super().__str__())


class UsageError(EarthbenchError):
    """Something given to the harness is wrong: a name, a config, a path, a file (exit code 2)."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """No model, task, metric, table or key has this name."""


class NameClashError(UsageError):
    """Two distributions registered the same name."""


class BrokenPluginError(UsageError):
    """A registered object cannot be imported or is not what its group promises."""


class ConfigError(UsageError, ValueError):
    """A config key or value that is not allowed."""


class DataError(UsageError):
    """Data on disk that is missing, truncated or not in its format."""


class ContractError(UsageError):
    """A model, task or metric that breaks its contract (shape, dtype, device)."""


class NotCountableError(ContractError):
    """A model that declares that its work is done outside of torch, where it cannot be counted."""


class RunFailedError(EarthbenchError):
    """A run that started and failed: NaN, out of memory, divergence (exit code 3)."""

    exit_code = 3


class VerificationError(EarthbenchError):
    """A committed result that does not verify (exit code 4)."""

    exit_code = 4


class InterruptedRunError(EarthbenchError):
    """A run stopped by a signal after its checkpoint was written (exit code 130)."""

    exit_code = 130


_MAX_CHOICES = 40


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `Did you mean 'x'?` for the nearest choices, else the list of choices, shortened if it is long."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    more = f" and {len(known) - _MAX_CHOICES} more" if len(known) > _MAX_CHOICES else ""
    return "Known: " + (", ".join(known[:_MAX_CHOICES]) if known else "none") + more + "."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_message(headline: str, problems: list[str], *, most: int = 10) -> str:
    """Returns a headline and its problems as one message, cut after `most` lines with a count of the rest."""
    shown = [f"  - {problem}" for problem in problems[:most]]
    if len(problems) > most:
        shown.append(f"  ... and {len(problems) - most} more")
    return "\n".join([headline, *shown])


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

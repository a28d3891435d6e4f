"""`earthbench VERB ...`: finds the verb's module, runs it, and turns errors into one message and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench import registry
from bench.cli.flags import Parser
from bench.cli.printing import print
from bench.engine.trainer import leave_group
from bench.errors import EarthbenchError, RunFailedError, UsageError, did_you_mean
from bench.logs import LEVEL, log, shown_on
from bench.plugins import use_plugin_files

# Verb -> module and help.  Only the module of the verb that was asked for is imported.
VERBS = {
    "quickstart": (
        "bench.cli.quickstart",
        "make small storms, train a small UNet, end with a table and a picture",
    ),
    "list": ("bench.cli.list_names", "list registered models, tasks, metrics and tables"),
    "show": ("bench.cli.show", "show one model, task, metric or table"),
    "data": ("bench.cli.data", "describe, check, make, fetch or convert data sets"),
    "run": ("bench.cli.run", "train, evaluate and record; takes Hydra overrides"),
    "evaluate": (
        "bench.cli.evaluate",
        "evaluate a checkpoint or a model without weights; takes Hydra overrides",
    ),
    "rescore": ("bench.cli.rescore", "evaluate the weights of finished runs again, with further metrics"),
    "forecast": ("bench.cli.forecast", "forecast one sequence or file: a NetCDF file and a picture"),
    "new": ("bench.cli.new", "write a package with a model, task or metric of your own"),
    "check": ("bench.cli.check", "check a model, task or metric against its contract"),
    "ablate": ("bench.cli.ablate", "run the variants of an ablation and print its table; takes Hydra overrides"),
    "tune": ("bench.cli.tune", "try a grid of settings on the validation split; takes Hydra overrides"),
    "board": ("bench.cli.board", "run, list, print, check or draw a whole leaderboard from its YAML file"),
    "doctor": ("bench.cli.doctor", "test what a run needs on this machine; name problems and remedies"),
    "status": ("bench.cli.status", "show the state of every run of a sweep or a work folder"),
    "count": ("bench.cli.count", "count parameters and multiply-adds"),
    "table": ("bench.cli.table", "print, write or check a table"),
    "compare": ("bench.cli.compare", "test whether two runs differ beyond chance, paired over events"),
    "explain": ("bench.cli.explain", "print the receipt of one figure of a table"),
    "reproduce": ("bench.cli.reproduce", "train and evaluate the rows of a published table"),
    "report": ("bench.cli.report", "write the leaderboards as a static site"),
    "verify": ("bench.cli.verify", "check records, published figures and rendered tables"),
    "completion": ("bench.cli.completion", "print a completion script for a shell"),
    "help": ("bench.cli.help", "print the help of a verb"),
}
_READING = {"list", "show", "table", "explain", "status", "count", "compare", "completion", "help"}
"""Verbs that only print: nothing is lost when the reader closes the pipe."""
_LOG_LEVELS = {"--verbose": "DEBUG", "--quiet": "WARNING"}
_HYDRA_FLAGS = {"-m", "--multirun", "-c", "--cfg", "-cd", "--config-dir", "-i", "--info"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 (our fault), 2 (usage), 3 (run failed), 4, 130."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the same output in any locale, and every name is printable
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        arguments = _set_log_level(use_plugin_files(arguments))
        with shown_on("stderr"):
            code = _dispatch(arguments)
            leave_group()
            return code
    except EarthbenchError as error:
        with shown_on("stderr"):
            log.debug("traceback:", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `earthbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if _READING & set(arguments[:1]) else 1
    except OSError as error:
        if error.filename is None:
            return _report_bug()
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)  # e.g. a full disk
        return UsageError.exit_code
    except Exception as error:
        where = _plugin_line(error)
        if where is None:
            return _report_bug()
        traceback.print_exc()
        print(f"error: {type(error).__name__} in {where}, which is a plugin's code, not earthbench's", file=sys.stderr)
        return RunFailedError.exit_code


def _set_log_level(arguments: list[str]) -> list[str]:
    """Applies `--verbose` and `--quiet` to this process and its children, and returns the other arguments.

    Raises:
        UsageError: both are given.
    """
    given = {flag for flag in _LOG_LEVELS if flag in arguments}
    if len(given) > 1:
        raise UsageError("--verbose and --quiet exclude each other: give one of them")
    for flag in given:
        os.environ[LEVEL] = _LOG_LEVELS[flag]
    return [word for word in arguments if word not in given]


def _open_closed_streams() -> None:
    """Opens stdin, stdout and stderr on the null device where the process was started without them (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for the whole process


def _plugin_line(error: Exception) -> str | None:
    """Returns `FILE:LINE` of the innermost frame of an error that is a plugin's, None if no frame is."""
    named = [entry for kind in registry.KINDS for found in registry.entries(kind).values() for entry in found]
    tops = {entry.value.partition(":")[0].partition(".")[0] for entry in named if entry.distribution != "earthbench"}
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in tops:
            found = f"{frame.f_code.co_filename}:{line}"
    return found


def _report_bug() -> int:
    traceback.print_exc()
    print("This is a bug in earthbench: please report it with the lines above.", file=sys.stderr)
    return 1


def _dispatch(arguments: list[str]) -> int:
    parser = Parser(
        prog="earthbench",
        allow_abbrev=False,
        description="Benchmark and reproducibility harness for Earth-system forecasting.",
        epilog="`earthbench help VERB` shows what a verb takes, with examples. "
        "Exit codes: 0 done, 1 internal error, 2 invalid input, 3 a run failed, 4 a check failed, 130 stopped.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    # taken out before parsing, so that they may stand anywhere
    parser.add_argument("--plugin", metavar="FILE.py", help="use a file's models, tasks, metrics and tables")
    parser.add_argument("--verbose", action="store_true", help="also show details, and where an error came from")
    parser.add_argument("--quiet", action="store_true", help="show results, warnings and errors only")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    if wanted is not None and wanted not in VERBS:
        print(f"error: unknown verb {wanted!r}. {did_you_mean(wanted, VERBS)}", file=sys.stderr)
        return 2
    module, of_verb = None, parser
    for verb, (module_name, summary) in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary, allow_abbrev=False)
        if verb == wanted:
            module, of_verb = importlib.import_module(module_name), sub
            module.add_arguments(sub)
            sub.add_examples(module.EXAMPLES)
    try:
        options, rest = parser.parse_known_args(arguments)
    except SystemExit as exit_:  # argparse has printed its message
        return int(exit_.code or 0)
    if options.version:
        from bench import __version__

        print(f"earthbench {__version__}")
        return 0
    if module is None and rest:
        known = ["--help", "--version", "--plugin", *_LOG_LEVELS]
        print(f"error: earthbench: unknown flag {rest[0]}. {did_you_mean(rest[0], known)}", file=sys.stderr)
        return 2
    if module is None:
        parser.print_help()
        return 0
    if hasattr(options, "overrides"):  # argparse puts overrides after a flag into the rest
        options.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if "=" not in word or word.startswith("-")]
    if rest and not getattr(module, "TAKES_HYDRA_FLAGS", False):
        hint = " Hydra's flags are for `earthbench run` and `status`." if _HYDRA_FLAGS & set(rest) else ""
        hint = hint or f" {of_verb.suggestion(rest[0])}"
        print(f"error: earthbench {wanted}: unknown arguments: {' '.join(rest)}.{hint}", file=sys.stderr)
        return 2
    if rest:
        options.hydra_flags = rest
    return int(module.run(options) or 0)


if __name__ == "__main__":
    sys.exit(main())

"""`earthbench board run|plan|table|check|picture FILE`: a whole leaderboard from one YAML file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cli.ablate import job
from bench.cli.flags import add_overrides
from bench.cli.printing import print, wrapped
from bench.cli.run import launch
from bench.cli.status import Line, lines_of
from bench.cli.table import print_contents
from bench.config import Config, compose, fingerprint, numbers_only
from bench.errors import ConfigError, EarthbenchError, counted
from bench.logs import log
from bench.protocols.board import BoardFile, BoardRow, read_board, refuse_other_numbers
from bench.protocols.decided import Decided, read_decided
from bench.protocols.entries import hydra_overrides, key_of, layered
from bench.tables.admission import read_store
from bench.tables.protocols import members
from bench.tables.render import FORMATS, check_renderings, load_table, write_renderings

_SUMMARIES = {
    "run": "make what is missing, on the launcher of your choice, and render the table",
    "plan": "list every run with its state",
    "table": "print the table",
    "check": "fail (exit 4) when the committed table differs from a fresh rendering",
    "picture": "draw skill by lead time, skill against compute, and each ablation",
}
EXAMPLES = (
    "earthbench board plan results/boards/NAME.yaml",
    "earthbench board run results/boards/NAME.yaml data.root=DIR",
    "earthbench board run results/boards/NAME.yaml data.root=DIR hydra/launcher=joblib hydra.launcher.n_jobs=4",
    "earthbench board picture results/boards/NAME.yaml --out pictures",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="|".join(_SUMMARIES))
    for name, summary in _SUMMARIES.items():
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("file", type=Path, metavar="FILE", help="the board: ROOT/boards/NAME.yaml")
        if name in ("run", "plan"):
            add_overrides(
                sub,
                "locations and speed: data.root=DIR work=DIR device=cuda hydra/launcher=joblib; nothing that "
                "changes a number",
            )
        if name == "plan":
            sub.add_argument("--format", choices=("text", "json"), default="text")
        if name == "table":
            sub.add_argument("--format", choices=("text", *FORMATS), help="default: text in a terminal; else md")
        if name == "picture":
            sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
            sub.add_argument("--ending", default=".png", help="of their names: .png (default), .svg, .pdf")


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand."""
    board = read_board(options.file)
    return {"run": _run, "plan": _plan, "table": _table, "check": _check, "picture": _picture}[options.what](
        board, options
    )


def _run(board: BoardFile, options: argparse.Namespace) -> int:
    """Decides steps and choices, runs missing rows, and renders; failed runs are reported at the end."""
    from bench.ablation.deciding import decide

    rows, typed = board.rows(), _checked_overrides(board, options.overrides)

    def launched(jobs: Sequence[Sequence[str]]) -> EarthbenchError | None:
        return launch([[*job_, *hydra_overrides(options.overrides)] for job_ in jobs], job)

    decided, failures = decide(board, rows, typed, launched)
    missing = _missing(board, rows, decided)
    log.info(f"{board.name}: {counted(len(missing), 'run')} to make")
    if (failure := launched([layered(overrides, typed) for overrides in missing])) is not None:
        failures.append(failure)
    table = load_table(board.table, board.root)
    paths = write_renderings(table, board.root)
    print_contents(table, board.root, None)
    for path in paths:
        print(path, file=sys.stderr)
    if failures:
        raise failures[0]
    return 0


def _checked_overrides(board: BoardFile, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of the command line for every run, with the results root of the board.

    Raises:
        ConfigError: an override would change a number or the results root, or the board has no rows.
    """
    if any(key_of(one) == "results.root" for one in overrides):
        raise ConfigError(f"results.root: cannot be set here; the records of {board.path.name} go to {board.root}")
    if (row := next(iter(board.rows()), None)) is None:
        raise ConfigError(f"{board.path}: neither references nor rows: nothing to run")
    own = [one for one in overrides if one not in hydra_overrides(overrides)]
    refuse_other_numbers(row, own)
    here = Path.cwd()  # records are committed, so they hold no absolute path of this clone
    root = board.root.relative_to(here) if board.root.is_relative_to(here) else board.root
    return [*own, f"results.root='{root}'"]


def _missing(board: BoardFile, rows: Sequence[BoardRow], decided: Decided) -> list[list[str]]:
    """Returns the overrides of every decided run that has no record in the table."""
    table = load_table(board.table, board.root)
    made = members(table, read_store(board.root, table.task)[0]).made
    wanted = [decided.run_overrides(row, *which) for row in rows if decided.is_settled(row) for which in row.runs]
    return [overrides for overrides in wanted if _named(compose(overrides)) not in made]


def _named(config: Config) -> str:
    return fingerprint(numbers_only(config))


def _plan(board: BoardFile, options: argparse.Namespace) -> int:
    rows, typed, decided = board.rows(), _checked_overrides(board, options.overrides), read_decided(board)
    settled = [(row, *which) for row in rows if decided.is_settled(row) for which in row.runs]
    names = [f"{row.label}, seed {seed}" + (f", {fold}" if fold else "") for row, seed, fold in settled]
    configs = [compose(layered(decided.run_overrides(*one), typed)) for one in settled]
    lines = lines_of(names, configs)
    lines += [Line(f"{row.label}, {_pending(row)}", "undecided", "") for row in rows if not decided.is_settled(row)]
    if options.format == "json":
        print(json.dumps({"runs": [asdict(line) for line in lines]}, indent=1))
        return 0
    for line in lines:
        print(wrapped(str(line), 10))
    counts = Counter(line.state for line in lines)
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0


def _pending(row: BoardRow) -> str:
    grid = f", the grid of {' '.join(row.grid)}" if row.grid else ""
    return f"{counted(len(row.seeds), 'seed')}: steps{grid}"


def _table(board: BoardFile, options: argparse.Namespace) -> int:
    print_contents(load_table(board.table, board.root), board.root, options.format)
    return 0


def _check(board: BoardFile, options: argparse.Namespace) -> int:
    for path in check_renderings(load_table(board.table, board.root), board.root):
        print(f"{path} is up to date")
    return 0


def _picture(board: BoardFile, options: argparse.Namespace) -> int:
    from bench.report.board_pictures import draw_board

    for path in draw_board(board, options.out.expanduser(), options.ending):
        print(path)
    return 0

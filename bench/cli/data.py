"""`earthbench data info|check|make|fetch|convert`: what is on disk, what is wrong with it, and how to get it."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.cli.flags import parse_flags
from bench.cli.printing import print, wrapped
from bench.errors import DataError, UsageError, counted, did_you_mean, one_message

if TYPE_CHECKING:
    from bench.data.verbs import DataVerb
    from bench.tasks import Task

_WEIGHTS = "weights/"
_ACTIONS = {
    "make": "generate data in the task's format",
    "fetch": "download published data or weights",
    "convert": "convert the data of one task for another",
}
EXAMPLES = (
    "earthbench data fetch sevir --help",
    "earthbench data make sevir --out storms",
    "earthbench data info sevir --root storms",
    "earthbench data check sevir --root storms",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="info|check|make|fetch|convert")
    for name, summary in {
        "info": "describe a data set",
        "check": "list everything that is wrong, in one message",
    }.items():
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("task", help="task whose format the data has, e.g. sevir")
        sub.add_argument("--root", required=True, help="folder of the data set, or a URL such as s3://...")
        sub.add_argument("--format", choices=("text", "json"), default="text")
        sub.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="task.FIELD=VALUE",
            help="fields of the task, e.g. task.admit_missing=true",
        )
        if name == "check":
            sub.add_argument("--quick", action="store_true", help="catalogue and file headers only, read no values")
    for name, summary in _ACTIONS.items():
        # The flags depend on the task: with a prefix that nobody types, argparse leaves all words to `_run_action`.
        sub = verbs.add_parser(name, help=summary, description=summary, prefix_chars="\0", add_help=False)
        sub.add_argument("words", nargs="*", default=[])


def run(options: argparse.Namespace) -> int:
    """Runs the chosen verb."""
    if options.what in _ACTIONS:
        return _run_action(options.what, options.words)
    return {"info": _info, "check": _check}[options.what](options)


def _info(options: argparse.Namespace) -> int:
    report = _task(options).inspect_data()
    if options.format == "json":
        print(json.dumps({"facts": report.facts, "remarks": report.remarks, "problems": report.problems}, indent=1))
        return 0 if report.facts else 2
    if not report.facts:  # nothing could be read
        raise DataError("\n".join(report.problems))
    for line in report.lines:
        print(line)
    for remark in report.remarks:
        print(f"  note: {remark}")
    for problem in report.problems:
        print(f"  PROBLEM: {problem}")
    return 0


def _task(options: argparse.Namespace) -> Task:
    """Returns the task with the fields that its overrides set, as in a run."""
    from bench.tasks import load_task

    wrong = [word for word in options.overrides if not word.startswith("task.")]
    if wrong:
        raise UsageError(
            f"earthbench data {options.what}: expected fields of the task, as in task.admit_missing=true, found "
            f"{' '.join(wrong)}"
        )
    fields: dict[str, Any] = {}
    if options.overrides:
        from bench.config import compose

        fields = compose([f"task={options.task}", *options.overrides]).task.options
    return load_task(options.task, options.root, **fields)


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    task = _task(options)
    with Progress(
        transient=True, disable=options.quick or not sys.stderr.isatty(), console=Console(stderr=True)
    ) as progress:
        bar = progress.add_task("reading", total=None)
        report = task.inspect_data(
            read_everything=not options.quick,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if options.format == "json":
        print(json.dumps({"problems": report.problems, "remarks": report.remarks}, indent=1))
        return 2 if report.problems else 0
    for remark in report.remarks:
        print(f"note: {remark}")
    if report.problems:
        headline = f"{counted(len(report.problems), 'problem')} under {options.root}:"
        raise DataError(one_message(headline, report.problems, most=len(report.problems)))
    print(f"no problems: {counted(report.facts['events'], report.unit)} {'declared' if options.quick else 'read'}")
    return 0


def _run_action(action: str, words: list[str]) -> int:
    """Makes, fetches or converts: reads the names, then the flags that the named verb has, and runs it."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    names, value, flags = _split_words(action, words)
    if value is None:
        print(names)
        return 0
    verb_class = _load(value)
    try:
        verb = parse_flags(verb_class, flags, command=f"earthbench data {action} {names}", summary=verb_class.summary)
    except SystemExit as exit_:  # argparse has printed its help
        return int(exit_.code or 0)
    bars: dict[str, TaskID] = {}
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:

        def advance(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total or None)

        plan = verb.plan(advance)
        for line in plan.lines:
            print(line, flush=True)
        if plan.ask:
            progress.stop()
            _ask()
            progress.start()
        lines = verb.run(advance)
    for line in lines:
        print(line)
    return 0


def _load(value: str) -> type[DataVerb]:
    if value.startswith(_WEIGHTS):
        from bench.data.transfer.weights import fetch_verb

        return fetch_verb(value.removeprefix(_WEIGHTS))
    from bench.data.verbs import load_verb

    return load_verb(value)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise UsageError("a download of this size needs your consent: add --yes")
    if input("continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("stopped; nothing was downloaded or written")


def _split_words(action: str, words: list[str]) -> tuple[str, str | None, list[str]]:
    """Returns the names as typed, `module:Class` of the verb or `weights/NAME`, and the flags.

    With `--help` and no names, the first is the help text and the second None.
    """
    count = 2 if action == "convert" else 1
    # Names come first; flags before the name (`make --out DIR sevir`) have always worked and still do.
    tasks = registry.names("task")
    places = [at for at, word in enumerate(words) if at < count and not word.startswith("-")]
    if len(places) < count:
        places = [at for at, word in enumerate(words) if word in tasks][-count:]
    if len(places) < count:
        if {"-h", "--help"} & set(words):
            return _help(action), None, []
        raise UsageError(
            f"earthbench data {action}: expected {_names_of(action)}. {did_you_mean('', _targets(action))}"
        )
    names = [words[at] for at in places]
    flags = [word for at, word in enumerate(words) if at not in places]
    return " ".join(names), _value(action, names), flags


def _value(action: str, names: list[str]) -> str:
    key = f"convert:{names[0]}" if action == "convert" else action
    task = names[-1]
    if action == "fetch" and task.startswith(_WEIGHTS):
        return task
    if action == "fetch" and task in (own := _data_sets()):
        return own[task]
    targets = _targets(action)
    if action != "convert" and task not in registry.names("task"):
        raise UsageError(f"earthbench data {action}: unknown name {task!r}. {did_you_mean(task, targets)}")
    verbs = _verbs(task)
    if key in verbs:
        return verbs[key]
    if action == "convert":
        if names[0] not in _sources():
            registry.find("task", names[0])
        sources = [name.partition(":")[2] for name in verbs if name.startswith("convert:")]
        known = f"it is made from: {', '.join(sources)}" if sources else "it is made from no other task's data"
        raise UsageError(
            f"data of task {names[0]!r} cannot be converted to {task!r}; {known}. {did_you_mean('', targets)}"
        )
    raise UsageError(f"task {task!r} has no `data {action}`. {did_you_mean('', targets)}")


def _data_sets() -> dict[str, str]:
    """Returns the data sets that are fetched under a name other than a task's, and their verbs."""
    found: dict[str, str] = {}
    for task in registry.names("task"):
        with suppress(UsageError):  # a broken plugin harms only itself
            found |= {key.partition(":")[2]: value for key, value in _verbs(task).items() if key.startswith("fetch:")}
    return found


def _sources() -> set[str]:
    """Returns the sources of all conversions: tasks, and formats that belong to no task."""
    found = set()
    for task in registry.names("task"):
        with suppress(UsageError):  # a broken plugin harms only itself
            found |= {key.partition(":")[2] for key in _verbs(task) if key.startswith("convert:")}
    return found


def _verbs(task: str) -> dict[str, str]:
    """Returns the data verbs of a task; importing a task's module imports no torch."""
    return dict(getattr(registry.find("task", task).load(), "data_verbs", {}))


def _names_of(action: str) -> str:
    return "SOURCE TARGET" if action == "convert" else "NAME" if action == "fetch" else "TASK"


def _targets(action: str) -> dict[str, str]:
    """Returns what can be made, fetched or converted: the names on the command line, and `module:Class` of the verb."""
    found: dict[str, str] = {}
    for task in registry.names("task"):
        with suppress(UsageError):  # a broken plugin harms only itself
            for key, value in _verbs(task).items():
                if key == action or (action == "convert" and key.startswith("convert:")):
                    found[f"{key.partition(':')[2]} {task}".strip()] = value
    if action == "fetch":
        found |= _data_sets() | {_WEIGHTS + name: _WEIGHTS + name for name in registry.names("weight")}
    return found


def _help(action: str) -> str:
    targets = _targets(action)
    width = max(map(len, targets), default=0)
    lines = [wrapped(f"  {name:{width}}  {_load(value).summary}", width + 4) for name, value in targets.items()]
    command = f"earthbench data {action} {_names_of(action)}"
    usage = f"usage: {command} [FLAGS]\n\n{_ACTIONS[action]}; `{command} --help` lists the flags\n"
    return "\n".join([usage, *lines])

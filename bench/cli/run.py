"""`earthbench run`: one run from a composed config, or a sweep of them by Hydra's launchers."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.cli.flags import add_overrides
from bench.cli.printing import print
from bench.config import (
    compose,
    composed_by_hydra,
    expand_sweep,
    hydra_errors,
    register_groups,
    to_plain,
    validate,
)
from bench.config.overrides import is_sweep, quoted
from bench.errors import ConfigError, EarthbenchError, InterruptedRunError, did_you_mean
from bench.files import replacing
from bench.logs import shown_on
from bench.safe_text import without_secrets

TAKES_HYDRA_FLAGS = True
_SWEEP = ("-m", "--multirun")
_CONFIG_DIR = ("-cd", "--config-dir")
# Hydra's parser accepts one of these at a time.
_SHOW = {"-c", "--cfg", "-i", "--info", "--hydra-help"}
_MODES = {*_SWEEP, *_SHOW, "--run"}
# Flags passed on to Hydra, whose parser would end the process over any other. Another primary config (--config-name,
# --config-path) and a pickled one (--experimental-rerun) are not supported.
_WITH_VALUE = {"-c", "--cfg", *_CONFIG_DIR, "-p", "--package"}
_FLAGS = {*_SWEEP, *_WITH_VALUE, "--hydra-help", "-i", "--info", "-r", "--resolve", "--run"}
EXAMPLES = (
    "earthbench run task=sevir model=unet data.root=DIR",
    "earthbench run -m model=unet,convlstm seed=0,1,2 data.root=DIR",
    "earthbench run --cfg job model=unet",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_overrides(
        parser,
        "Hydra overrides, e.g. task=sevir model=unet data.root=DIR train.max_epochs=3; "
        "Hydra's flags work too: -m sweeps over a=1,2, --cfg job prints the config",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the config, or hands over to Hydra if one of its flags was given."""
    overrides, flags = overrides_and_flags(options)
    if flags:
        if any(flag in _SWEEP for flag in flags):
            overrides = [*overrides, *_absolute(overrides)]
        sweep(overrides, flags, job)
        return 0
    execute(compose(overrides), again=True)
    return 0


def overrides_and_flags(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns the overrides and Hydra's flags as given, but `--config-dir` as the override that it stands for.

    Raises:
        ConfigError: an unknown flag, or a folder of configs that cannot be used.
    """
    flags = getattr(options, "hydra_flags", [])
    _refuse_flags(options.overrides, flags)
    overrides, flags = _with_values(options.overrides, flags)
    kept, folders, words = list[str](), list[str](), iter(flags)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _CONFIG_DIR:
            kept.append(word)
            continue
        given = value if equals else next(words, "")
        folder = Path(given).expanduser().absolute()
        if not given or not folder.is_dir():
            raise ConfigError(f"{name} {given}: not a folder; expected the folder of your configs")
        folders.append(f"'file://{folder}'")
    return [*overrides, *([f"hydra.searchpath=[{','.join(folders)}]"] if folders else [])], kept


def _refuse_flags(overrides: list[str], flags: list[str]) -> None:
    if dashed := [override for override in overrides if override.startswith("-")]:  # after `--`
        raise ConfigError(f"earthbench run: {dashed[0]} is not KEY=VALUE")
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("-") and name not in _FLAGS:
            near = did_you_mean(name, (known for known in _FLAGS if known.startswith("--")))
            advice = near if near.startswith("Did") else "Settings are written KEY=VALUE, e.g. train.resume=false."
            raise ConfigError(f"earthbench run: unknown flag {name}. {advice}")
    chosen = [flag for flag in flags if flag.partition("=")[0] in _MODES]
    if len(chosen) > 1:
        raise ConfigError(f"earthbench run: {' and '.join(chosen)} do not go together")


def _with_values(overrides: list[str], flags: list[str]) -> tuple[list[str], list[str]]:
    """Returns overrides and flags, after moving values of flags back that argparse took for overrides."""
    bare = [word for word in overrides if "=" not in word and not word.startswith("~")]
    kept, joined = [word for word in overrides if word not in bare], list[str]()
    for number, flag in enumerate(flags):
        following = flags[number + 1] if number + 1 < len(flags) else "-"
        joined.append(flag)
        if flag in _WITH_VALUE and following.startswith("-") and bare:
            joined.append(bare.pop(0))
    return [*kept, *bare], joined


def execute(config: Any, *, again: bool) -> None:
    """Runs a checked config and prints the result."""
    from bench.cli.outcome import print_outcome
    from bench.engine.run import run as run_pipeline

    with shown_on("stdout"):  # launchers call this in processes of their own
        outcome = run_pipeline(config, training=True, again=again)
    print_outcome(outcome)


class _SweepStopped(KeyboardInterrupt):
    """A signal reached a job in the sweep's own process. Not an `Exception`: Hydra catches those and continues."""


_sweeping: int | None = None
"""Id of the process that calls Hydra; launchers other than Hydra's own run jobs in further processes."""


def sweep_job(work: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns a job in which a signal ends the whole sweep instead of that job alone."""

    @functools.wraps(work)
    def job(composed: Any) -> None:
        _mask_sweep_file()
        try:
            work(composed)
        except InterruptedRunError as error:
            if os.getpid() == _sweeping:
                raise _SweepStopped from error
            raise

    return job


def _mask_sweep_file() -> None:
    """Masks the credentials in the `multirun.yaml` that Hydra has written beside a sweep's jobs."""
    from hydra.core.hydra_config import HydraConfig

    with contextlib.suppress(OSError, ValueError):  # no sweep, another machine, or another job was faster
        path = Path(HydraConfig.get().sweep.dir) / "multirun.yaml"
        text = path.read_text(encoding="utf-8")
        if (masked := without_secrets(text)) != text:
            with replacing(path) as part:
                part.write_text(masked, encoding="utf-8")


@sweep_job
def job(composed: Any) -> None:
    """Runs one job of a sweep; launchers import it by name, on whatever machine it runs.

    A job that has a record is not run again, so that the same command completes a sweep.
    """
    execute(validate(to_plain(composed)), again=False)


def launch(jobs: Sequence[Sequence[str]], task: Callable[[Any], None]) -> EarthbenchError | None:
    """Runs a list of jobs by the launcher that their overrides name, and waits for all of them.

    The jobs need not be a product of settings. What Hydra and a job print goes to stderr.

    Args:
        jobs: The overrides of each; those of Hydra itself, and `work`, are the same in all.
        task: Called with each composed config; launchers import it by name.

    Returns:
        The first failure, if any; it does not stop the other jobs.

    Raises:
        InterruptedRunError: a signal arrived; the remaining jobs were not started.
    """
    if not jobs:
        return None
    common = list(dict.fromkeys(one for one in jobs[0] if one.startswith(("hydra", "work="))))
    places = _absolute(list(jobs[0]))
    own = [[*(one for one in job if not one.startswith("hydra")), *places] for job in jobs]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            sweep([*common, *places], ["--multirun"], task, own)
    except InterruptedRunError:
        raise
    except EarthbenchError as error:
        return error
    return None


def sweep(
    overrides: list[str], flags: list[str], task: Callable[[Any], None], jobs: Sequence[list[str]] | None = None
) -> None:
    """Hands overrides and Hydra's own flags over to Hydra, which calls `task` with each composed config.

    Args:
        overrides: Those of every job, possibly with several values to sweep over.
        flags: Hydra's own.
        task: The job.
        jobs: The overrides of each job, if the jobs are not a product of values.

    Raises:
        ConfigError: a config or a flag is invalid.
        InterruptedRunError: a signal arrived; the remaining jobs were not started.
    """
    import hydra

    global _sweeping
    overrides = quoted(overrides)
    sweeps = any(flag in _SWEEP for flag in flags)
    shows = any(flag.partition("=")[0] in _SHOW for flag in flags)
    # Every job's config is checked before Hydra calls anything, and so is the one without the swept keys.
    for combination in (expand_sweep(overrides) if jobs is None else jobs) if sweeps else ():
        compose([*combination, *(override for override in overrides if override.lstrip("+~").startswith("hydra"))])
    composed_by_hydra([override for override in overrides if not (sweeps and is_sweep(override))])
    register_groups()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach our own handler, and so our exit codes
    sys.argv = ["earthbench", *overrides, *flags]
    _sweeping, root_handlers = os.getpid(), logging.root.handlers[:]
    try:
        with hydra_errors(overrides), _shown() if shows else contextlib.nullcontext(), _listed(jobs):
            hydra.main(config_path="pkg://bench.conf", config_name="config", version_base="1.3")(task)()
    except SystemExit as exit_:  # its parser has said why
        if exit_.code:
            raise ConfigError("earthbench run: invalid Hydra flag, see above") from exit_
    except _SweepStopped as stopped:
        assert stopped.__cause__ is not None
        raise stopped.__cause__ from None
    finally:
        _sweeping = None
        logging.root.handlers[:] = root_handlers  # Hydra adds a console handler, which would repeat later lines


@contextlib.contextmanager
def _listed(jobs: Sequence[list[str]] | None) -> Iterator[None]:
    """Makes Hydra's sweeper launch these jobs, because Hydra accepts neither a list nor another sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if jobs is None:
        yield
        return
    own = BasicSweeper.__dict__["split_arguments"]
    BasicSweeper.split_arguments = staticmethod(lambda overrides, max_batch_size: [list(jobs)])
    try:
        yield
    finally:
        BasicSweeper.split_arguments = own


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Prints what Hydra shows of a config with the credentials masked.

    Raises:
        ConfigError: Hydra ended the process because of a flag's value.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    except SystemExit as exit_:
        if exit_.code:
            said = err.getvalue().strip().splitlines() or ["Hydra ended without a message"]
            raise ConfigError(f"earthbench run: {said[-1]}") from exit_
    print(out.getvalue(), end="")
    print(err.getvalue(), end="", file=sys.stderr)


def _absolute(overrides: list[str]) -> list[str]:
    """Returns overrides that keep the default folders where they are: a launcher may start jobs in another folder."""
    given = {override.partition("=")[0] for override in overrides}
    defaults = {"results.root": "results", "work": "outputs"}
    return [f"{key}='{Path.cwd() / folder}'" for key, folder in defaults.items() if key not in given]

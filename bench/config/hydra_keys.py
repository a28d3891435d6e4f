"""The keys of Hydra's own section that a user may set; the others are refused, because some of them run code.

`hydra.callbacks`, `hydra.launcher._target_`, `hydra.job_logging` and a dozen more name something to import and call,
set environment variables, or write files.  A key can be set in many ways (packages, default lists, groups), so the
composed config is compared with an unmodified one instead of searching files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import ConfigError, first_line, one_message

LAUNCHER_GROUP = "hydra/launcher"
INSTALL_LAUNCHERS = "pip install 'earthbench[sweep]' brings joblib and submitit, 'earthbench[ray]' Ray."
_PATHS = ("checkpoint", "work")  # keys of the config's top level that are not groups, and may have `..` in their values
_PLACES = ("run.dir", "sweep.dir", "sweep.subdir", "verbose")
# Numbers and names that a launcher hands to its engine. None of them is a command, code, or an environment.
_LAUNCHER = (
    "account", "array_parallelism", "backend", "comment", "constraint", "cpus_per_gpu", "cpus_per_task", "exclude",
    "gpus_per_node", "gpus_per_task", "gres", "max_num_timeout", "mem_gb", "mem_per_cpu", "mem_per_gpu", "n_jobs",
    "name", "nodes", "partition", "qos", "ray.init.address", "ray.init.num_cpus", "ray.init.num_gpus",
    "ray.init.object_store_memory", "ray.remote.max_retries", "ray.remote.memory", "ray.remote.num_cpus",
    "ray.remote.num_gpus", "signal_delay_s", "tasks_per_node", "timeout_min",
)  # fmt: skip
ALLOWED = (*(f"hydra.{key}" for key in _PLACES), *(f"hydra.launcher.{key}" for key in _LAUNCHER))
"""Allowed besides `hydra/launcher=NAME` and `hydra.searchpath`; docs/scaling.md lists them."""
# Keys that Hydra itself writes after composing; it composes the jobs of a sweep from `overrides`.
_WRITTEN_BY_HYDRA = (
    "job.config_name", "job.override_dirname", "overrides.hydra", "overrides.task", "runtime.choices",
    "runtime.config_sources", "runtime.cwd", "runtime.version", "runtime.version_base", "searchpath",
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def may_set_hydra_keys(overrides: Sequence[str]) -> bool:
    """Returns whether overrides can change Hydra's own section, directly or through files that they add."""
    return any("hydra" in override for override in overrides)


def search_folders(overrides: Sequence[str]) -> list[Path]:
    """Returns the folders that `hydra.searchpath` adds, however the override is written.

    Raises:
        ConfigError: something other than a folder of this machine, such as a Python package, which would be imported;
            or the name of a config leaves its folder.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folders: list[Path] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name, _, chosen = (override.input_line or "").partition("=")
        if ".." in chosen and "." not in override.key_or_group and override.key_or_group not in _PATHS:
            raise ConfigError(f"{name}={chosen}: a config's name must not leave its folder")
        if override.key_or_group != "hydra.searchpath":
            continue
        value = override.value()
        for one in value if isinstance(value, list) else [value]:
            text = str(one)
            folder = text.removeprefix("file://")
            if not isinstance(one, str) or "://" in folder or "${" in folder:
                raise ConfigError(f"{override.input_line}: {text} is not a folder; expected hydra.searchpath=[DIR]")
            folders.append(Path(folder))
    return folders


def refuse_forbidden_keys(composed: Any, overrides: Sequence[str], untouched: Callable[[str], Any]) -> None:
    """Refuses a composed config in which a user has set any key of Hydra's own section except the allowed ones.

    Args:
        composed: The config with its `hydra` section.
        overrides: The overrides it was composed from.
        untouched: Returns the `hydra` section of the default config with a launcher, composed without users' folders.

    Raises:
        ConfigError: names each key; or no such launcher is installed.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    section = composed.hydra
    launcher = section.runtime.choices.get(LAUNCHER_GROUP)
    try:
        expected = dict(leaves(OmegaConf.to_container(untouched(str(launcher)), resolve=False)))
    except HydraException as error:
        raise ConfigError(
            f"{LAUNCHER_GROUP}={launcher}: no launcher of this name is installed; a config folder cannot add one. "
            f"{INSTALL_LAUNCHERS} {first_line(error)}"
        ) from error
    found = dict(leaves(OmegaConf.to_container(section, resolve=False)))
    changed = [key for key in {**expected, **found} if _value_at(expected, key) != _value_at(found, key)]
    problems = [_problem(key, section, overrides) for key in changed if not _written_by_hydra(key)]
    added = [*section.overrides.hydra, *section.overrides.task]
    problems += [f"hydra.overrides: {one}: not given on the command line" for one in added if one not in overrides]
    if problems := [problem for problem in problems if problem]:
        allowed = f"{LAUNCHER_GROUP}=NAME, {', '.join(ALLOWED[: len(_PLACES)])} and a launcher's numbers and names"
        raise ConfigError(
            one_message(f"Hydra's own settings that a run may have are {allowed}, see docs/scaling.md:", problems)
        )


def _written_by_hydra(key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in _WRITTEN_BY_HYDRA)


def _problem(key: str, section: Any, overrides: Sequence[str]) -> str:
    """Returns the problem of a changed key; empty if it is allowed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    named = f"hydra.{key}"
    given = [one for one in overrides if f"{named}.".startswith(_key(one).replace("/", ".") + ".")]
    where = f" ({given[0]})" if given else " (in a file of --config-dir or hydra.searchpath)"
    if named not in ALLOWED:
        return f"{named}{where}: not allowed"
    try:
        value = OmegaConf.select(section, key)
    except OmegaConfBaseException:  # such as `${hydra.job.num}`, which only a job has
        value = dict(leaves(OmegaConf.to_container(section, resolve=False)))[key]
    plain = value is None or isinstance(value, bool | int | float | str)
    if not plain or _CONTROL.search(str(value)):
        return f"{named}{where}: expected a number or a text of one line, found {value!r}"
    return ""


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and value of every leaf; lists and empty mappings are leaves."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


_ABSENT = object()


def _value_at(values: dict[str, Any], key: str) -> Any:
    return values.get(key, _ABSENT)

"""Limits on a user's YAML files: no larger than a config, with all aliases expanded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bench.errors import ConfigError

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_MAX_FILES = 10_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is not everywhere


def check_config_folder(folder: Path) -> None:
    """Refuses a folder of configs with a file that could fill the memory, since OmegaConf copies what an alias names.

    Args:
        folder: Its `*.yaml` are checked, including subfolders; Hydra reports all other problems.

    Raises:
        ConfigError: no such folder, or a file that is too large or repeats itself too often; names it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder; expected the folder of your configs")
    for path in _configs(folder):
        content = _checked(path)
        dots = b".." in content or b"\\" in content  # a dot may be written \x2e
        with suppress(yaml.YAMLError, UnicodeDecodeError):  # Hydra reports it if it reads this file
            if dots and (outside := _names_outside(yaml.compose(content, Loader=yaml.SafeLoader))):
                raise ConfigError(f"{path}: defaults list: {outside[0]!r}; a config's name must not leave its folder")


def read_yaml(path: Path) -> Any:
    """Returns the content of a user's YAML file.

    Raises:
        ConfigError: it does not exist, is not YAML, has a key twice, or could fill the memory; names it.
    """
    from omegaconf import OmegaConf  # its reader refuses duplicate keys

    content = _checked(path)
    try:
        return OmegaConf.to_container(OmegaConf.create(content.decode()), resolve=False)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error


def _checked(path: Path) -> bytes:
    """Returns the bytes of a YAML file that cannot fill the memory."""
    if not path.is_file():
        raise ConfigError(f"{path}: not a file, or a broken link")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ConfigError(f"{path}: {size} bytes is too large for a config; expected at most {_MAX_BYTES}")
    content = path.read_bytes()
    try:
        values, depth = _size(content, _Loader)
    except yaml.YAMLError:  # libyaml has its own limits: Hydra's reader decides about what it refuses
        try:
            values, depth = _size(content, yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError):
            return content  # whoever parses it raises the same error
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{path}: nested more than {_MAX_DEPTH} levels deep")
    if values > _MAX_VALUES:
        raise ConfigError(
            f"{path}: its aliases (*name) stand for more than {_MAX_VALUES} values; write a config without them"
        )
    return content


def _configs(folder: Path) -> list[Path]:
    """Returns the configs that Hydra would find, following links; a folder that contains itself is visited once."""
    found, seen = list[Path](), set[Path]()
    for name, folders, names in os.walk(folder, followlinks=True):
        root = Path(name)
        seen.add(root.resolve())
        folders[:] = sorted(inner for inner in folders if (root / inner).resolve() not in seen)
        found += [root / inner for inner in names if inner.endswith((".yaml", ".yml"))]
        if max(len(found), len(seen)) > _MAX_FILES:
            raise ConfigError(f"{folder}: more than {_MAX_FILES} configs or folders; give that of your configs alone")
    return sorted(found)


def _names_outside(root: yaml.Node | None) -> list[str]:
    """Returns the names in a config's defaults list that leave its folder, where files are not checked."""
    if not isinstance(root, yaml.MappingNode):
        return []
    listed = [value for key, value in root.value if getattr(key, "value", None) == "defaults"]
    return [name for node in listed for name in _texts(node, set()) if ".." in name]


def _texts(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _texts(part, seen)
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _texts(part, seen)


def _size(content: bytes, loader: Any) -> tuple[float, float]:
    """Returns the number of values of a document and their depth, with aliases replaced by copies."""
    depth = 0
    for event in yaml.parse(content, Loader=loader):  # before `compose`, which calls itself for every level
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return 0, depth
    root = yaml.compose(content, Loader=loader)  # a graph: an alias is the node it names
    return _expanded(root, {}) if root is not None else (0, 0)


def _expanded(node: yaml.Node, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Returns the number of values and levels of a node with aliases expanded; infinite for a cycle."""
    if id(node) not in known:
        known[id(node)] = float("inf"), 0  # asked for again before it is known, it contains itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes = [_expanded(part, known) for part in parts]
        levels = max((depth for _, depth in sizes), default=0) + isinstance(node, yaml.CollectionNode)
        known[id(node)] = 1 + sum(values for values, _ in sizes), levels
    return known[id(node)]

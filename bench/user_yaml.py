"""What a user's own YAML may be: of a size that a config has, however often its aliases repeat a part of it."""

from __future__ import annotations

from pathlib import Path

import yaml

from bench.errors import ConfigError

_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000
_DEEPEST = 50
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is not everywhere


def check_config_folder(folder: Path) -> None:
    """Refuses a folder of configs with a file that could fill the memory: OmegaConf copies what an alias names.

    Args:
        folder: Its `*.yaml` are looked at, in all its subfolders; what else may be wrong with them is for Hydra to say.

    Raises:
        ConfigError: no such folder, or a file that is too large or repeats itself too often; names it.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder}: not a folder")
    for path in sorted(folder.rglob("*.yaml")):
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ConfigError(f"{path}: {size} bytes are no config; expected at most {_MOST_BYTES}")
        try:
            if _depth(path.read_bytes()) > _DEEPEST:
                raise ConfigError(f"{path}: no config is nested more than {_DEEPEST} levels deep")
            root = yaml.compose(path.read_bytes(), Loader=_Loader)  # a graph: an alias is the node it names
            values = _expanded(root, {}) if root is not None else 0
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if values > _MOST_VALUES:
            raise ConfigError(
                f"{path}: its aliases (*name) stand for more than {_MOST_VALUES} values; write a config without them"
            )


def _depth(content: bytes) -> int:
    """Returns how deeply collections are nested, or a number beyond the deepest allowed."""
    depth = deepest = 0
    for event in yaml.parse(content, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        deepest = max(deepest, depth)
        if deepest > _DEEPEST:
            break
    return deepest


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Returns how many values a node is once its aliases are replaced by copies; infinitely many of a circle."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # whoever asks again before it is known is inside it
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]

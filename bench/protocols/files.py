"""Reading of a protocol's YAML file, with one message for all its problems."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bench.config import explain
from bench.config.user_yaml import read_yaml
from bench.errors import ConfigError, one_message
from bench.protocols.entries import Strict

ProtocolT = TypeVar("ProtocolT", bound=Strict)


def read_protocol(path: Path, kind: type[ProtocolT]) -> ProtocolT:
    """Returns what a YAML file says.

    Args:
        path: The file.
        kind: What it is to be.

    Raises:
        ConfigError: the file is not there or not readable, or a key or value is wrong; names each.
    """
    content = read_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(one_message(f"{path} is not valid:", explain(error, kind))) from error

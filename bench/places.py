"""Folders that may be local or behind a URL: a path is a `pathlib.Path`, a URL an fsspec path with its methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from bench.errors import ConfigError

Place: TypeAlias = Any
"""A `pathlib.Path`, or a `upath.UPath` for a URL: the methods used here are those that both have."""

# What a user has to install for a protocol; fsspec itself brings the others.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(text: str) -> bool:
    """Returns whether a text names a place behind a protocol, such as `s3://bucket/folder`."""
    return "://" in text


def place(text: str, key: str, **options: Any) -> Place:
    """Returns the folder that a config value names.

    Args:
        text: A path, or any fsspec URL: `s3://bucket/folder`, `gs://...`, `memory://...`.
        key: The config key, for the message.
        **options: Of the protocol's file system.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
    """
    if not is_url(text):
        return Path(text).expanduser()
    from upath import UPath

    protocol = text.partition("://")[0]
    try:
        if not protocol:
            raise ValueError("it is empty")
        found = UPath(text, **options)
        _ = found.fs
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        advice = f"Install it: pip install 'earthbench[{extra}]'" if extra else "Known: file paths, s3://, gs:// ..."
        raise ConfigError(f"{key}={text}: protocol {protocol!r} cannot be used: {error}. {advice}") from error
    return found


def local_folder(text: str, key: str) -> Path:
    """Returns the local folder that a config value names.

    Raises:
        ConfigError: it is a URL.
    """
    if is_url(text):
        raise ConfigError(f"{key}={text}: must be a local folder; results.root and train.checkpoints may be URLs")
    return Path(text).expanduser()

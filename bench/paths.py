"""Folders that may be local or at a URL: a path is a `pathlib.Path`, a URL an fsspec path with its methods.

A config keeps an address as it was written, with its `${oc.env:NAME}`: environment variables are looked up here, when
the path is opened, and their values are in no record or log.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

from bench.errors import ConfigError
from bench.safe_text import remember_secret

AnyPath: TypeAlias = Any
"""A `pathlib.Path`, or a `upath.UPath` for a URL; only methods that both have are used."""

FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(?P<name>[^{},\s]+)\s*(?:,(?P<default>[^{}]*))?\}")
"""OmegaConf's `${oc.env:NAME}` and `${oc.env:NAME,default}`."""

# The extra to install for a protocol; fsspec itself has the others.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_NO_FOLDERS = ("data", "reference")
# Protocols that are not probed before use: their readers give a good message.
_NO_LOOK = ("s3", "gs", "gcs", "http", "file", "local", "memory", "az", "abfs")


def is_url(text: str) -> bool:
    """Returns whether a text is a URL, such as `s3://bucket/folder`."""
    return "://" in text


def as_path(text: str, key: str, **options: Any) -> AnyPath:
    """Returns the folder that a config value names.

    Args:
        text: A path, or any fsspec URL: `s3://bucket/folder`, `gs://...`, `memory://...`.
        key: The config key, for the message.
        **options: Those of the protocol's file system.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
    """
    written, text = text, expand_environment(text, key)
    if not is_url(text):
        return Path(text).expanduser()
    from upath import UPath

    protocol = text.partition("://")[0]
    try:
        if not protocol:
            raise ValueError("it is empty")
        if protocol in _NO_FOLDERS:
            raise ValueError("it has no folders")
        found = UPath(text, **options)
        _ = found.fs, found / "x"  # chains of some protocols cannot be joined
        if not protocol.startswith(_NO_LOOK):
            found.exists()
    except Exception as error:  # each protocol has errors of its own
        extra = _EXTRAS.get(protocol)
        advice = f"Install it: pip install 'earthbench[{extra}]'" if extra else "Known: file paths, s3://, gs:// ..."
        if not isinstance(error, ImportError | ValueError):
            advice = "Check the address, and whether its server answers"
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{key}={written}: protocol {protocol!r} cannot be used: {said}. {advice}") from error
    return found


def expand_environment(text: str, key: str) -> str:
    """Returns a config value with each `${oc.env:NAME}` replaced by that environment variable.

    Raises:
        ConfigError: no such variable, and no default.
    """

    def value(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        given = os.environ.get(name)
        if given is None and default is None:
            raise ConfigError(f"{key}={text}: environment variable {name} is not set")
        if given is not None:
            remember_secret(name, given)
            return given
        return (default or "").strip().strip("'\"")

    before = text
    while (after := FROM_ENVIRONMENT.sub(value, before)) != before:  # a default may name another variable
        before = after
    return after


def local_folder(text: str, key: str) -> Path:
    """Returns the local folder that a config value names.

    Raises:
        ConfigError: it is a URL.
    """
    written, text = text, expand_environment(text, key)
    if is_url(text):
        raise ConfigError(f"{key}={written}: must be a local folder; results.root and train.checkpoints may be URLs")
    return Path(text).expanduser()

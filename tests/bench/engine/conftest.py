"""A finished training that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_unet import run_tiny


@pytest.fixture(scope="module")
def unet(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished training, which tests must not change."""
    out = tmp_path_factory.mktemp("unet")
    run_tiny(storms, out)
    return out

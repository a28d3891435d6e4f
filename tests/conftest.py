"""Fixtures of the whole suite: small storms on disk, observed data if available, no network."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from bench.data.sevir.synthetic import make_sevir

# The same examples in every run, few enough for two cores; HYPOTHESIS_PROFILE=default looks further.
settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Markers of tests that take long or need other software; the tox environment of the same name runs them.
_LONG = ("docs", "fault", "scaleout", "slurm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves long tests out unless their environment asks for them."""
    asked = os.environ.get("EARTHBENCH_LONG", "").split()
    for item in items:
        for marker in _LONG:
            if item.get_closest_marker(marker) and marker not in asked:
                item.add_marker(pytest.mark.skip(reason=f"run by `tox -e {marker}`"))


REPO = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Keeps temporary files in memory: a third of the time of a small run is waiting for the disk."""
    memory = Path("/dev/shm")
    chosen = config.option.basetemp or {"TMPDIR", "PYTEST_DEBUG_TEMPROOT"} & os.environ.keys()
    if not chosen and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(memory)


def pytest_collection_finish() -> None:
    """Exempts all that was imported and collected from garbage collection, which would visit it again and again."""
    gc.collect()
    gc.freeze()


def observed_root() -> Path | None:
    """Returns the folder of observed data: $EARTHBENCH_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("EARTHBENCH_DATA")
    root = Path(given) if given else REPO.parent / "shared" / "data"
    return root if root.is_dir() else None


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    """Restores the root logger, to which Hydra adds a console handler in a sweep."""
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture
def observed() -> Path:
    root = observed_root()
    if root is None:
        _is_missing("observed data: neither $EARTHBENCH_DATA nor ../shared/data is a folder")
    return root


@pytest.fixture(scope="session")
def originals() -> Path:
    """The folder with facts about the authors' code: configs, and the keys and shapes of checkpoints."""
    folder = Path(os.environ.get("EARTHBENCH_SHARED", REPO.parent / "shared")) / "specs"
    if not folder.is_dir():
        _is_missing("the authors' configs and keys: neither $EARTHBENCH_SHARED nor ../shared has a folder specs")
    return folder


def _is_missing(reason: str) -> NoReturn:
    """Skips a test, or fails it in environments where nothing may be missing."""
    if os.environ.get("EARTHBENCH_REQUIRE_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def committed_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`results/` as committed, without the records that a user made in the clone."""
    listing = subprocess.run(["git", "ls-files", "-z", "results"], cwd=REPO, capture_output=True, check=False)
    if listing.returncode:  # no git, or an unpacked archive, which has only committed files
        return REPO / "results"
    out = tmp_path_factory.mktemp("committed")
    for name in listing.stdout.decode().split("\0")[:-1]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, out / name)
    return out / "results"


@pytest.fixture
def radar(observed: Path) -> Path:
    return observed / "radar"


@pytest.fixture(scope="session")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storms of 49 frames of 32x32: 4 training, 2 validation and 3 test events."""
    out = tmp_path_factory.mktemp("storms") / "sevir"
    return make_sevir(out, events={"train": 4, "val": 2, "test": 3}, size=32, seed=1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows connections only to this machine, because the suite must pass without a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests use no network, and this one wanted {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def clean_hydra() -> None:
    """Clears Hydra's global state, so that the order of tests does not matter."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes runs train a model with a few weights that uses a random number in each step; it takes a second."""
    from faults import Small

    monkeypatch.setattr("bench.engine.run.load_model", lambda name, task, **_: Small(task.target_shape[0]))

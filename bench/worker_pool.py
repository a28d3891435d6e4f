"""Processes that share work, and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def worker_pool(
    processes: int, initializer: Callable[[], object] | None = None, *, tasks_of_each: int | None = None
) -> ProcessPoolExecutor:
    """Returns a pool of spawned processes; a fork would copy the states of torch's threads and of the HDF5 library.

    They end with this process, even if it is killed; those of Python's pool would finish their work and wait forever.

    Args:
        processes: Number of processes.
        initializer: Called first in each process.
        tasks_of_each: Number of tasks after which a process is replaced; None for never.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=(initializer,), max_tasks_per_child=tasks_of_each
    )


def _begin(initializer: Callable[[], object] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

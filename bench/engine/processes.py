"""Several processes of one run: their ranks, and their launch unless a cluster or `torchrun` has started them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench import errors
from bench.errors import ConfigError, EarthbenchError, RunFailedError
from bench.logs import LOGGED, forward_to, log

_POLL_S = 0.5
_GRACE_S = 20
"""How long the other processes may take to end by themselves after one has ended."""


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the number of processes of its run."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Returns whether this is the process that writes files and logs."""
        return self.rank == 0


def process_rank(devices: int, nodes: int) -> Processes:
    """Returns this process's rank, as set by `torchrun`, SLURM's `srun` or `launch`.

    Raises:
        ConfigError: the number of started processes is not `devices * nodes`.
    """
    world = devices * nodes
    if world == 1:
        return Processes()
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ:
            if int(os.environ.get(size, world)) != world:
                raise ConfigError(
                    f"{os.environ[size]} processes were started ({size}), but devices={devices} nodes={nodes} "
                    f"are {world}: make them agree"
                )
            return Processes(int(os.environ[rank]), world)
    return Processes(0, world)


_turns = itertools.count()


@contextmanager
def main_process_lock(processes: Processes, hold: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Enters a context in the main process, which may wait for another run for hours; the others wait without limit.

    A collective operation would end the run after the group's timeout (10 minutes under NCCL); so the others poll the
    group's key-value store.

    Args:
        processes: Several of them must have formed a group, and must call this equally often.
        hold: Makes the context, which is entered once the lock is held.

    Raises:
        RunFailedError: in the other processes, if the main one could not enter; it reports the reason itself.
    """
    if processes.world == 1:
        with hold():
            yield
        return
    from torch.distributed.distributed_c10d import _get_default_store

    store, key = _get_default_store(), f"earthbench/held/{next(_turns)}"
    if processes.main:
        with ExitStack() as stack:
            try:
                stack.enter_context(hold())
            except BaseException:
                store.set(key, "refused")
                raise
            store.set(key, "held")
            yield
        return
    while not store.check([key]):
        time.sleep(_POLL_S)
    if store.get(key) != b"held":
        raise RunFailedError("the first process could not lock the folder")
    yield


def has_to_launch(devices: int, nodes: int) -> bool:
    """Returns whether this process must launch the run's processes.

    Raises:
        ConfigError: there are several nodes, where only a cluster's launcher can start them.
    """
    started = "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if devices * nodes == 1 or started:
        return False
    if nodes > 1:
        raise ConfigError(
            f"nodes={nodes}: start one process per device with the cluster's launcher, e.g. `srun earthbench run ...` "
            "with --ntasks-per-node equal to devices, or `torchrun --nnodes ...`"
        )
    return True


def launch(function: Callable[..., Any], devices: int, **arguments: Any) -> Any:
    """Calls `function(**arguments)` in new processes on this machine and returns the result of the first.

    Their logs go to this process's logger, and signals to this process go to them.  One that fails ends the others.

    Raises:
        EarthbenchError: the error of the first process that failed, of the same class.
    """
    import torch.multiprocessing as processes

    ends = [processes.get_context("spawn").Pipe(duplex=False) for _ in range(devices)]
    context = processes.start_processes(
        _process,
        args=(devices, _free_port(), [sender for _, sender in ends], log.level, function, arguments),
        nprocs=devices,
        join=False,
        start_method="spawn",
    )
    assert context is not None
    for _, sender in ends:
        sender.close()
    told: dict[int, tuple[str, Any]] = {}
    with _signals_forwarded(context.processes):
        while not _all_ended(context):
            for rank, (receiver, _) in enumerate(ends):
                _receive(receiver, rank, told)
    for rank, (receiver, _) in enumerate(ends):
        _receive(receiver, rank, told)
    for _, (kind, content) in sorted(told.items()):
        if kind != "returned":
            found = getattr(errors, kind, None)
            raise (found if isinstance(found, type) else RuntimeError)(content)
    if told.get(0, ("", None))[0] != "returned":
        raise RunFailedError(f"a process of {devices} died without a message, perhaps for lack of memory")
    return told[0][1]


def _receive(receiver: Connection, rank: int, told: dict[int, tuple[str, Any]]) -> None:
    with suppress(EOFError):  # it ended without a message
        while rank not in told and receiver.poll():
            kind, content = receiver.recv()
            if kind == LOGGED:
                log.handle(content)
            else:
                told[rank] = (kind, content)


def _all_ended(context: Any) -> bool:
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    try:
        return bool(context.join(timeout=0.1, grace_period=_GRACE_S))
    except (ProcessExitedException, ProcessRaisedException):
        return True  # their errors are in the pipes


@contextmanager
def _signals_forwarded(children: list[Any]) -> Iterator[None]:
    def forward(number: int, frame: Any) -> None:
        for child in children:
            if child.is_alive():
                os.kill(child.pid, number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _process(
    rank: int,
    world: int,
    port: int,
    senders: list[Connection],
    log_level: int,
    function: Callable[..., Any],
    arguments: dict[str, Any],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sender = senders[rank]
    forward_to(sender, log_level)
    try:
        found = function(**arguments)
        sender.send(("returned", found if rank == 0 else None))
    except EarthbenchError as error:
        sender.send((type(error).__name__, str(error)))
        time.sleep(1)  # the others may be about to report the reason, too
        os._exit(error.exit_code)
    except BaseException:
        import traceback

        sender.send(("RuntimeError", f"in process {rank} of {world}:\n{traceback.format_exc()}"))
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Checks before a run: each tries what the run will do on this machine, and names the remedy."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.api import HasStages
from bench.config import Config
from bench.errors import EarthbenchError, RunFailedError, UsageError, first_line
from bench.files import check_writable
from bench.paths import as_path
from bench.records import provenance
from bench.tables.settings import micro_batch

if TYPE_CHECKING:
    from torch import nn

    from bench.tasks import Task

Outcome = Literal["ok", "warning", "wrong", "skipped"]

_GROUP_S = 60.0
"""How long processes may take to start, form a group, reduce a number and leave."""
_READING_S = 3.0
_LOW_MEMORY_BYTES = 2 * 10**9
_RECORDS_BYTES = 50 * 10**6
"""Space for records, logs and pictures of a run."""
_CHECKPOINTS, _BYTES_PER_PARAMETER = 3, 12
"""Best, last and the one being written, each with weights and Adam's two moments in float32."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    outcome: Outcome
    found: str
    cure: str = ""
    exit_code: int = 0
    """2 for invalid input, 3 if something failed when it was tried."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return asdict(self)


def checks(config: Config) -> Iterator[Check]:
    """Yields the result of each check as soon as it is known.

    Args:
        config: Config of the planned run.
    """
    yield _run_check("versions", _versions)
    device = _run_check("device", lambda: _device(config))
    yield device
    usable = device.outcome != "wrong"
    yield _run_check("processes", lambda: _group(config)) if usable else _skipped("processes", "the device")
    yield _run_check("memory", lambda: _memory(config, usable))
    opened: dict[str, Any] = {}
    data = _run_check("data", lambda: _data(config, opened))
    yield data
    model = _run_check("model", lambda: _model(config, opened))
    yield model
    yield _run_check("disk", lambda: _disk(config, opened))
    missing = [c for c in (device, data, model) if c.outcome in ("wrong", "skipped")]
    yield (
        _run_check("training step", lambda: _steps(config, opened))
        if not missing
        else _skipped("training step", f"the {missing[0].name}")
    )


def _skipped(name: str, other: str) -> Check:
    return Check(name, "skipped", f"not tried: it needs {other}")


def _run_check(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except EarthbenchError as error:
        # Our own messages name the remedy.
        return Check(name, "wrong", str(error), exit_code=2 if isinstance(error, UsageError) else 3)
    except Exception as error:  # a driver, a file system, a plugin: whatever breaks here would break a run
        return Check(
            name, "wrong", f"{type(error).__name__}: {first_line(error)}", "a run would end with the same error", 3
        )


def _versions() -> Check:
    try:
        different = provenance.environment_differences()
    except FileNotFoundError:
        return Check("versions", "warning", "constraints.txt is missing", "install the package again")
    if not different:
        return Check("versions", "ok", "every package has the version that the tests passed with")
    cure = "pip install -c constraints.txt -e . (or the wheel) installs the tested ones; records name the difference"
    return Check("versions", "warning", f"tested -> installed: {', '.join(different)}", cure)


def _device(config: Config) -> Check:
    import torch

    from bench.engine.trainer import torch_device, trainer_device

    trainer_device(config.device, config.devices, config.nodes, config.strategy)
    found = f"{torch_device(config.device)}, torch {torch.__version__}"
    driver = provenance.nvidia_driver()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return Check("device", "ok", f"{found}, CUDA {torch.version.cuda}, driver {driver or 'unknown'}, {names}")
    if config.device == "auto" and driver is not None:
        cure = "install a torch built for this driver's CUDA (https://pytorch.org/get-started), or give device=cpu"
        return Check("device", "warning", f"{found}: NVIDIA driver {driver} is loaded, but torch sees no GPU", cure)
    return Check("device", "ok", found)


def _group(config: Config) -> Check:
    """Forms a group with the run's number of processes, or one per visible GPU, and dissolves it."""
    import torch

    from bench.engine.trainer import torch_device

    on_gpus = torch_device(config.device).startswith("cuda")
    world = config.devices if config.devices > 1 or not on_gpus else torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        arguments = [(rank, world, backend, f"{folder}/meeting") for rank in range(world)]
        processes = [context.Process(target=_member, args=words, daemon=True) for words in arguments]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, started + _GROUP_S - time.monotonic()))
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
    cure = (
        "run again with NCCL_DEBUG=INFO; often the cause is a firewall or a wrong interface (NCCL_SOCKET_IFNAME, "
        "GLOO_SOCKET_IFNAME), or too little /dev/shm"
    )
    if None in codes:
        return Check("processes", "wrong", f"no {backend} group of {world} within {_GROUP_S:.0f} s", cure, 3)
    if any(codes):
        return Check("processes", "wrong", f"{backend} group of {world}: exit codes {codes}", cure, 3)
    took = time.monotonic() - started
    return Check("processes", "ok", f"{backend} group of {world} formed and torn down in {took:.1f} s")


def _member(rank: int, world: int, backend: str, meeting: str) -> None:
    import torch
    import torch.distributed as group

    on_gpu = "cuda" in backend
    if on_gpu:
        torch.cuda.set_device(rank)
    group.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
    for device in ["cpu", *([f"cuda:{rank}"] if on_gpu else [])]:
        total = torch.ones((), device=device)
        group.all_reduce(total)
        if int(total) != world:
            os._exit(4)
    group.destroy_process_group()


def _memory(config: Config, usable: bool) -> Check:
    import torch

    from bench.engine.trainer import torch_device

    free = _available_bytes()
    found = f"{free / 1e9:.1f} GB of RAM are free" if free is not None else "free RAM is unknown"
    cure = ""
    if free is not None and free < _LOW_MEMORY_BYTES:
        cure = "end other programs, or lower data.batch_size and data.num_workers"
    if usable and (place_ := torch_device(config.device)).startswith("cuda"):
        here, total = torch.cuda.mem_get_info(place_)
        found += f", {here / 1e9:.1f} of {total / 1e9:.1f} GB on {place_}"
        if here < 0.8 * total:
            cure = f"another program holds {(total - here) / 1e9:.1f} GB of {place_}: see nvidia-smi"
    return Check("memory", "warning" if cure else "ok", found, cure)


def _available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux
    return None


def _data(config: Config, opened: dict[str, Any]) -> Check:
    from bench.data.loading import training_loader, workers
    from bench.engine.trainer import trainer_device
    from bench.tasks import load_task

    if config.data.root is None:
        return Check("data", "skipped", "no data.root given", "give data.root=DIR to try reading and a training step")
    task = load_task(config.task.name, config.data.root, **config.task.options)
    data = task.dataset("train")
    counts = ", ".join(f"{len(task.dataset(split))} {split}" for split in ("train", "val", "test"))
    if not len(data):
        return Check("data", "wrong", f"{counts} sequences: nothing to train on", "`earthbench data info` says more", 2)
    on_gpu = trainer_device(config.device)["accelerator"] == "gpu"
    processes = workers(config.data.num_workers, on_gpu=on_gpu, devices=config.devices)
    size = min(micro_batch(config), len(data))
    loader = training_loader(
        data.source, batch_size=size, micro_batch=size, seed=config.seed, limit=None, num_workers=processes,
        timeout_s=config.data.timeout_s,
    )  # fmt: skip
    started, batches, sequences = time.monotonic(), 0, 0
    for batch in loader:
        batches, sequences = batches + 1, sequences + len(batch[0])
        if time.monotonic() - started > _READING_S:
            break
    passed = time.monotonic() - started
    opened["task"], opened["sequences_per_s"] = task, sequences / passed
    return Check(
        "data",
        "ok",
        f"{config.data.root}: {counts} sequences; {batches / passed:.3g} batches of {size} read per "
        f"second by {processes or 'this'} process{'es' if processes > 1 else ''}",
    )


def _model(config: Config, opened: dict[str, Any]) -> Check:
    from bench.models import has_weights, load_model
    from bench.tasks import load_task

    task: Task = opened.get("task") or load_task(config.task.name, **config.task.options)
    model: nn.Module = load_model(config.model.name, task, **config.model.options)
    count = sum(parameter.numel() for parameter in model.parameters())
    opened["model"], opened["parameters"] = model, count if has_weights(model) else 0
    return Check("model", "ok", f"{config.model.name} on {config.task.name}: {count / 1e6:.3g} million parameters")


def _disk(config: Config, opened: dict[str, Any]) -> Check:
    weights = _CHECKPOINTS * _BYTES_PER_PARAMETER * opened.get("parameters", 0)
    own = config.train.checkpoints is None
    needs = {"work": (config.work, _RECORDS_BYTES + (weights if own else 0)), "results.root": (config.results.root, 0)}
    if config.train.checkpoints is not None:
        needs["train.checkpoints"] = (config.train.checkpoints, weights)
    found, short = [], []
    for key, (text, need) in needs.items():
        folder = as_path(text, key)
        made = [one for one in (folder, *folder.parents) if not one.exists()] if isinstance(folder, Path) else []
        check_writable(folder, key)
        if not isinstance(folder, Path):
            found.append(f"{key}={text} takes files")
            continue
        free = shutil.disk_usage(folder).free
        for one in made:
            with suppress(OSError):  # it is not empty any more
                one.rmdir()
        found.append(f"{key}={text}: {free / 1e9:.1f} GB free")
        if free < max(need, _RECORDS_BYTES):
            short.append(f"{key} needs {max(need, _RECORDS_BYTES) / 1e9:.1f} GB and has {free / 1e9:.1f} GB")
    if short:
        return Check("disk", "wrong", "; ".join(short), "make room, or name another disk: KEY=DIR", 3)
    return Check("disk", "ok", "; ".join(found))


def _steps(config: Config, opened: dict[str, Any]) -> Check:
    """Takes two training steps of the model, or of each of its stages, on one device; the weights are discarded."""
    from bench.models import is_fitted

    model, task = opened["model"], opened["task"]
    if not opened["parameters"] or is_fitted(model):
        return Check("training step", "skipped", f"{config.model.name} is not trained by gradients")
    told, fastest, size = [], 0.0, micro_batch(config)
    for name, module, prepare in _modules(model):
        if prepare is not None:
            prepare(_one_batch(task, config))
        step_s, loss = _two_steps(module, task, config)
        fastest = max(fastest, size / step_s)
        told.append(f"{name + ': ' if name else ''}{step_s:.3g} s for a batch of {size}, loss {loss:.4g}")
    reading = opened["sequences_per_s"]
    if reading < fastest:
        cure = "raise data.num_workers: reading is slower than the model"
        found = f"{'; '.join(told)}; reads {reading:.3g} sequences per second, of {fastest:.3g} that it could train on"
        return Check("training step", "warning", found, cure)
    return Check("training step", "ok", "; ".join(told))


def _modules(model: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(model, HasStages):
        return [("", model, None)]
    return [(stage.name, stage.module, stage.prepare) for stage in model.stages()]


def _one_batch(task: Task, config: Config) -> list[Any]:
    from bench.data.loading import evaluation_loader

    data, size = task.dataset("train"), micro_batch(config)
    loader = evaluation_loader(data.source, batch_size=size, limit=size, num_workers=0)
    return [(task.to_context(b.context), task.normalise(task.to_target(b.target)), *b.labels) for b in loader]


def _two_steps(module: Any, task: Task, config: Config) -> tuple[float, float]:
    """Returns the seconds of the second step, and its loss."""
    from lightning.pytorch.callbacks import Callback

    from bench.data.loading import training_loader
    from bench.engine.forecaster import Forecaster
    from bench.engine.trainer import trainer_device, translated_errors
    from bench.engine.trial import trial_steps

    ends: list[float] = []
    losses: list[float] = []

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            ends.append(time.perf_counter())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))  # waits for the device
            ends.append(time.perf_counter())

    data = task.dataset("train")
    size = min(micro_batch(config), len(data))
    loader = training_loader(
        data.source, batch_size=size, micro_batch=size, seed=config.seed, limit=2 * size, num_workers=0
    )
    forecaster = Forecaster(module, task, config.train, total_steps=100)
    with translated_errors(f"a training step at batch size {size}"):
        trial_steps(forecaster, loader, config.train, trainer_device(config.device), [Clock()], max_steps=2)
    if len(ends) < 2:
        raise RunFailedError("no training step was taken")
    return ends[-1] - ends[-2], losses[-1]

"""Setup of Lightning's trainer: device, precision, messages and errors."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.errors import ConfigError, InterruptedRunError, RunFailedError, UsageError, first_line

# Lightning's own group for GPUs, plain "nccl", refuses every tensor on the CPU.
_CPU_GROUP, _GPU_GROUP = "gloo", "cpu:gloo,cuda:nccl"


def form_group(device: str, devices: int, nodes: int) -> None:
    """Joins this process with the others of its run unless they are joined; call it before any of them waits.

    Raises:
        ConfigError: the device is not available.
    """
    import lightning
    import torch

    if devices * nodes > 1 and not torch.distributed.is_initialized():
        quiet_lightning()
        where = trainer_device(device, devices, nodes, "ddp")
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        lightning.Trainer(**where, **quiet).strategy.setup_environment()


def leave_group() -> None:
    """Leaves the group of a run's processes before this one ends, because NCCL warns about groups left open."""
    torch = sys.modules.get("torch")  # a command that has not imported it has formed no group
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trainer_device(
    device: str, devices: int = 1, nodes: int = 1, strategy: str = "auto", *, unused_parameters: bool = False
) -> dict[str, Any]:
    """Returns Lightning's arguments for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`, and for several processes.

    `auto` is CUDA if available, else the CPU. Apple's `mps` lacks operations and float64, so it must be named.

    Args:
        device: Where one process computes.
        devices: Processes per node, one per device.
        nodes: Machines.
        strategy: auto (one process, else DDP), ddp or fsdp (weights in shards).
        unused_parameters: Whether some steps leave parameters without a gradient, which DDP must know.

    Raises:
        ConfigError: the device is not available, or the strategy does not support it.
    """
    import torch

    if device == "mps":
        if devices * nodes > 1 or strategy != "auto":
            raise ConfigError(
                f"device=mps devices={devices} nodes={nodes} strategy={strategy}: there is only one such device"
            )
        if not torch.backends.mps.is_available():
            raise ConfigError("device=mps: torch sees no Apple GPU here; use device=cpu or device=auto")
        return {"accelerator": "mps", "devices": 1}
    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    several: dict[str, Any] = {}
    if devices * nodes > 1 or strategy != "auto":
        several = _distributed(strategy, devices, nodes, _CPU_GROUP if cpu else _GPU_GROUP, unused_parameters)
    if cpu:
        return {"accelerator": "cpu", "devices": devices, **several}
    if not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch sees no CUDA device here; use device=cpu or device=auto")
    index = int(device.partition(":")[2] or 0)
    known = torch.cuda.device_count()
    if index >= known:
        raise ConfigError(f"device={device}: there are {known} CUDA devices, counted from 0")
    if devices == 1:
        return {"accelerator": "gpu", "devices": [index], **several}
    if ":" in device or devices > known:
        raise ConfigError(
            f"device={device} devices={devices}: there are {known} CUDA devices; with several, device=cuda"
        )
    return {"accelerator": "gpu", "devices": devices, **several}


def _distributed(strategy: str, devices: int, nodes: int, group: str, unused_parameters: bool) -> dict[str, Any]:
    from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

    # Started by bench.engine.processes, which may be inside a SLURM job of one task.
    ours = "RANK" in os.environ and not TorchElasticEnvironment.detect()
    how: Strategy
    if strategy == "fsdp":  # FSDP2 (fully_shard), which unlike FSDP1 also works without GPUs
        how = ModelParallelStrategy(
            devices * nodes, tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=group
        )
    else:
        options: dict[str, Any] = {"find_unused_parameters": True} if unused_parameters else {}
        how = DDPStrategy(process_group_backend=group, **options)
    return {
        "num_nodes": nodes,
        "strategy": how,
        "use_distributed_sampler": False,  # Lightning's pads; bench.data.loading splits batches exactly
        "plugins": [LightningEnvironment()] if ours else [],
    }


def torch_device(device: str) -> str:
    """Returns torch's name of the device that `trainer_device` chooses.

    Raises:
        ConfigError: the device is not available.
    """
    chosen = trainer_device(device)
    return f"cuda:{chosen['devices'][0]}" if chosen["accelerator"] == "gpu" else str(chosen["accelerator"])


def quiet_lightning() -> None:
    """Suppresses Lightning's start-up lines, and warnings about things done on purpose."""
    warnings.filterwarnings("ignore", message=".*LeafSpec", module="lightning.*")  # a deprecation in its own code
    warnings.filterwarnings("ignore", message=".*exists and is not empty")  # a resumed run's own checkpoints
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode")  # the running average of the weights
    warnings.filterwarnings("ignore", message=".*defined a `validation_step` but")  # a tree without that split
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # devices=N starts processes itself
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")  # scores are synced by torchmetrics
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified")  # some steps use them all
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing is changed in place
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def arithmetic(matmul_precision: str) -> Iterator[None]:
    """Sets a GPU's precision of float32 products within a block, and restores it afterwards.

    Args:
        matmul_precision: For matrix products, see `train.matmul_precision`; convolutions may use TF32, which is
            PyTorch's default, as in the authors' trainings.
    """
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(matmul_precision)
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
# Errors of a full disk, a quota, a size limit, and a file system that turned read-only.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


_BATCH_OF_ONE = "Expected more than 1 value per channel when training"


@contextmanager
def translated_errors(phase: str, then: str = "", model: str | None = None) -> Iterator[None]:
    """Translates errors from outside this project within a block into our messages and exit codes.

    Args:
        phase: What is being done, for messages.
        then: A sentence about what to do next.
        model: The model's name.

    Raises:
        ConfigError: an operation has no deterministic form, and the config requires one.
        UsageError: a loader process found a problem in the data; its own message is kept.
        RunFailedError: memory or disk ran out, or a loader process died or hangs.
        InterruptedRunError: a signal arrived outside a training step; Lightning would exit without a message, after
            SIGTERM even with exit code 0.
    """
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunFailedError(
            f"out of memory in {phase}: {first_line(error)} "
            "Lower data.micro_batch, what one device takes at a time: the batch of an optimiser step does not change."
        ) from error
    except UsageError as error:  # from a loader process, it contains that process's traceback
        name = f"\n{type(error).__module__}.{type(error).__qualname__}: "
        _, _, said = str(error).partition(name)
        if not said:
            raise
        raise type(error)(said.strip()) from error
    except ValueError as error:
        if _BATCH_OF_ONE not in str(error):
            raise
        raise RunFailedError(
            f"{phase}: batch normalisation of a 1x1 grid needs more than one sequence, and a batch has only one (the "
            "last one of an epoch is the rest). Set data.batch_size so that none is left alone, or give the model "
            "fewer levels"
        ) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise RunFailedError(f"{phase}: cannot write: {error}. Everything saved before is intact.") from error
        if isinstance(error, RuntimeError) and (found := _NOT_DETERMINISTIC.search(str(error))):
            raise ConfigError(
                f"train.deterministic=true: {model or 'the model'} uses {found[1]} in {phase}, which has no "
                "deterministic form in PyTorch on this device. Set train.deterministic=warn, which warns and "
                "runs it, or false; or choose another model."
            ) from error
        if "DataLoader" not in str(error) and not isinstance(error, ConnectionError):  # with a loader process
            raise
        raise RunFailedError(
            f"{phase}: {first_line(error)} A process that reads data died or gave nothing within "
            f"data.timeout_s; data.num_workers=0 reads in this process and shows why. {then}".rstrip()
        ) from error
    except SystemExit as error:
        if isinstance(error, SIGTERMException) or isinstance(error.__context__, KeyboardInterrupt):
            raise InterruptedRunError(f"interrupted in {phase}; nothing was recorded. {then}".rstrip()) from error
        raise

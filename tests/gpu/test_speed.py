"""Training speed of Earthformer at full size, by micro-batch and precision, and compiled with a smaller last batch."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import bench
from bench.engine.losses import masked_mse

pytestmark = pytest.mark.gpu

_PRECISIONS = ("plain float32", "float32", "tf32", "bf16", "bf16 compiled")


@pytest.fixture
def empty_gpu() -> Iterator[None]:
    """Frees the memory of a test, so that the next one has all of it."""
    yield
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def _sync(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("micro_batch", [2, 8, 16])
@pytest.mark.parametrize("precision", _PRECISIONS)
@pytest.mark.usefixtures("empty_gpu")
def test_earthformer_at_full_size(
    precision: str, micro_batch: int, device: str, small: bool, report: Callable[..., None]
) -> None:
    if small and (micro_batch > 2 or "compiled" in precision):
        return  # a CPU tries the test only
    if (precision == "plain float32" and micro_batch > 2) or (precision == "bf16 compiled" and micro_batch != 8):
        return  # the plain formulation needs too much memory; one compilation takes minutes
    task = bench.load_task("icar_enso" if small else "sevir")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model: Any = bench.load_model("earthformer", task).to(device).train()
    called = torch.compile(model) if "compiled" in precision else model
    context = torch.rand(micro_batch, *task.input_shape, device=device)
    target = torch.rand(micro_batch, *task.target_shape, device=device)
    half = torch.autocast(device, torch.bfloat16) if precision.startswith("bf16") else contextlib.nullcontext()
    plain = model.reference() if precision.startswith("plain") else contextlib.nullcontext()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with plain, half:
            loss = masked_mse(called(context), target)
        loss.backward()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = []
    try:
        for _ in range(2 if small else 5):
            _sync(device)
            started = time.perf_counter()
            if precision.startswith("plain"):
                plain = model.reference()
            step()
            _sync(device)
            took.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        report(precision=precision, micro_batch=micro_batch, ms_per_sequence="does not fit", peak_gib="")
        return
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    report(
        precision=precision, micro_batch=micro_batch, ms_per_sequence=1000 * min(took[1:]) / micro_batch, peak_gib=peak
    )


def test_a_compiled_model_and_a_smaller_last_batch(device: str, small: bool, report: Callable[..., None]) -> None:
    task = bench.load_task("icar_enso")
    model = bench.load_model("earthformer", task).to(device).eval()
    compiled = torch.compile(model, backend="eager" if small else "inductor")
    seconds = []
    with torch.no_grad():
        for count in (4, 4, 3, 2, 4):
            context = torch.rand(count, *task.input_shape, device=device)
            started = time.perf_counter()
            found = compiled(context)
            _sync(device)
            seconds.append(round(time.perf_counter() - started, 2))
            assert torch.allclose(found, model(context), rtol=1e-2, atol=1e-3)
    report(batches="4, 4, 3, 2, 4", seconds=str(seconds))

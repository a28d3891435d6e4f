"""Times Earthformer against the plain formulation (`earthformer.reference`): same weights, interleaved in one run.

    python tests/speed/earthformer.py icar_enso sevir_lr --threads 2 --repeats 10
    python tests/speed/earthformer.py sevir --repeats 3 --memory
    python tests/speed/earthformer.py icar_enso --compile

Prints the least and the median time of each and the ratio of the least ones; with ``--memory`` the peak resident memory
of each, measured in separate processes.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from earthformer.model import Earthformer, EarthformerNoGlobal, EarthformerReleased

MODELS = {"earthformer": Earthformer, "no_global": EarthformerNoGlobal, "released": EarthformerReleased}
SHAPES = {
    "sevir": ((13, 384, 384, 1), (12, 384, 384, 1)),
    "sevir_lr": ((7, 128, 128, 1), (6, 128, 128, 1)),
    "icar_enso": ((12, 24, 48, 1), (14, 24, 48, 1)),
    "nbody_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
    "moving_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
}
KIB_PER_MIB = 1024


def build(task: str, model: str) -> tuple[Earthformer, torch.Tensor, torch.Tensor]:
    """Returns a model with fixed weights, a context and a target, batch 1."""
    torch.manual_seed(0)
    cls = MODELS[model]
    built = cls(*SHAPES[task], **cls.presets[task])
    return built, torch.randn(1, *SHAPES[task][0]), torch.randn(1, *SHAPES[task][1])


def seconds(run: Callable[[], object]) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def report(what: str, plain: list[float], ours: list[float]) -> None:
    """Prints both times and their ratio."""
    print(
        f"{what:38s} plain {min(plain):.4f} / {statistics.median(plain):.4f} s   ours {min(ours):.4f} / "
        f"{statistics.median(ours):.4f} s   ratio {min(plain) / min(ours):.2f}",
        flush=True,
    )


def compare(task: str, model: str, repeats: int, *, train: bool, compiled: bool) -> None:
    """Times both in turn and prints the result."""
    built, context, target = build(task, model)
    built.train(train)
    own_forward = torch.compile(built) if compiled else built

    def step(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if not train:
            with torch.no_grad():
                forward(context)
            return
        built.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(forward(context), target).backward()

    plain: list[float] = []
    ours: list[float] = []
    for index in range(repeats + 1):
        with built.reference():
            plain_s = seconds(lambda: step(built))
        own_s = seconds(lambda: step(own_forward))
        if index:
            plain.append(plain_s)
            ours.append(own_s)
    report(f"{task} {model} {'train' if train else 'eval'}{' compiled' if compiled else ''}", plain, ours)


def peak(task: str, model: str, path: str, *, train: bool) -> None:
    """Prints the peak resident memory of one path in MiB (run in a separate process)."""
    built, context, target = build(task, model)
    built.train(train)
    with built.reference() if path == "plain" else contextlib.nullcontext(), torch.set_grad_enabled(train):
        loss = torch.nn.functional.mse_loss(built(context), target)
        if train:
            loss.backward()
    # Not getrusage: its maximum starts from the parent's at the time of the fork.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // KIB_PER_MIB)


def main() -> None:
    """Runs the measurements given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--model", choices=sorted(MODELS), default="released")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--mode", choices=["eval", "train", "both"], default="both")
    parser.add_argument(
        "--compile", action="store_true", help="time torch.compile of the model against the plain formulation"
    )
    parser.add_argument("--memory", action="store_true", help="report peak memory too")
    parser.add_argument("--peak-of", choices=["plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    modes = [False, True] if arguments.mode == "both" else [arguments.mode == "train"]
    for task in arguments.tasks:
        if arguments.peak_of:
            peak(task, arguments.model, arguments.peak_of, train=modes[0])
            continue
        for train in modes:
            compare(task, arguments.model, arguments.repeats, train=train, compiled=arguments.compile)
            if arguments.memory:
                same = ["--model", arguments.model, "--mode", "train" if train else "eval"]
                found = {
                    path: subprocess.run(
                        [sys.executable, __file__, task, *same, "--peak-of", path],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout.strip()
                    for path in ("plain", "ours")
                }
                print(f"{task} peak memory, MiB: plain {found['plain']}, ours {found['ours']}", flush=True)


if __name__ == "__main__":
    main()

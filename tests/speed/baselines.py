"""Times the fast roll-out of each recurrent baseline against its plain step-by-step formulation.

Run from the repository root: `python -m tests.speed.baselines --task nbody_mnist --threads 1`. Both
forms have the same weights and the same input, and alternate. Medians are printed (on a CPU of processor time,
which other load affects least), with the largest difference between the two forecasts.
"""

import argparse
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

FAMILIES = {"convlstm": "ConvLSTM", "predrnn": "PredRNN", "phydnet": "PhyDNet", "e3d_lstm": "E3DLSTM"}
SHAPES = {
    "sevir": ((13, 384, 384, 1), (12, 384, 384, 1)),
    "sevir_lr": ((7, 128, 128, 1), (6, 128, 128, 1)),
    "icar_enso": ((12, 24, 48, 1), (14, 24, 48, 1)),
    "nbody_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the time of one call in seconds: processor time, or wall time on a GPU."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def forecast(model: nn.Module, context: Tensor, *, plain: bool) -> Tensor:
    """Returns a forecast by one of the two formulations."""
    with model.reference() if plain else contextlib.nullcontext(), torch.no_grad():  # type: ignore[operator]
        return model(context)


def train(model: nn.Module, context: Tensor, target: Tensor, *, plain: bool) -> None:
    """Computes the gradients of a training loss late in the schedule, by one of the two formulations."""
    model.zero_grad(set_to_none=True)
    with model.reference() if plain else contextlib.nullcontext():  # type: ignore[operator]
        loss = model.training_loss(context, target, step=9, total_steps=10)  # type: ignore[operator]
    sum(loss.values()).backward()


def main() -> None:
    """Prints one line per family and kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=SHAPES, default="nbody_mnist")
    parser.add_argument("--family", choices=FAMILIES, nargs="*", default=list(FAMILIES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--train", action="store_true", help="also time a training step's forward and backward pass")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    # Else the two forms differ by the rounding of TF32, which hides mistakes.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    input_shape, target_shape = SHAPES[arguments.task]
    print(f"{arguments.task}, batch {arguments.batch}, {device}, torch {torch.__version__}")
    for family in arguments.family:
        torch.manual_seed(0)
        cls = getattr(importlib.import_module(f"baselines.{family}"), FAMILIES[family])
        model = cls(input_shape, target_shape, **cls.presets[arguments.task]).to(device).eval()
        context = torch.rand(arguments.batch, *input_shape, device=device)
        target = torch.rand(arguments.batch, *target_shape, device=device)
        difference = (forecast(model, context, plain=False) - forecast(model, context, plain=True)).abs().max()
        kinds: dict[str, Callable[[bool], object]] = {
            "forecast": lambda plain: forecast(model, context, plain=plain)  # noqa: B023
        }
        if arguments.train and hasattr(model, "training_loss"):
            kinds["train"] = lambda plain: train(model, context, target, plain=plain)  # noqa: B023
        for kind, work in kinds.items():
            if kind != "forecast":  # which the difference has warmed up
                work(False), work(True)
            turns = [
                [seconds(lambda: work(plain), device) for plain in (False, True)]  # noqa: B023
                for _ in range(arguments.repeats)
            ]
            fast_s, plain_s = (statistics.median(times) for times in zip(*turns, strict=True))
            print(
                f"{family:9} {kind:8} plain {1e3 * plain_s:9.1f} ms  fast {1e3 * fast_s:9.1f} ms  "
                f"ratio {plain_s / fast_s:5.2f}  largest difference {difference:.1e}"
            )


if __name__ == "__main__":
    main()

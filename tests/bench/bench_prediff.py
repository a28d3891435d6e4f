"""PreDiff at toy size on synthetic storms: trained, sampled, guided, and its samplers compared, on one CPU thread.

    python tests/bench/bench_prediff.py OUT

Writes OUT/guidance.png and OUT/figures.json and prints the figures. Latents are encoded once: nothing is augmented.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from bench.data.storms import make_sevir
from bench.tasks import load_task
from earthformer.prediff.aligned_model import PreDiffKA
from earthformer.prediff.constraints import Control
from earthformer.prediff.model import PreDiff
from earthformer.prediff.sampling import Sampler

STEPS = {"autoencoder": 400, "denoiser": 1600, "alignment": 400}
SIGMAS = (-4, -2, 0, 2, 4)
SIZE = {
    "latent_channels": 4, "autoencoder_channels": [8, 16], "autoencoder_layers": 1, "autoencoder_groups": 8,
    "base_units": 32, "depth": [1], "num_heads": 4, "dropout": 0.0, "augment": False,
    "sampler": "dpm_solver++", "steps": 20,
}  # fmt: skip
CONTEXTS, MEMBERS = 12, 8
COMPARED, COMPARED_MEMBERS = 4, 6


def train(modules: list[nn.Module], steps: int, loss, lr: float, average: ModelEmaV3 | None = None) -> float:
    """Returns the mean loss of the last tenth of the steps."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    seen = []
    for step in range(steps):
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if average is not None:
            average.update(modules[0], step=step + 3)
        seen.append(float(value.detach()))
        if step % 200 == 0:
            print(f"  step {step}: {sum(seen[-50:]) / len(seen[-50:]):.4f}", flush=True)
    last = seen[-max(1, steps // 10) :]
    return sum(last) / len(last)


def crps(members: Tensor, truth: Tensor) -> float:
    """Returns the fair ensemble CRPS (M - 1 in the spread), the mean over everything but members."""
    count = len(members)
    error = (members - truth).abs().mean()
    spread = sum((first - second).abs().mean() for first in members for second in members) / (count * (count - 1))
    return float(error - spread / 2)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    root = out / "storms"
    if not root.exists():
        make_sevir(root, events={"train": 320, "val": 1, "test": 24}, size=16, frames=25, minutes=10.0, seed=3)
    task = load_task("sevir_lr", root)
    pairs = {
        split: [
            torch.stack(part)
            for part in zip(*(task.dataset(split)[i] for i in range(len(task.dataset(split)))), strict=True)
        ]
        for split in ("train", "test")
    }
    context, target = pairs["train"]
    aligned = {"alignment_units": 16, "alignment_depth": [1], "control": 0.0}
    model = PreDiffKA(task.input_shape, task.target_shape, **SIZE, **aligned)
    first, second, third = (stage.module for stage in model.stages())
    figures: dict[str, object] = {"sequences": len(context), "parameters": sum(p.numel() for p in model.parameters())}
    started = time.process_time()

    frames = torch.cat([context, target], dim=1).flatten(0, 1)

    def some(count: int, of: int) -> Tensor:
        return torch.randint(of, (count,))

    def autoencoding(step: int) -> Tensor:
        chosen = frames[some(48, len(frames))].unsqueeze(1)
        return sum(first.training_loss(chosen, chosen[:, :0], step=step, total_steps=1).values())

    figures["autoencoder_l1_per_pixel"] = train([first.autoencoder], STEPS["autoencoder"], autoencoding, 4e-3) / 256
    with torch.no_grad():
        model.eval()
        cond = torch.cat([model.autoencoder.to_latents(part) for part in context.split(120)])
        latents = torch.cat([model.autoencoder.to_latents(part) for part in target.split(120)])
    # The scale is fitted as in latent diffusion models: unit variance of the target's latents.
    model.scale_factor = float(1 / latents.std())
    figures["scale_factor"] = model.scale_factor
    latents = latents * model.scale_factor
    third.prepare([(context, target)])
    measured = model.alignment.constraint.measure(target)

    def denoising(step: int) -> Tensor:
        chosen = some(16, len(latents))
        t = torch.randint(1000, (16,))
        return model.diffusion.losses(latents[chosen], cond[chosen], t, torch.randn(16, *latents.shape[1:]))[0]

    def aligning(step: int) -> Tensor:
        chosen = some(16, len(latents))
        t = torch.randint(1000, (16,))
        noised = model.schedule.add_noise(latents[chosen], torch.randn(16, *latents.shape[1:]), t)
        return model.alignment.loss(noised, t, measured[chosen])

    average = ModelEmaV3(second.diffusion, decay=0.998, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    figures["denoising_loss"] = train([second.diffusion], STEPS["denoiser"], denoising, 2e-3, average)
    second.diffusion.load_state_dict(average.module.state_dict())
    figures["alignment_mse"] = train([model.alignment], STEPS["alignment"], aligning, 2e-3)
    figures["measure_variance"] = float(measured.var())
    figures["training_cpu_s"] = time.process_time() - started
    torch.save({"state_dict": model.state_dict(), "scale_factor": model.scale_factor}, out / "model.pt")
    evaluate(model, pairs["test"], figures, out)


def evaluate(model: PreDiffKA, test: list[Tensor], figures: dict[str, object], out: Path) -> None:
    """Adds the figures of forecasts, control and samplers, and draws the control."""
    picked = torch.linspace(0, len(test[0]) - 1, CONTEXTS).long()
    context, truth = (part[picked] for part in test)
    plain = without_guidance(model)
    members = plain.sample(context, members=MEMBERS)
    persistence = context[:, -1:].expand_as(truth)
    figures["crps"] = {"prediff": crps(members, truth), "persistence": float((persistence - truth).abs().mean())}
    figures["mse"] = {
        "mean of members": float((members.mean(0) - truth).square().mean()),
        "one member": float((members[0] - truth).square().mean()),
        "persistence": float((persistence - truth).square().mean()),
    }
    figures["intensity"] = {"mu": float(model.alignment.mean), "sigma": float(model.alignment.std)}
    print(json.dumps(figures, indent=1), flush=True)

    for scale in (50.0, 200.0):
        model.guidance["scale"] = scale
        rows = {n: model.sample(context[:6], members=4, control=Control(sigmas=float(n))) for n in SIGMAS}
        figures[f"mean_intensity_of_members_at_scale_{scale:g}"] = {n: float(row.mean()) for n, row in rows.items()}
        print(json.dumps(figures[f"mean_intensity_of_members_at_scale_{scale:g}"]), flush=True)
    draw(rows, plain.sample(context[:6], members=4), truth[:6], model, out / "guidance.png")

    reference, timing = {}, {}
    for sampler in (Sampler("ddpm", 1000), Sampler("dpm_solver++", 20), Sampler("ddim", 50)):
        plain.sampler = sampler
        started = time.process_time()
        reference[sampler.name] = plain.sample(context[:COMPARED], members=COMPARED_MEMBERS)
        timing[sampler.name] = time.process_time() - started
    exact, chosen = reference["ddpm"], truth[:COMPARED]
    figures["samplers"] = {
        name: {
            "cpu_s": timing[name],
            "cost_ratio": timing["ddpm"] / timing[name],
            "crps": crps(found, chosen),
            "mean_intensity": float(found.mean()),
            "spread": float(found.std(dim=0).mean()),
            "rms_distance_of_means_from_ddpm": float((found.mean(0) - exact.mean(0)).square().mean().sqrt()),
        }
        for name, found in reference.items()
    }
    # What two independent halves of the ensemble differ by, for scale: sampling noise alone.
    half = COMPARED_MEMBERS // 2
    noise = float((exact[:half].mean(0) - exact[half:].mean(0)).square().mean().sqrt())
    figures["rms_distance_of_means_of_half_ensembles_ddpm"] = noise
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def without_guidance(model: PreDiffKA) -> PreDiff:
    """Returns the model without its alignment network; it shares the others."""
    plain = PreDiff(model.input_shape, model.target_shape, **SIZE)
    plain.autoencoder, plain.diffusion, plain.scale_factor = model.autoencoder, model.diffusion, model.scale_factor
    return plain


def draw(rows: dict[int, Tensor], plain: Tensor, truth: Tensor, model: PreDiffKA, path: Path) -> None:
    """Draws the truth, a member without control and one for each control, and the members' mean intensities."""
    named = {"truth": truth[0], "no control": plain[0, 0], **{f"n = {n:+d}": row[0, 0] for n, row in rows.items()}}
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes = left.subplots(len(named), truth.shape[1])
    for row, (line, (name, frames)) in enumerate(zip(axes, named.items(), strict=True)):
        for lead, (axis, frame) in enumerate(zip(line, frames, strict=True)):
            axis.imshow(frame[..., 0], vmin=0, vmax=1, cmap="viridis", origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
            if not lead:
                axis.set_ylabel(name, rotation=0, ha="right", va="center")
            if not row:
                axis.set_title(f"+{10 * (lead + 1)} min", fontsize=8)
    axis = right.subplots()
    mu, sigma = float(model.alignment.mean), float(model.alignment.std)
    axis.plot(SIGMAS, [mu + n * sigma for n in SIGMAS], "k--", label="target: mu + n sigma")
    axis.plot(SIGMAS, [float(rows[n].mean()) for n in SIGMAS], "o-", label="members, mean")
    axis.axhline(float(plain.mean()), color="grey", lw=1, label="without control")
    axis.set_xlabel("n")
    axis.set_ylabel("mean intensity (0-1 scale)")
    axis.legend()
    figure.suptitle("Control of the mean intensity, toy model on synthetic storms of 16x16 pixels")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

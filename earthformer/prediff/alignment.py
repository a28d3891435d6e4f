"""Knowledge alignment: a network that estimates a measure from noised latents, and guidance by its gradient.

Source: PreDiff, section 3.3; attention pooling after Radford et al. 2021 (CLIP); names and conventions as in the
authors' released code and checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earthformer.prediff.constraints import Constraint, Control
from earthformer.prediff.diffusion import NoiseSchedule
from earthformer.prediff.down_path import DownPath, Levels, checked_shape, group_norm
from earthformer.prediff.losses import weighted_mean

NORMS = ("sample", "batch")
SCALINGS = ("sigma", "variance")


class AttentionPool(nn.Module):
    """One query, the mean of a frame's tokens, attends to all tokens and to itself; the result is projected."""

    def __init__(self, tokens: int, channels: int, num_heads: int, out_channels: int) -> None:
        """Makes the layer for frames of `tokens` tokens of `channels` channels.

        Raises:
            ValueError: the number of heads does not divide the channels.
        """
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads: expected a divisor of {channels} channels, found {num_heads}")
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, tokens + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels) for frames `x` (N, C, S)."""
        x = torch.cat((x.mean(dim=-1, keepdim=True), x), dim=-1) + self.positional_embedding
        heads = self.qkv_proj(x).unflatten(1, (3, self.num_heads, -1))
        q, k, v = heads.unbind(1)  # each (N, h, d, S)
        weights = torch.softmax(q[..., :1].transpose(-2, -1) @ k * q.shape[2] ** -0.5, dim=-1)
        answer = (v @ weights.transpose(-2, -1)).flatten(1, 2)
        pooled: Tensor = self.c_proj(answer)[..., 0]
        return pooled


class NoisyEncoder(DownPath):
    """Estimates a constraint's measure of each frame from a noised latent sequence."""

    def __init__(self, input_shape: Sequence[int], *, out_channels: int = 1, **levels: Any) -> None:
        """Makes the network for latents of `input_shape` (T, H, W, C) and `out_channels` values per frame.

        Raises:
            ValueError: shapes or hyperparameters that do not fit.
        """
        shape = checked_shape("input_shape", input_shape)
        released: dict[str, Any] = {"base_units": 128, "depth": (1, 1)}
        super().__init__(shape, Levels(**{**released, **levels}))
        self.input_shape = shape
        frames, height, width, channels = self.shapes[-1]
        if frames != shape[0]:
            raise ValueError(f"downsample: expected to leave {shape[0]} frames as they are, found {frames} left")
        pool = AttentionPool(height * width, channels, self.levels.num_heads, out_channels)
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), pool)

    def forward(self, zt: Tensor, t: Tensor, y: Tensor | None = None, zc: Tensor | None = None) -> Tensor:
        """Returns the estimates (B, T, out_channels).

        Args:
            zt: noised latents (B, T, H, W, C).
            t: diffusion steps (B,).
            y: the context; accepted but not used, as in the authors' code.
            zc: latents of the context; likewise.

        Raises:
            ValueError: latents do not have the shape that the network was made for.
        """
        if tuple(zt.shape[1:]) != self.input_shape:
            raise ValueError(
                f"alignment: expected latents (B, T, H, W, C) with {self.input_shape} behind B, found {tuple(zt.shape)}"
            )
        tokens = self.descend(zt, self.time_embed(t))[-1]
        frames = tokens.flatten(0, 1).flatten(1, 2).transpose(1, 2)
        estimates: Tensor = self.out(frames).unflatten(0, (-1, self.input_shape[0]))
        return estimates


class KnowledgeAlignment(nn.Module):
    """The alignment network, its constraint, and statistics of the measure over the training sequences.

    Attributes:
        network: estimates the measure per frame.
        constraint: measures frames.
        mean: mean of the measure over the training sequences, averaged over the target's frames (values,).
        std: standard deviation of the measure over the sequences (values,).
    """

    def __init__(self, network: NoisyEncoder, constraint: Constraint) -> None:
        """Combines network and constraint; the statistics are unknown until `fit`."""
        super().__init__()
        self.network = network
        self.constraint = constraint
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.full((constraint.values,), math.nan))
        self.register_buffer("std", torch.full((constraint.values,), math.nan))

    def fit(self, measured: Iterable[Tensor]) -> None:
        """Sets mean and standard deviation from measures (B, T, values) of all training sequences, in batches.

        The paper does not say how it gets the mean intensity and its spread; here they are those of the target's mean
        over the training sequences. Frames without a known pixel (NaN) are ignored.

        Raises:
            ValueError: no sequence with a known pixel, measures of the wrong shape, or values that are not finite.
        """
        expected = (self.network.input_shape[0], self.constraint.values)
        means = []
        for batch in measured:
            self._check(batch, (len(batch), *expected))
            mean = batch.double().nanmean(dim=1).cpu()
            means.append(mean[~torch.isnan(mean).any(1)])
        if not sum(map(len, means)):
            raise ValueError("alignment: expected measures of at least one training sequence, found none")
        values = torch.cat(means)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"alignment: the constraint {self.constraint.name!r} measured values that are not finite")
        self.mean.copy_(values.mean(dim=0))
        self.std.copy_(values.std(dim=0, correction=0))

    def loss(self, noised: Tensor, t: Tensor, measured: Tensor, share: Tensor | None = None) -> Tensor:
        """Returns the mean squared error of the estimates for noised latents (B, T, h, w, C).

        Args:
            noised: noised latents.
            t: diffusion steps (B,).
            measured: measure of the true frames (B, T, values); NaN has no error.
            share: share of known pixels in each frame (B, T), used as its weight; None for equal weights.

        Raises:
            ValueError: measures do not have the shape (B, T, values).
        """
        estimated = self.network(noised, t).float()
        self._check(measured, tuple(estimated.shape))
        unknown = torch.isnan(measured)
        weight = torch.ones_like(measured) if share is None else share.unsqueeze(-1).expand_as(measured)
        return weighted_mean((estimated - measured).masked_fill(unknown, 0).square(), weight.masked_fill(unknown, 0))

    def _check(self, measured: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(measured.shape) != expected:
            raise ValueError(
                f"constraint {self.constraint.name!r}: expected measures (B, T, values) = {expected}, found "
                f"{tuple(measured.shape)}"
            )

    def target(self, control: Control | None, cond: Tensor) -> Tensor:
        """Returns the target (B, K) of the compared measure.

        Args:
            control: target of the guidance; None for constraints that follow the context.
            cond: the context's latents (B, T_in, h, w, C).

        Raises:
            ValueError: a missing control, a value that does not have one row per sequence, or statistics that were
                never fitted.
        """
        batch, frames = len(cond), self.network.input_shape[0]
        width = self.constraint.values * (1 if self.constraint.averaged else frames)
        if control is None:
            return self._of_context(cond).repeat(1, width // self.constraint.values)
        if control.value is not None:
            value = torch.as_tensor(control.value, dtype=cond.dtype, device=cond.device)
            if value.dim() and value.shape not in ((batch,), (batch, 1), (batch, width)):
                raise ValueError(
                    f"constraint {self.constraint.name!r}: expected a target of one number, ({batch},) or "
                    f"({batch}, {width}), found {tuple(value.shape)}"
                )
            return (value.view(batch, -1) if value.dim() else value).expand(batch, width)
        if bool(torch.isnan(self.mean).any()):
            raise ValueError(
                "alignment: mean and standard deviation of the measure are not known: train the alignment stage, call "
                "`fit` on the training sequences, or give the control as a value"
            )
        if control.times is not None:
            value = self.mean * _column(control.times)
        else:
            assert control.sigmas is not None
            value = self.mean + _column(control.sigmas) * self.std
        return (
            value.to(cond)
            .view(-1, self.constraint.values)
            .repeat(1, width // self.constraint.values)
            .expand(batch, width)
        )

    @torch.no_grad()
    def _of_context(self, cond: Tensor) -> Tensor:
        """Returns the estimate (B, values) for the context's last frame, from its clean latents."""
        frames = self.network.input_shape[0]
        if not self.constraint.follows_context:
            raise ValueError(f"constraint {self.constraint.name!r}: expected a control, found none")
        if cond.shape[1] < frames:
            raise ValueError(
                f"constraint {self.constraint.name!r}: expected a context of at least {frames} frames to read the "
                f"measure of its last one, found {cond.shape[1]}: give the control as a value"
            )
        t = torch.zeros(len(cond), dtype=torch.long, device=cond.device)
        last: Tensor = self.network(cond[:, -frames:], t)[:, -1].float()
        return last


def _column(number: float | Tensor) -> float | Tensor:
    """Returns a number unchanged, and one number per row (B,) as a column (B, 1)."""
    return number.view(-1, 1) if isinstance(number, Tensor) else number


@dataclass(frozen=True, eq=False)
class Guidance:
    """The shift of each denoising step towards a constraint's target, by the gradient of the distance to it.

    Attributes:
        alignment: estimates the measure.
        target: (N, K), see `KnowledgeAlignment.target`.
        scale: strength. The authors' value of 50 is for ``sigma``; over 1000 steps the same number is about ten times
            weaker with ``variance``.
        norm: ``sample``: one distance per row; ``batch``: one distance over the batch, as in the authors' code, so that
            a row's shift depends on its batch. For one row they are the same.
        scaling: ``sigma``: by the standard deviation of the ancestral step, as in the authors' code; ``variance``: by
            its variance, as in the paper.
    """

    alignment: KnowledgeAlignment
    target: Tensor
    scale: float = 50.0
    norm: str = "sample"
    scaling: str = "sigma"

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: unknown conventions, or a scale that is not finite.
        """
        if self.norm not in NORMS:
            raise ValueError(f"guide_norm: expected one of {', '.join(NORMS)}, found {self.norm!r}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"guide_scaling: expected one of {', '.join(SCALINGS)}, found {self.scaling!r}")
        if not math.isfinite(self.scale):
            raise ValueError(f"guide_scale: expected a finite number, found {self.scale}")

    def gradient(self, noised: Tensor, t: Tensor) -> Tensor:
        """Returns the gradient of the distance to the target by the latents `noised` (N, T, h, w, C) at steps `t`.

        Raises:
            ValueError: the target and the compared measure differ in shape.
        """
        network = self.alignment.network
        # Latents made in inference mode do not support gradients; their copies do.
        with torch.inference_mode(False), torch.enable_grad():
            latents = noised.detach().clone().requires_grad_()
            compared = self.alignment.constraint.compared(network(latents, t.clone()).float())
            target = self.target.clone().to(compared)
            if compared.shape != target.shape:
                raise ValueError(
                    f"constraint {self.alignment.constraint.name!r}: expected a target {tuple(compared.shape)}, found "
                    f"{tuple(target.shape)}"
                )
            error = compared - target
            distance = torch.linalg.vector_norm(error, dim=1).sum() if self.norm == "sample" else error.norm()
            (gradient,) = torch.autograd.grad(distance, latents)
        return gradient

    def mean_shift(self, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Returns the shift of the ancestral step's mean."""
        return -self._weight(t, schedule, noised) * self.gradient(noised, t)

    def noise_shift(self, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Returns the shift of the predicted noise that equals `mean_shift` in an ancestral step, for any solver."""
        per_noise = (
            schedule.at("alphas", t, noised).sqrt()
            * schedule.at("sqrt_one_minus_alphas_cumprod", t, noised)
            / schedule.at("betas", t, noised)
        )
        return -per_noise * self.mean_shift(noised, t, schedule)

    def _weight(self, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        variance = schedule.at("posterior_variance", t, like)
        return self.scale * (variance.sqrt() if self.scaling == "sigma" else variance)

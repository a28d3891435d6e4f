"""VQ-VAE: frames as a grid of codes, each the number of a vector in a codebook.

van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017, arXiv:1711.00937; the
network and the codebook's updates are VideoGPT's (Yan et al. 2021, arXiv:2104.10157, github.com/wilson1yan/VideoGPT).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.masking import filled, known_error
from baselines.shapes import require_divisible

# The released settings.
_DECAY = 0.99
_COMMITMENT = 0.25
_VARIANCE = 0.06
_HEADS = 2
# Added to the counts of codes to avoid division by zero; the next is the jitter of repeated vectors.
_COUNT_EPS = 1e-7
_JITTER = 0.01
# For frames from 0 to 1 in double precision: a smaller variance is that of a constant with rounding errors.
_LEAST_VARIANCE = 1e-12


class VQVAE(nn.Module):
    """Autoencoder of clips whose latents are codes: the number of frames stays, height and width shrink.

    `encode` and `decode` use the running statistics of batch normalisation even in training mode, because a clip's
    codes must not depend on its batch.

    Args:
        channels: Channels of a frame.
        downsample: Pixels of a side that become one code, a power of 2, at least 2.
        codes: Number of vectors in the codebook.
        code_width: Length of these vectors.
        width: Channels of the networks; an even number.
        layers: Number of attention residual blocks of encoder and decoder.

    Raises:
        ValueError: the sizes do not fit together.
    """

    def __init__(
        self,
        channels: int,
        *,
        downsample: int = 4,
        codes: int = 512,
        code_width: int = 256,
        width: int = 240,
        layers: int = 4,
    ) -> None:
        super().__init__()
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f"VQVAE: downsample must be a power of 2 from 2 on, got {downsample}")
        if min(codes, code_width, layers) < 1:
            raise ValueError(f"VQVAE: sizes must be positive, got {codes=}, {code_width=}, {layers=}")
        require_divisible("VQVAE", "width", width, 2 * _HEADS)
        self.downsample = downsample
        steps = int(math.log2(downsample))
        down: list[nn.Module] = []
        for step in range(steps):
            down += [_SameConv(width if step else channels, width, 4, (1, 2, 2)), nn.ReLU()]
        self.encoder = nn.Sequential(
            *down, _SameConv(width, width, 3), *_residual_stack(width, layers), nn.Conv3d(width, code_width, 1)
        )
        up: list[nn.Module] = []
        for step in range(steps):
            up += [nn.ReLU()] * (step > 0)
            up.append(_SameConvTranspose(width, width if step < steps - 1 else channels))
        self.decoder = nn.Sequential(nn.Conv3d(code_width, width, 1), *_residual_stack(width, layers), *up)
        self.codebook = Codebook(codes, code_width)
        self.register_buffer("variance", torch.tensor(_VARIANCE))
        self.variance: Tensor

    def code_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns T, h, w of the codes of frames `(T, H, W, C)`.

        Raises:
            ValueError: `downsample` does not divide a side.
        """
        for axis, size in (("height", shape[1]), ("width", shape[2])):
            require_divisible("VQVAE", axis, size, self.downsample)
        return shape[0], shape[1] // self.downsample, shape[2] // self.downsample

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Returns the codes `(B, T, h, w)` of frames `(B, T, H, W, C)` from 0 to 1."""
        with in_eval_mode(self):
            return self.codebook.nearest(self._latents(frames).float())

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the frames `(B, T, H, W, C)`, from 0 to 1, of codes `(B, T, h, w)`."""
        with in_eval_mode(self):
            return self._frames(self.codebook.vectors[codes]).clamp(0, 1)

    def losses(self, frames: Tensor) -> dict[str, Tensor]:
        """Returns reconstruction and commitment loss; in training mode, also updates the codebook.

        The squared error is in units of the data's variance. Missing pixels have no error, and a latent is weighted by
        its share of known pixels.

        Args:
            frames: `(B, T, H, W, C)`, NaN where they are missing.
        """
        latents = self._latents(filled(frames)).float()
        share = known_share(frames, latents.shape[1:4])
        vectors = self.codebook(latents, share)
        reconstructed = self._frames(latents + (vectors - latents).detach())
        error = known_error(reconstructed, frames).square().sum() / (~torch.isnan(frames)).sum().clamp(min=1)
        distance = (latents - vectors.detach()).square().mean(-1)
        return {
            "reconstruction": error / self.variance,
            "commitment": _COMMITMENT * share_weighted_mean(distance, share),
        }

    def fit_variance(self, targets: Iterable[Tensor]) -> None:
        """Sets the variance by which reconstruction errors are divided to that of the known pixels.

        Args:
            targets: Frames `(B, T, H, W, C)`, NaN where they are missing.

        Raises:
            ValueError: no two known pixels differ.
        """
        count, total, squares = 0, 0.0, 0.0
        for frames in targets:
            values = filled(frames).double()
            count += int((~torch.isnan(frames)).sum())
            total, squares = total + float(values.sum()), squares + float(values.square().sum())
        variance = squares / count - (total / count) ** 2 if count else 0.0
        if not variance > _LEAST_VARIANCE:
            raise ValueError(
                f"expected target frames that differ, found variance {variance:.2g} of {count} known pixels"
            )
        self.variance.fill_(variance)

    def _latents(self, frames: Tensor) -> Tensor:
        return self.encoder((frames - 0.5).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)

    def _frames(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).float() + 0.5


class Codebook(nn.Module):
    """Vectors that are running averages of the latents nearest to them, without gradients.

    The first latents seen in training initialise the vectors. A vector whose average count of latents is below 1 is
    dead, and is replaced by a random latent in every step until latents are assigned to it.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        vectors = torch.randn(codes, width)
        self.register_buffer("vectors", vectors)
        self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("started", torch.tensor(False))
        self.vectors: Tensor
        self.sums: Tensor
        self.counts: Tensor
        self.started: Tensor

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns the codes (...) of the vectors nearest to latents (..., D)."""
        # The negative squared distance without the square of the latent, which is the same for all vectors.
        return (2 * F.linear(latents, self.vectors) - self.vectors.square().sum(-1)).argmax(-1)

    @property
    def perplexity(self) -> float:
        """The number of equally used codes that would have the entropy of the codes in use."""
        share = self.counts / self.counts.sum()
        return float(torch.special.entr(share).sum().exp())

    def forward(self, latents: Tensor, share: Tensor) -> Tensor:
        """Returns the vectors nearest to latents `(..., D)`; in training mode, initialises or updates the vectors.

        Args:
            latents: float32.
            share: Weight of each latent (...), from 0 to 1.
        """
        with torch.no_grad(), _single_precision(latents.device.type):
            flat, weight = latents.detach().flatten(0, -2), share.flatten()
            if self.training:
                self._start(flat, weight)
            codes = self.nearest(flat)
            vectors = self.vectors[codes].view_as(latents)
            if self.training:
                self._follow(flat, codes, weight)
        return vectors

    def _start(self, latents: Tensor, weight: Tensor) -> None:
        """Initialises the vectors with known latents."""
        starts = ~self.started & (_over_processes(weight.sum()) > 0)
        picked = self._picked(latents, weight)
        self.vectors.copy_(torch.where(starts, picked, self.vectors))
        self.sums.copy_(torch.where(starts, picked, self.sums))
        self.started.logical_or_(starts)

    def _follow(self, latents: Tensor, codes: Tensor, weight: Tensor) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, codes, weight)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents * weight[:, None])
        counts, sums = _over_processes(counts), _over_processes(sums)
        any_known = counts.sum() > 0  # otherwise the vectors stay
        decay = torch.where(any_known, _DECAY, 1.0)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        total, codes_count = self.counts.sum(), len(self.counts)
        smoothed = (self.counts + _COUNT_EPS) / (total + codes_count * _COUNT_EPS) * total
        alive = (self.counts >= 1)[:, None]
        moved = torch.where(alive, self.sums / smoothed[:, None], self._picked(latents, weight))
        self.vectors.copy_(torch.where(any_known, moved, self.vectors))

    def _picked(self, latents: Tensor, weight: Tensor) -> Tensor:
        """Returns random latents, as many as there are codes; unknown ones only if there are too few known ones."""
        if (missing := len(self.vectors) - len(latents)) > 0:
            times = 1 + -(-missing // len(latents))
            latents, weight = latents.repeat(times, 1), weight.repeat(times)
            latents = latents + torch.randn_like(latents) * _JITTER / math.sqrt(latents.shape[1])
        order = torch.rand_like(weight) + (weight > 0)
        picked = latents[order.topk(len(self.vectors)).indices]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(picked, 0)
        return picked


class _SameConv(nn.Conv3d):
    """Convolution whose output size is the input's over the stride; an odd pixel of padding is at the start."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: tuple[int, int, int] = (1, 1, 1), bias: bool = True):
        super().__init__(c_in, c_out, kernel, stride, bias=bias)
        self.padded = _same_padding(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.padded))


class _SameConvTranspose(nn.ConvTranspose3d):
    """Transposed convolution that doubles height and width."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 4, stride: tuple[int, int, int] = (1, 2, 2)) -> None:
        super().__init__(c_in, c_out, kernel, stride, padding=kernel - 1)
        self.padded = _same_padding(kernel, stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(F.pad(x, self.padded), output_size)


def _same_padding(kernel: int, stride: tuple[int, int, int]) -> list[int]:
    totals = [kernel - step for step in reversed(stride)]  # F.pad begins with the last axis
    return [side for total in totals for side in (total - total // 2, total // 2)]


def _residual_stack(width: int, layers: int) -> list[nn.Module]:
    return [*(_Residual(width) for _ in range(layers)), nn.BatchNorm3d(width), nn.ReLU()]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.block = nn.Sequential(
            nn.BatchNorm3d(width), nn.ReLU(), _SameConv(width, half, 3, bias=False),
            nn.BatchNorm3d(half), nn.ReLU(), nn.Conv3d(half, width, 1, bias=False),
            nn.BatchNorm3d(width), nn.ReLU(), _Axial(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class _Axial(nn.Module):
    """The sum of attentions along width, height and time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        for linear in (*self.qkv, *self.out):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)
        parts = [self._along(axis, x, qkv, out) for axis, qkv, out in zip((3, 2, 1), self.qkv, self.out, strict=True)]
        return torch.stack(parts).sum(0).permute(0, 4, 1, 2, 3)

    def _along(self, axis: int, x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
        lines = x.movedim(axis, 3)
        heads = qkv(lines).unflatten(-1, (3, _HEADS, -1)).flatten(0, 2)  # (N, L, 3, heads, d)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return out(seen.view_as(lines)).movedim(3, axis)


class VQVAEStage(nn.Module):
    """Trains the VQ-VAE on target frames, whose codes are forecast."""

    forecast_range: ClassVar[tuple[float, float]] = (0.0, 1.0)  # `VQVAE.decode` cuts off

    def __init__(self, vqvae: VQVAE) -> None:
        super().__init__()
        self.vqvae = vqvae

    def prepare(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Measures the variance of the targets once."""
        self.vqvae.fit_variance(target for _, target, *_ in batches)

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Returns reconstruction and commitment loss, and updates the codebook."""
        return self.vqvae.losses(target)

    def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of both losses."""
        return torch.stack(list(self.vqvae.losses(target).values())).sum()


def known_share(frames: Tensor, code_shape: Sequence[int]) -> Tensor:
    """Returns the share of known pixels `(B, T, h, w)` in the patch of each code.

    Args:
        frames: `(B, T, H, W, C)`, NaN where they are missing.
        code_shape: T, h, w.
    """
    height, width = code_shape[1:]
    known = (~torch.isnan(frames)).float().mean(-1)
    return known.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean((3, 5))


def share_weighted_mean(values: Tensor, share: Tensor) -> Tensor:
    """Returns the mean of values weighted by shares of the same shape; 0 if all are 0."""
    total = share.sum()
    return (values * share).sum() / total.masked_fill(total == 0, 1)


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Returns a context in which a module is in evaluation mode; afterwards each part is in its own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _single_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Returns a context without mixed precision; the meta device has none to leave."""
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _over_processes(values: Tensor) -> Tensor:
    """Returns the sum of values over the processes of a distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values

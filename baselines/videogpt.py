"""VideoGPT: a VQ-VAE turns frames into codes, and a transformer draws the codes of the future one by one.

Yan, Zhang, Abbeel and Srinivas, "VideoGPT: Video Generation using VQ-VAE and Transformers", 2021, arXiv:2104.10157;
sizes and settings of its release (github.com/wilson1yan/VideoGPT).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.code_transformer import CodeTransformer
from baselines.members import row_seeds
from baselines.rollout import HasReference
from baselines.shapes import checked_shapes
from baselines.videogpt_stages import Encode, Stage, TransformerStage
from baselines.vqvae import VQVAE, VQVAEStage, in_eval_mode

Advance = Callable[[int, int], None]

# With more, an ensemble over one test set would take days, and a member gigabytes of keys and values.
_MOST_CODES = 16_384
# Most rows (members of sequences) that are drawn together; halved if they do not fit into memory.
_MOST_ROWS = 64
# Most cached numbers for these rows on a CPU, which gains nothing from more: 1 GiB in double precision.
_MOST_KEPT_ON_A_CPU = 1 << 27
_FRAMES_DECODED = 64
# A codebook whose perplexity is below this share of its codes has hardly learnt any: 16 of 512.
_LEAST_SHARE_USED = 1 / 32


class VideoGPT(HasReference):
    """VideoGPT: a VQ-VAE and a transformer that draws its codes, trained one after the other.

    One thing differs from the release: there the transformer models the codes of context and future, and draws the
    context again; here it models only the future. It sees the context through the ResNet and, with `prompt_frames`,
    also through the codes of the last context frames, which precede those of the future and are not drawn.

    A code is drawn by comparing one random number with the cumulative probabilities. These are computed in double
    precision (if the device has it): in single precision, rounding that differs by batch or device would sometimes
    draw another code, and therefore other codes after it.

    Source: Yan et al. 2021 and its release.

    Args:
        input_shape: `(T_in, H, W, C)`, values from 0 to 1.
        target_shape: `(T_out, H, W, C)`; H and W are multiples of `downsample`.
        downsample: Pixels of a side that become one code: 2, 4 or 8.
        codes: Number of vectors in the codebook.
        code_width: Length of these vectors.
        vqvae_width: Channels of the VQ-VAE's networks.
        vqvae_layers: Number of attention residual blocks of encoder and decoder.
        width: Width of the transformer; divisible by 3 and by `heads`.
        layers: Number of transformer layers.
        heads: Number of attention heads.
        dropout: Dropout after attention and feed-forward layers.
        attention_dropout: Dropout of the self-attention weights.
        position_std: Standard deviation of the initial position embeddings, which short trainings hardly change.
        prompt_frames: Number of last context frames whose codes are given to the transformer.
        context_channels: Channels of the four groups of the ResNet that sees the context; the last is divisible by 3
            and by `heads`.
        context_blocks: Residual blocks of each group.
        members: Number of members that `forward` averages.
        seed: Seed of those members.

    Raises:
        ValueError: shapes or sizes do not fit.
    """

    evaluation_only: ClassVar[tuple[str, ...]] = ("members", "seed")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir_lr": {},
        "nbody_mnist": {},
        "moving_mnist": {},
        "tiny": {
            "codes": 32,
            "code_width": 16,
            "vqvae_width": 16,
            "vqvae_layers": 1,
            "width": 48,
            "layers": 2,
            "context_channels": [8, 16, 24, 24],
            "context_blocks": [1, 1, 1, 1],
            "members": 2,
        },
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by."""
        return int(hyperparameters["downsample"])

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        downsample: int = 4,
        codes: int = 512,
        code_width: int = 256,
        vqvae_width: int = 240,
        vqvae_layers: int = 4,
        width: int = 576,
        layers: int = 8,
        heads: int = 4,
        dropout: float = 0.2,
        attention_dropout: float = 0.3,
        position_std: float = 0.01,
        prompt_frames: int = 0,
        context_channels: Sequence[int] = (64, 128, 256, 240),
        context_blocks: Sequence[int] = (3, 4, 6, 3),
        members: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        source, target = checked_shapes("VideoGPT", input_shape, target_shape, feeds_back=False)
        self.input_shape, self.target_shape = source, target
        self.members, self.seed = _checked_members(members), seed
        of_vqvae: dict[str, Any] = {
            "downsample": downsample, "codes": codes, "code_width": code_width, "width": vqvae_width,
            "layers": vqvae_layers,
        }  # fmt: skip
        self.vqvae = VQVAE(target[3], **of_vqvae)
        self.code_shape = self.vqvae.code_shape(target)
        if not 0 <= prompt_frames <= source[0]:
            raise ValueError(f"VideoGPT: prompt_frames must be from 0 to {source[0]}, got {prompt_frames}")
        if prompt_frames and source[3] != target[3]:
            raise ValueError(f"VideoGPT: prompt_frames needs frames of {target[3]} channels in the context, too")
        if math.prod(self.code_shape) > _MOST_CODES:
            grid = " x ".join(map(str, self.code_shape))
            raise ValueError(
                f"VideoGPT: expected a target of at most {_MOST_CODES} codes, which are drawn one after the other, "
                f"found {grid} = {math.prod(self.code_shape)}: raise downsample, or take smaller frames"
            )
        of_transformer: dict[str, Any] = {
            "width": width, "layers": layers, "heads": heads, "dropout": dropout,
            "attention_dropout": attention_dropout, "position_std": position_std,
            "context_channels": list(context_channels), "context_blocks": list(context_blocks),
        }  # fmt: skip
        all_codes = (prompt_frames + self.code_shape[0], *self.code_shape[1:])
        self.transformer = CodeTransformer(
            source, all_codes, given=prompt_frames, codes=codes, code_width=code_width, **of_transformer
        )
        self._depends_on = {"vqvae": of_vqvae, "gpt": {**of_transformer, "prompt_frames": prompt_frames}}

    def forward(self, context: Tensor) -> Tensor:
        """Returns the mean of `members` members `(B, T_out, H, W, C)`, the same for a context in any batch.

        Under `reference`, which is for counting, it is one pass of both networks for one member, which predicts all
        codes at once; sampling computes them one by one.

        Raises:
            ValueError: a context of the wrong shape.
        """
        if self.plain:
            return self._one_pass(context)
        return self.sample(context, members=self.members).mean(dim=0)

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        *,
        members: int,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        advance: Advance | None = None,
    ) -> Tensor:
        """Returns members `(M, B, T_out, H, W, C)` for contexts `(B, T_in, H, W, C)`, from 0 to 1.

        A member depends on its context, its number and its seed, not on the device, the number of members or the rest
        of the batch.

        Args:
            context: Values from 0 to 1.
            members: Number of members, at least 1.
            generator: Gives one number, which seeds all members together with their contexts. Without generator and
                seeds, the members are those that `forward` averages.
            seeds: Instead of a generator, one seed per sequence `(B,)`, int64, from 0 to 2^63 - 1.
            advance: Called with (done, total) after every code of every row.

        Raises:
            ValueError: no members, both a generator and seeds, a wrong number of seeds or a context of the wrong shape.
        """
        _checked_members(members)
        self._check(context)
        of_sequences = row_seeds(context, generator=generator, seeds=seeds, seed=self.seed)
        numbers = _numbers(of_sequences, members, math.prod(self.code_shape)).to(_real(context))
        most = self._rows_at_once(context.device)
        with in_eval_mode(self):
            while True:
                try:
                    codes = self._codes(context, numbers.to(context.device), most, advance)
                    break
                except torch.OutOfMemoryError:
                    if most == 1:
                        raise
                    most //= 2
            grids = codes.flatten(0, 1).unflatten(1, self.code_shape)
            frames = torch.cat([self.vqvae.decode(part) for part in grids.split(self._clips_decoded)])
        return frames.unflatten(0, codes.shape[:2]).transpose(0, 1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the transformer, where the longer training spends its time, as `nn.Module.compile`."""
        self.transformer.compile(*args, **kwargs)

    def stages(self) -> tuple[Stage, ...]:
        """Returns the trainings of the model, in their order; see `Stage`."""
        first, second = VQVAEStage(self.vqvae), TransformerStage(self.transformer, self._encoder())
        return (
            Stage("vqvae", first, self.vqvae, self._depends_on["vqvae"], first.prepare),
            Stage("gpt", second, self.transformer, self._depends_on["gpt"], self._warn_of_collapse),
        )

    def _encoder(self) -> Encode:
        # A closure, so that copies of a stage (such as running averages of its weights) do not copy the whole model.
        def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
            codes = self.vqvae.to(frames.device).encode(frames).flatten(1)
            return codes, self.vqvae.codebook.vectors[codes]

        return encode

    def _warn_of_collapse(self, batches: Iterable[Sequence[Tensor]]) -> None:
        found, codes = self.vqvae.codebook.perplexity, len(self.vqvae.codebook.counts)
        if found < codes * _LEAST_SHARE_USED:
            warnings.warn(
                f"VideoGPT: the codebook has collapsed, or most of the data look alike: the perplexity of its {codes} "
                f"codes is {found:.1f}. Train stage vqvae longer, or with a lower learning rate.",
                stacklevel=2,
            )

    def _check(self, context: Tensor) -> None:
        if tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"VideoGPT: expected a context (B, T, H, W, C) with {self.input_shape} behind B, found "
                f"{tuple(context.shape)}"
            )

    def _one_pass(self, context: Tensor) -> Tensor:
        given, book = self.transformer.given, self.vqvae.codebook.vectors
        vectors = book[:1].expand(len(context), self.transformer.length, -1)
        if given:
            vectors = torch.cat((book[self.vqvae.encode(context).flatten(1)[:, -given:]], vectors[:, given:]), dim=1)
        codes = self.transformer(vectors, self.transformer.encoded(context)).argmax(-1)
        return self.vqvae.decode(codes.unflatten(1, self.code_shape))

    def _rows_at_once(self, device: torch.device) -> int:
        if device.type != "cpu":
            return _MOST_ROWS
        network = self.transformer
        kept = 2 * len(network.layers) * network.length * network.width
        return max(1, min(_MOST_ROWS, _MOST_KEPT_ON_A_CPU // kept))

    @property
    def _clips_decoded(self) -> int:
        return max(1, _FRAMES_DECODED // self.target_shape[0])

    def _codes(self, context: Tensor, numbers: Tensor, most: int, advance: Advance | None) -> Tensor:
        """Returns codes `(B, M, L)`, drawn for at most `most` rows at a time.

        Args:
            context: `(B, T_in, H, W, C)`.
            numbers: Random numbers from 0 to 1, `(B, M, L)`; the transformer computes in their precision.
            most: Largest number of rows at a time.
            advance: Called after every code of every row.
        """
        network = copy.deepcopy(self.transformer).to(numbers.dtype)
        vectors = self.vqvae.codebook.vectors.to(numbers.dtype)
        batch, members, length = numbers.shape
        prompt = torch.empty(batch, 0, dtype=torch.long)
        if network.given:
            prompt = self.vqvae.encode(context).flatten(1)[:, -network.given :]
        done, total = 0, batch * members * length
        found = torch.empty(numbers.shape, dtype=torch.long, device=numbers.device)
        sequences, together = max(1, most // members), min(most, members)
        for first in range(0, batch, sequences):
            rows = slice(first, first + sequences)
            encoded = network.encoded(context[rows].to(numbers.dtype))
            for start in range(0, members, together):
                part = numbers[rows, start : start + together]
                drawn = found[rows, start : start + together]
                decoder = network.decoder(encoded, part.shape[1])
                last = None
                for place in range(prompt.shape[1]):
                    decoder.logits(last)
                    last = vectors[prompt[rows, None, place].expand(drawn.shape[:2])]
                for place in range(length):
                    codes = _drawn(decoder.logits(last), part[:, :, place])
                    drawn[:, :, place] = codes
                    last = vectors[codes]
                    done += codes.numel()
                    if advance:
                        advance(done, total)
        return found


def _drawn(logits: Tensor, numbers: Tensor) -> Tensor:
    """Returns the codes (...) at which the cumulative probabilities of logits (..., codes) pass numbers (...).

    The sum is a product with a triangular matrix of ones, which is deterministic on every device.
    """
    codes = logits.shape[-1]
    cumulated = logits.softmax(-1) @ torch.ones(codes, codes, dtype=logits.dtype, device=logits.device).triu()
    passed = cumulated <= numbers[..., None] * cumulated[..., -1:]
    return passed.sum(-1).clamp(max=codes - 1)


def _numbers(seeds: list[int], members: int, count: int) -> Tensor:
    """Returns numbers from 0 to 1, float64 `(B, M, count)` on the CPU; those of a member do not depend on M.

    Args:
        seeds: Seeds of the sequences.
        members: Number of members, M.
        count: Numbers per member.
    """
    drawn = torch.empty(len(seeds), members, count, dtype=torch.float64)
    for sequence, seed in zip(drawn, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        for member in sequence:
            member.uniform_(generator=generator)
    return drawn


def _checked_members(members: int) -> int:
    if members < 1:
        raise ValueError(f"members: expected at least 1, found {members}")
    return members


def _real(context: Tensor) -> torch.dtype:
    return torch.float32 if context.device.type == "mps" else torch.float64  # Apple's GPUs have no double precision

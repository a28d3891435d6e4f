"""VideoGPT's transformer: it predicts the codes of the future frames one by one, given the context frames.

Yan, Zhang, Abbeel and Srinivas, "VideoGPT: Video Generation using VQ-VAE and Transformers", 2021, arXiv:2104.10157, and
its release (github.com/wilson1yan/VideoGPT): a GPT whose layers also attend to a 3-D ResNet's view of the context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.shapes import checked_sizes, require_divisible

_INPUT_STD = 0.02  # initial standard deviation, as released
_SLOPE = 1.702  # slope in the sigmoid approximation of GELU


class CodeTransformer(nn.Module):
    """Predicts the logits of each code from the codes before it and the context.

    It is trained on whole clips and sampled code by code.

    Args:
        context_shape: `(T_in, H, W, C)`.
        code_shape: T, h, w of the codes, given ones first; H and W are the same multiple of h and w.
        given: Number of frames whose codes are given and therefore not predicted.
        codes: Number of codes.
        code_width: Length of the codes' vectors.
        width: Width of the transformer; divisible by 3 (axes of positions) and by `heads`.
        layers: Number of transformer layers.
        heads: Number of attention heads; it also divides `context_channels[-1]`.
        dropout: Dropout after attention and feed-forward layers.
        attention_dropout: Dropout of the self-attention weights.
        position_std: Standard deviation of the initial position embeddings.
        context_channels: Channels of the ResNet's four groups; the last is divisible by 3.
        context_blocks: Residual blocks of each group.

    Raises:
        ValueError: the sizes do not fit together.
    """

    def __init__(
        self,
        context_shape: Sequence[int],
        code_shape: tuple[int, int, int],
        *,
        given: int = 0,
        codes: int,
        code_width: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        position_std: float,
        context_channels: Sequence[int],
        context_blocks: Sequence[int],
    ) -> None:
        super().__init__()
        channels = checked_sizes("VideoGPT", "context_channels", context_channels, count=4)
        blocks = checked_sizes("VideoGPT", "context_blocks", context_blocks, count=4)
        checked_sizes("VideoGPT", "layers and heads", (layers, heads))
        for what, size in (("width", width), ("the last of context_channels", channels[-1])):
            require_divisible("VideoGPT", f"{what} (three axes of positions, {heads} heads)", size, math.lcm(3, heads))
        t_in, height, _, c_in = context_shape
        self.code_shape, self.heads, self.width = code_shape, heads, width
        self.length = math.prod(code_shape)
        self.given = given * math.prod(code_shape[1:])
        """How many of the `length` codes are given."""
        self.context_encoder = _ResNet(c_in, channels, blocks, downsample=height // code_shape[1])
        self.context_positions = _Positions((t_in, *code_shape[1:]), channels[-1], position_std)
        self.input = nn.Linear(code_width, width, bias=False)
        self.start = nn.Parameter(_INPUT_STD * torch.randn(width))
        self.positions = _Positions(code_shape, width, position_std)
        self.layers = nn.ModuleList(
            _Layer(width, channels[-1], heads, layers, dropout, attention_dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, codes, bias=False)
        nn.init.normal_(self.input.weight, std=_INPUT_STD)
        nn.init.zeros_(self.output.weight)  # all codes are equally likely at first

    def encoded(self, context: Tensor) -> Tensor:
        """Returns the features `(B, S, C)` of contexts `(B, T_in, H, W, C)` that the layers attend to."""
        return self.context_encoder(context).flatten(1, 3) + self.context_positions()

    def forward(self, vectors: Tensor, encoded: Tensor) -> Tensor:
        """Returns the logits `(B, L - given, codes)` of all codes but the given ones, each from those before it.

        Args:
            vectors: Vectors of the codes `(B, L, code_width)`; the last one is not read.
            encoded: Features of the contexts `(B, S, C)`.
        """
        start = self.start.expand(len(vectors), 1, -1)
        x = torch.cat((start, self.input(vectors[:, :-1])), dim=1) + self.positions()
        for layer in self.layers:
            x = layer(x, encoded)
        return self.output(self.norm(x[:, self.given :]))

    def decoder(self, encoded: Tensor, members: int) -> CodeDecoder:
        """Returns a decoder that takes codes one by one, for `members` members of each context `(B, S, C)`."""
        return CodeDecoder(self, encoded, members)


class CodeDecoder:
    """Runs the transformer code by code, with a preallocated cache of the keys and values of earlier codes.

    The keys and values of the context are computed once for all members of a sequence.
    """

    def __init__(self, network: CodeTransformer, encoded: Tensor, members: int) -> None:
        self.network, self.batch, self.members = network, len(encoded), members
        head = network.width // network.heads
        rows = self.batch * members
        self.kept = encoded.new_empty(len(network.layers), 2, rows, network.heads, network.length, head)
        self.layers: list[_Layer] = list(network.layers)  # type: ignore[arg-type]
        self.of_context = [layer.cross.keys_and_values(encoded) for layer in self.layers]
        self.positions = network.positions()
        self.done = 0

    @torch.no_grad()
    def logits(self, vectors: Tensor | None) -> Tensor:
        """Returns the logits `(B, M, codes)` of the next code.

        Args:
            vectors: Vectors of the last codes `(B, M, code_width)`; None before the first code.
        """
        network, rows = self.network, (self.batch, self.members)
        x: Tensor = network.start.expand(*rows, -1) if vectors is None else network.input(vectors)
        x = x + self.positions[self.done]
        for layer, kept, of_context in zip(self.layers, self.kept, self.of_context, strict=True):
            x = layer.step(x, kept, self.done, of_context)
        self.done += 1
        made: Tensor = network.output(network.norm(x))
        return made


class _Layer(nn.Module):
    def __init__(
        self, width: int, context_width: int, heads: int, layers: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))
        self.heads, self.attention_dropout = heads, attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.cross = _CrossAttention(width, context_width, heads, layers)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), _SigmoidGELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(width * layers) ** -0.5)

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        dropped = self.attention_dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped, is_causal=True)
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.cross(self.cross_norm(x), *self.cross.keys_and_values(encoded)))
        return x + self.dropout(self.feed(self.feed_norm(x)))

    def step(self, x: Tensor, kept: Tensor, place: int, of_context: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the output `(B, M, width)` at the next position, and adds its keys and values to the cache."""
        q, k, v = self._heads(x.flatten(0, 1).unsqueeze(1))
        kept[0, :, :, place : place + 1], kept[1, :, :, place : place + 1] = k, v
        keys, values = kept[:, :, :, : place + 1]
        seen = F.scaled_dot_product_attention(q, keys, values)  # (B*M, heads, 1, d)
        x = x + self.out(seen.flatten(1).view_as(x))
        x = x + self.cross(self.cross_norm(x), *of_context)
        return x + self.feed(self.feed_norm(x))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.self_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class _CrossAttention(nn.Module):
    """Attention from codes to the context: keys have the width of the codes, values that of the context."""

    def __init__(self, width: int, context_width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width, width, bias=False)
        self.value = nn.Linear(context_width, context_width, bias=False)
        self.out = nn.Linear(context_width, width)
        nn.init.normal_(self.query.weight, std=width**-0.5)
        for linear in (self.key, self.value):
            nn.init.normal_(linear.weight, std=context_width**-0.5)
        nn.init.normal_(self.out.weight, std=(width * layers) ** -0.5)

    def keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.key(encoded)), self._split(self.value(encoded))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values)
        return self.out(seen.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _SigmoidGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(_SLOPE * x)


class _Positions(nn.Module):
    """Learned position embeddings: one table per axis, each for its share of the channels."""

    def __init__(self, shape: Sequence[int], width: int, std: float) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.tables = nn.ParameterList(std * torch.randn(size, width // len(self.shape)) for size in self.shape)

    def forward(self) -> Tensor:
        """Returns the positions `(L, width)` of the grid in row-major order."""
        parts = []
        for axis, table in enumerate(self.tables):
            own = [1] * len(self.shape)
            own[axis] = self.shape[axis]
            parts.append(table.view(*own, -1).expand(*self.shape, -1))
        return torch.cat(parts, dim=-1).flatten(0, -2)


class _ResNet(nn.Module):
    """ResNet-34 for clips: the number of frames stays, height and width shrink in the first block of each group."""

    def __init__(self, c_in: int, channels: Sequence[int], blocks: Sequence[int], *, downsample: int) -> None:
        super().__init__()
        halvings = int(math.log2(downsample))
        if halvings >= len(channels):
            raise ValueError(f"VideoGPT: downsample must be at most {2 ** (len(channels) - 1)}, got {downsample}")
        self.stem = nn.Conv3d(c_in, channels[0], 3, padding=1, bias=False)
        self.norm = _ChannelNorm(channels[0])
        found: list[nn.Module] = []
        for group, (narrow, wide) in enumerate(pairwise((channels[0], *channels))):
            for block in range(blocks[group]):
                stride = 2 if block == 0 and 0 < group <= halvings else 1
                found.append(_ResidualBlock(wide if block else narrow, wide, stride, projects=block == 0))
        self.blocks = nn.Sequential(*found)

    def forward(self, frames: Tensor) -> Tensor:
        """Returns features `(B, T, h, w, C)` of frames `(B, T, H, W, C)` from 0 to 1."""
        x = (frames - 0.5).permute(0, 4, 1, 2, 3)
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return x.permute(0, 2, 3, 4, 1)


class _ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = nn.Conv3d(c_in, c_out, 3, stride=strides, padding=1, bias=False)
        self.norm1 = _ChannelNorm(c_out)
        self.conv2 = nn.Conv3d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = _ChannelNorm(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if projects:
            self.shortcut = nn.Sequential(nn.Conv3d(c_in, c_out, 1, stride=strides, bias=False), _ChannelNorm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.relu(self.norm1(self.conv1(x))))
        return F.relu(F.relu(self.norm2(inner)) + self.shortcut(x))


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `(B, C, T, H, W)`: each pixel is independent of the others and of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

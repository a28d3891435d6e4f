"""The encoder, from fine to coarse, and the decoder, from coarse to fine, of blocks of cuboid attention.

Source: Earthformer, section 3.2 and figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock
from earthformer.layers import PositionEmbedding
from earthformer.options import Options, as_scale
from earthformer.resampling import PatchMerging, Size4, Upsample


class Encoder(nn.Module):
    """Levels of self-attention blocks; each level leaves a memory for the decoder."""

    def __init__(self, options: Options, input_shape: Size4) -> None:
        """Makes the levels for tokens of `input_shape` (T, H, W, C).

        Raises:
            ValueError: options that do not fit the number of levels.
        """
        super().__init__()
        self.input_shape = input_shape
        self.use_global_vector = options.num_global_vectors > 0
        steps = list(pairwise(options.units))
        downsample, ratio = as_scale(options.downsample), options.global_dim_ratio
        self.memory_shapes: list[Size4] = [input_shape]
        if steps:
            merging = [PatchMerging(options, fine, coarse, downsample) for fine, coarse in steps]
            for layer in merging:
                self.memory_shapes.append(layer.output_shape(self.memory_shapes[-1]))
            self.down_layers = nn.ModuleList(merging)
            if self.use_global_vector:
                # These keep torch's default initialisation, as in the authors' code.
                self.down_layer_global_proj = nn.ModuleList(
                    nn.Linear(ratio * fine, ratio * coarse) for fine, coarse in steps
                )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    SelfAttentionBlock(
                        options,
                        width,
                        pattern,
                        use_inter_ffn=options.enc_use_inter_ffn,
                        use_global_vector=self.use_global_vector,
                    )
                    for _ in range(count)
                )
            )
            for width, count, pattern in zip(
                options.units, options.enc_depth, options.self_patterns("enc", self.memory_shapes), strict=True
            )
        )

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, keep_globals: bool = True
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns the memories (B, T_i, H_i, W_i, C_i) and global vectors (B, G, r*C_i) of all levels, fine to coarse.

        With `keep_globals` False the returned global vectors are not used, and their last update is skipped.

        Raises:
            ValueError: `x` (B, T, H, W, C) does not have the configured shape.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"encoder: expected tokens {self.input_shape}, found {tuple(x.shape[1:])}")
        memories: list[Tensor] = []
        vectors: list[Tensor | None] = []
        g = global_vectors
        last = len(self.blocks) - 1
        for level, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.Sequential)
            for index, block in enumerate(blocks):
                if self.use_global_vector:
                    wanted = keep_globals or level < last or index < len(blocks) - 1
                    x, g = block(x, g, update_globals=wanted)
                else:
                    x = block(x)
            memories.append(x)
            vectors.append(g)
            if level < last:
                x = self.down_layers[level](x)
                if g is not None and self.use_global_vector:
                    g = self.down_layer_global_proj[level](g)
        return memories, vectors


class LevelDecoder(nn.Module):
    """Base of the decoders: the blocks of a level and the steps between levels."""

    def __init__(self, options: Options, memory_shapes: Sequence[Size4], t_out: int) -> None:
        """Stores the memories' shapes (T, H, W, C), fine to coarse, and the number of target frames.

        Raises:
            ValueError: options that do not fit the number of levels.
        """
        super().__init__()
        self.options = options
        self.memory_shapes = list(memory_shapes)
        self.t_out = t_out
        self.use_self_global = options.num_global_vectors > 0 and options.use_dec_self_global
        self.use_cross_global = options.num_global_vectors > 0 and options.use_dec_cross_global

    def _self_blocks(self, counts: Sequence[int]) -> nn.ModuleList:
        """Returns new self-attention blocks, as many per level as `counts` says."""
        options = self.options
        # Patterns get the encoder's number of frames, not the decoder's: checkpoints were trained that way.
        patterns = options.self_patterns("dec_self", self.memory_shapes)
        return nn.ModuleList(
            nn.ModuleList(
                SelfAttentionBlock(
                    options,
                    shape[3],
                    pattern,
                    use_inter_ffn=options.dec_use_inter_ffn,
                    use_global_vector=self.use_self_global,
                )
                for _ in range(count)
            )
            for shape, count, pattern in zip(self.memory_shapes, counts, patterns, strict=True)
        )

    def _cross_blocks(self) -> nn.ModuleList:
        """Returns new cross-attention blocks of all levels that have any, starting with level `dec_cross_start`."""
        options, frames = self.options, self.memory_shapes[0][0] + self.t_out
        levels = zip(self.memory_shapes, options.dec_depth, options.cross_patterns(self.memory_shapes), strict=True)
        return nn.ModuleList(
            nn.ModuleList(
                CrossAttentionBlock(
                    options,
                    shape[3],
                    pattern,
                    max_temporal_relative=frames,
                    use_global_vector=self.use_cross_global,
                )
                for _ in range(count)
            )
            for shape, count, pattern in list(levels)[options.dec_cross_start :]
        )

    def _upsample_layers(self) -> nn.ModuleList:
        kernel, mode = self.options.upsample_kernel_size, self.options.conv_init_mode
        return nn.ModuleList(
            Upsample(coarse[3], fine[3], (self.t_out, *fine[1:3]), kernel, mode)
            for fine, coarse in pairwise(self.memory_shapes)
        )

    def _attend(self, block: nn.Module, x: Tensor, g: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Returns tokens and global vectors after a self-attention block; `wanted`: whether the latter are used."""
        if not self.use_self_global or g is None:
            return block(x), g
        wanted = wanted and self.options.dec_self_update_global
        x, updated = block(x, g, update_globals=wanted)
        return x, updated if wanted else g

    @staticmethod
    def _at(blocks: nn.ModuleList, level: int, index: int) -> nn.Module:
        of_level = blocks[level]
        assert isinstance(of_level, nn.ModuleList)
        return of_level[index]


class Decoder(LevelDecoder):
    """The decoder of Earthformer: from initial tokens at the coarsest level to tokens at the finest."""

    def __init__(self, options: Options, memory_shapes: Sequence[Size4], t_out: int) -> None:
        """Makes the blocks for memories of these shapes (T, H, W, C), fine to coarse, and `t_out` frames.

        Raises:
            ValueError: options that do not fit the number of levels, or hierarchical embeddings with one level.
        """
        super().__init__(options, memory_shapes, t_out)
        top = len(self.memory_shapes) - 1
        if options.dec_hierarchical_pos_embed and top == 0:
            raise ValueError("dec_hierarchical_pos_embed: expected at least 2 levels, found 1")
        counts = list(options.dec_depth)
        # The coarsest level starts with cross-attention: self-attention of its initial tokens would be useless.
        self.lead = not options.dec_use_first_self_attn
        counts[top] -= self.lead
        self.self_blocks = self._self_blocks(counts)
        self.cross_blocks = self._cross_blocks()
        if top:
            self.upsample_layers = self._upsample_layers()
        if options.dec_hierarchical_pos_embed:
            self.hierarchical_pos_embed_l = nn.ModuleList(
                PositionEmbedding(channels, t_out, h, w, options.pos_embed_type)
                for _, h, w, channels in self.memory_shapes[:-1]
            )

    def forward(self, x: Tensor, memories: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens (B, T_out, H_0, W_0, C_0) from initial ones `x` (B, T_out, H_L, W_L, C_L)."""
        top, start = len(self.memory_shapes) - 1, self.options.dec_cross_start
        for level in range(top, -1, -1):
            g = vectors[level]
            depth, lead = self.options.dec_depth[level], self.lead and level == top
            for index in range(depth):
                crosses = level >= start
                if not (lead and index == 0):
                    wanted = index < depth - 1 or (crosses and self.use_cross_global)
                    x, g = self._attend(self._at(self.self_blocks, level, index - lead), x, g, wanted)
                if crosses:
                    x = self._at(self.cross_blocks, level - start, index)(x, memories[level], g)
            if level:
                x = self.upsample_layers[level - 1](x)
                if self.options.dec_hierarchical_pos_embed:
                    x = self.hierarchical_pos_embed_l[level - 1](x)
        return x

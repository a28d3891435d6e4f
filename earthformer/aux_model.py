"""Earthformer with auxiliary input: known future variables (weather, terrain) drive the decoder.

Source: the authors' EarthNet2021 model in their released code, after the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from earthformer.cuboids import resize_nearest
from earthformer.hierarchy import LevelDecoder
from earthformer.model import CuboidTransformer
from earthformer.options import Options, as_scale
from earthformer.resampling import PatchMerging, Size4

CROSS_MODES = ("up", "down", "both")
ONLY_WITHOUT_AUXILIARY = ("dec_hierarchical_pos_embed", "z_init_method", "dec_use_first_self_attn")
"""Options of the plain decoder's initial tokens and embeddings."""


class UNetDecoder(LevelDecoder):
    """A decoder that starts from tokens at the finest level, goes down to the coarsest and back up, without skips."""

    def __init__(self, options: Options, memory_shapes: Sequence[Size4], t_out: int, cross_mode: str) -> None:
        """Makes the blocks for memories of these shapes (T, H, W, C), fine to coarse, and `t_out` frames.

        Raises:
            ValueError: unknown `cross_mode`, or options that do not fit the number of levels.
        """
        super().__init__(options, memory_shapes, t_out)
        if cross_mode not in CROSS_MODES:
            raise ValueError(f"unet_dec_cross_mode: expected one of {', '.join(CROSS_MODES)}, found {cross_mode!r}")
        self.up_use_cross = cross_mode != "down"
        self.down_use_cross = cross_mode != "up"
        if len(self.memory_shapes) > 1:
            self.downsample_layers = nn.ModuleList(
                PatchMerging(options, fine[3], coarse[3], as_scale(options.downsample))
                for fine, coarse in pairwise(self.memory_shapes)
            )
            self.upsample_layers = self._upsample_layers()
        self.down_self_blocks = self._self_blocks(options.dec_depth)
        self.up_self_blocks = self._self_blocks(options.dec_depth)
        if self.up_use_cross:
            self.up_cross_blocks = self._cross_blocks()
        if self.down_use_cross:
            self.down_cross_blocks = self._cross_blocks()

    def forward(self, x: Tensor, memories: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens (B, T_out, H_0, W_0, C_0) from auxiliary ones `x` of the same shape.

        Raises:
            ValueError: global vectors of another level's width would be used on the way up (see
                `_upward_globals`).
        """
        levels, depth, start = len(self.memory_shapes), self.options.dec_depth, self.options.dec_cross_start
        left: list[Tensor | None] = []
        for level in range(levels):
            if level:
                x = self.downsample_layers[level - 1](x)
            g = vectors[level]
            for index in range(depth[level]):
                x, g = self._attend(self._at(self.down_self_blocks, level, index), x, g, True)
                if self.down_use_cross and level >= start:
                    x = self._at(self.down_cross_blocks, level - start, index)(x, memories[level], g)
                left.append(g)
        for level in range(levels - 1, -1, -1):
            g = self._upward_globals(left, vectors, level)
            for index in range(depth[level]):
                crosses = self.up_use_cross and level >= start
                wanted = index < depth[level] - 1 or (crosses and self.use_cross_global)
                x, g = self._attend(self._at(self.up_self_blocks, level, index), x, g, wanted)
                if crosses:
                    x = self._at(self.up_cross_blocks, level - start, index)(x, memories[level], g)
            if level:
                x = self.upsample_layers[level - 1](x)
        return x

    def _upward_globals(
        self, left: Sequence[Tensor | None], vectors: Sequence[Tensor | None], level: int
    ) -> Tensor | None:
        """Returns the global vectors that `level` starts from on the way up.

        The authors' code stores one entry per block on the way down but looks it up by level, so that a level
        above deeper ones gets an earlier block's vectors. This is reproduced if the widths allow it.
        """
        g, own = left[level], vectors[level]
        used = self.use_self_global or (self.use_cross_global and self.up_use_cross)
        if used and g is not None and own is not None and g.shape != own.shape:
            raise ValueError(
                "dec_depth: expected 1 at every level but the last with global vectors, found "
                f"{list(self.options.dec_depth)}; level {level} would get {tuple(g.shape)} for {tuple(own.shape)}"
            )
        return g


class EarthformerAux(CuboidTransformer):
    """Earthformer with auxiliary frames beside the context and the target, and a U-shaped decoder without skips.

    Source: the authors' released EarthNet2021 config (60.6 M parameters).
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "earthnet": {
            "base_units": 256,
            "enc_depth": [1, 1],
            "dec_depth": [1, 1],
            "num_global_vectors": 8,
            "use_global_self_attn": True,
            "separate_global_qkv": True,
            "pos_embed_type": "t+hw",
            "initial_downsample_type": "stack_conv",
            "initial_downsample_stack_conv_num_layers": 2,
            "initial_downsample_stack_conv_dim_list": [64, 256],
            "initial_downsample_stack_conv_downscale_list": [2, 2],
            "initial_downsample_stack_conv_num_conv_list": [2, 2],
            "auxiliary_channels": 7,
            "unet_dec_cross_mode": "both",
        },
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        auxiliary_channels: int = 1,
        unet_dec_cross_mode: str = "up",
        **options: Any,
    ) -> None:
        """Makes a model from contexts of `input_shape` to forecasts of `target_shape`, both (T, H, W, C).

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the forecast; H and W as in `input_shape`.
            auxiliary_channels: channels of the auxiliary frames.
            unet_dec_cross_mode: where the decoder attends to the memories: on its way ``down``, ``up`` or ``both``.
            **options: the fields of `earthformer.options.Options`.

        Raises:
            ValueError: shapes or options that cannot work, with what was expected and what was found.
            TypeError: an unknown option.
        """
        super().__init__(input_shape, target_shape, Options(**options), auxiliary_channels=auxiliary_channels)
        self.auxiliary_channels = auxiliary_channels
        for name in ONLY_WITHOUT_AUXILIARY:
            default, found = getattr(Options, name), getattr(self.options, name)
            if found != default:
                raise ValueError(f"{name}: expected {default!r} in a model with auxiliary input, found {found!r}")
        # No token ever gets this embedding; it is in the authors' checkpoints.
        self._add_target_embedding()
        self.decoder = UNetDecoder(self.options, self.encoder.memory_shapes, self.target_shape[0], unet_dec_cross_mode)

    def forward(self, context: Tensor, aux_context: Tensor, aux_target: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C_out).

        Args:
            context: (B, T_in, H, W, C_in), in the task's units.
            aux_context: auxiliary frames of the context, (B, any T, any H, any W, `auxiliary_channels`); they are
                resized.
            aux_target: auxiliary frames of the target, likewise.

        Raises:
            ValueError: `context` does not have the configured shape, or auxiliary frames the configured channels.
        """
        self._check_context(context)
        for name, frames in (("aux_context", aux_context), ("aux_target", aux_target)):
            if frames.dim() != 5 or frames.shape[-1] != self.auxiliary_channels:
                raise ValueError(
                    f"{name}: expected (B, T, H, W, {self.auxiliary_channels}), found {tuple(frames.shape)}"
                )
        aux_in = self.initial_aux_encoder(resize_nearest(aux_context, self.input_shape[:3]))
        memories, vectors = self._encode(self.enc_pos_embed(self.initial_encoder(context) + aux_in))
        aux_out = self.initial_aux_encoder(resize_nearest(aux_target, self.target_shape[:3]))
        return self._pixels(self.decoder(aux_out, memories, vectors))

"""Earthformer: a hierarchical encoder-decoder of cuboid attention.

Source: Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS
    2022,
arXiv 2207.05833, section 3; options as in the authors' released code, whose names are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earthformer.cuboids import resize_nearest
from earthformer.decoder import Decoder
from earthformer.encoder import Encoder, level_units
from earthformer.initialization import EMBEDDING_STD, init_linear
from earthformer.options import Options, full_signature
from earthformer.paths import TwoPaths
from earthformer.positions import PositionEmbedding
from earthformer.resampling import Size4, as_scale
from earthformer.stages import Stages

Z_INIT_METHODS = ("zeros", "nearest_interp", "last", "mean")


def _checked_shape(name: str, shape: Sequence[int]) -> Size4:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{name}: expected four positive sizes (T, H, W, C), found {list(shape)}")
    t, h, w, c = (int(size) for size in shape)
    return t, h, w, c


class CuboidTransformer(TwoPaths):
    """What the models share: first and last stage, encoder, embeddings and the global vectors.

    Attributes:
        input_shape: T, H, W, C of the context.
        target_shape: T, H, W, C of the forecast.
        options: the hyperparameters.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        options: Options,
        *,
        auxiliary_channels: int | None = None,
    ) -> None:
        """Make the shared parts, with a first stage for auxiliary frames if they have channels.

        Raises:
            ValueError: shapes or options that cannot work, with what was expected and what was found.
        """
        super().__init__()
        self.input_shape = _checked_shape("input_shape", input_shape)
        self.target_shape = _checked_shape("target_shape", target_shape)
        if self.input_shape[1:3] != self.target_shape[1:3]:
            raise ValueError(
                f"target_shape: expected H, W of input_shape {self.input_shape[1:3]}, found {self.target_shape[1:3]}"
            )
        self.options = options
        ratio, use_globals = options.global_dim_ratio, options.num_global_vectors > 0
        if use_globals:
            self.init_global_vectors = nn.Parameter(torch.empty(options.num_global_vectors, ratio * options.base_units))
            nn.init.trunc_normal_(self.init_global_vectors, std=EMBEDDING_STD)
        stages = Stages(
            kind=options.initial_downsample_type,
            input_shape=self.input_shape,
            target_shape=self.target_shape,
            base_units=options.base_units,
            activation=options.initial_downsample_activation,
            padding_type=options.padding_type,
            scale=options.initial_downsample_scale,
            initial_conv_layers=options.initial_downsample_conv_layers,
            final_conv_layers=options.final_upsample_conv_layers,
            stack_num_layers=options.initial_downsample_stack_conv_num_layers,
            stack_dim_list=options.initial_downsample_stack_conv_dim_list,
            stack_downscale_list=options.initial_downsample_stack_conv_downscale_list,
            stack_num_conv_list=options.initial_downsample_stack_conv_num_conv_list,
            conv_init_mode=options.conv_init_mode,
            linear_init_mode=options.down_up_linear_init_mode,
            norm_init_mode=options.norm_init_mode,
        )
        self.initial_encoder = stages.initial
        if auxiliary_channels is not None:
            self.initial_aux_encoder = stages.make_initial(auxiliary_channels)
        self.final_decoder = stages.final
        self.dec_final_proj = nn.Linear(stages.features, self.target_shape[3])
        init_linear(self.dec_final_proj, options.down_up_linear_init_mode)
        downsample = as_scale(options.downsample)
        self.encoder = Encoder(
            input_shape=(*stages.token_shape, options.base_units),
            units=level_units(
                options.base_units,
                options.block_units,
                len(options.enc_depth),
                downsample,
                options.scale_alpha,
            ),
            depth=options.enc_depth,
            downsample=downsample,
            layers=(
                options.enc_attn_patterns,
                options.enc_cuboid_size,
                options.enc_cuboid_strategy,
                options.enc_shift_size,
            ),
            padding_type=options.padding_type,
            use_global_vector=use_globals,
            global_dim_ratio=ratio,
            down_linear_init_mode=options.down_up_linear_init_mode,
            norm_init_mode=options.norm_init_mode,
            block={**options.self_block, "use_inter_ffn": options.enc_use_inter_ffn},
        )
        self.enc_pos_embed = PositionEmbedding(options.base_units, *stages.token_shape, options.pos_embed_type)

    def _add_target_embedding(self) -> None:
        _, h, w, channels = self.encoder.memory_shapes[-1]
        self.dec_pos_embed = PositionEmbedding(channels, self.target_shape[0], h, w, self.options.pos_embed_type)

    @property
    def _decoder_levels(self) -> dict[str, Any]:
        """What both decoders take: shapes, depths, patterns and the arguments of their blocks."""
        options = self.options
        use_globals = options.num_global_vectors > 0
        inter_ffn = {"use_inter_ffn": options.dec_use_inter_ffn}
        return {
            "t_out": self.target_shape[0],
            "memory_shapes": self.encoder.memory_shapes,
            "depth": options.dec_depth,
            "cross_start": options.dec_cross_start,
            "use_self_global": use_globals and options.use_dec_self_global,
            "self_update_global": options.dec_self_update_global,
            "use_cross_global": use_globals and options.use_dec_cross_global,
            "self_layers": (
                options.dec_self_attn_patterns,
                options.dec_self_cuboid_size,
                options.dec_self_cuboid_strategy,
                options.dec_self_shift_size,
            ),
            "cross_layers": (
                options.dec_cross_attn_patterns,
                options.dec_cross_cuboid_hw,
                options.dec_cross_shift_hw,
                options.dec_cross_cuboid_strategy,
                options.dec_cross_n_temporal,
            ),
            "self_block": {**options.self_block, **inter_ffn},
            "cross_block": {
                **options.block,
                **inter_ffn,
                "cross_last_n_frames": options.dec_cross_last_n_frames,
                "max_temporal_relative": self.encoder.input_shape[0] + self.target_shape[0],
            },
            "upsample_kernel_size": options.upsample_kernel_size,
            "conv_init_mode": options.conv_init_mode,
        }

    def _check_context(self, context: Tensor) -> None:
        if context.dim() != 5 or tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"context: expected (B, T, H, W, C) = (B, {str(self.input_shape)[1:]}, found {tuple(context.shape)}"
            )

    def _encode(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return memories and global vectors of all levels for tokens with their positions (B, T, H, W, C)."""
        options = self.options
        if options.num_global_vectors == 0:
            memories, vectors = self.encoder(tokens)
        else:
            start = self.init_global_vectors.expand(tokens.shape[0], -1, -1)
            keep = options.use_dec_self_global or options.use_dec_cross_global
            memories, vectors = self.encoder(tokens, start, keep_globals=keep)
        return memories, vectors

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Return the forecast (B, T, H, W, C) of the decoder's tokens (B, T_out, H_0, W_0, C_0)."""
        forecast: Tensor = self.dec_final_proj(self.final_decoder(tokens))
        return forecast


class Earthformer(CuboidTransformer):
    """Earthformer as in the paper: space-time cuboid attention with global vectors.

    The presets give the sizes of the models in the paper's tables (SEVIR: 15.1 M parameters, ICAR-ENSO: 7.6
    M, MovingMNIST and N-body MNIST: 7.6 M), which differ from the configs that the authors released. For
    SEVIR-LR the paper has no model: the preset takes the released stages and width with the paper's depth and
    global vectors.

    Source: Earthformer, section 3, tables 4, 6 and 7; depths and global vectors recovered from the published
    parameter counts and multiply-adds.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {
            "base_units": 128,
            "enc_depth": [2, 2],
            "dec_depth": [2, 2],
            "initial_downsample_type": "stack_conv",
            "initial_downsample_stack_conv_num_layers": 3,
            "initial_downsample_stack_conv_dim_list": [16, 64, 128],
            "initial_downsample_stack_conv_downscale_list": [3, 2, 2],
            "initial_downsample_stack_conv_num_conv_list": [2, 2, 2],
        },
        "sevir_lr": {
            "enc_depth": [2, 2],
            "dec_depth": [2, 2],
            "initial_downsample_type": "stack_conv",
            "initial_downsample_stack_conv_num_layers": 3,
            "initial_downsample_stack_conv_dim_list": [4, 16, 64],
            "initial_downsample_stack_conv_downscale_list": [1, 2, 2],
            "initial_downsample_stack_conv_num_conv_list": [2, 2, 2],
        },
        "icar_enso": {"initial_downsample_scale": [1, 1, 2]},
        "nbody_mnist": {"initial_downsample_scale": 2},
        "moving_mnist": {"initial_downsample_scale": 2},
        "tiny": {"base_units": 16, "num_heads": 2, "enc_depth": [1, 1], "dec_depth": [1, 1]},
    }

    # Where the fields behind `**options` are described, for who lists hyperparameters without importing torch.
    options_class: ClassVar[str] = "earthformer.options:Options"

    # The decoder takes no global vectors from the encoder's last layer where it has none of its own to update.
    parameters_without_gradient: ClassVar[tuple[str, ...]] = (
        "encoder.blocks.*.attn_l.*.global_proj.*",
        "encoder.blocks.*.attn_l.*.g2*",
    )

    __signature__: ClassVar[inspect.Signature]

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        z_init_method: str = "zeros",
        dec_use_first_self_attn: bool = False,
        **options: Any,
    ) -> None:
        """Make a model from contexts of `input_shape` to forecasts of `target_shape`, both (T, H, W, C).

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the forecast; H and W as in `input_shape`.
            z_init_method: where the decoder starts: ``zeros`` (position embeddings only), or the coarsest
                memory's frames resized (``nearest_interp``), its ``last`` frame or its ``mean``.
            dec_use_first_self_attn: self-attention before the first cross-attention of the coarsest level.
            options: the fields of `earthformer.options.Options`.

        Raises:
            ValueError: shapes or options that cannot work, with what was expected and what was found.
            TypeError: an unknown option.
        """
        super().__init__(input_shape, target_shape, Options(**options))
        if z_init_method not in Z_INIT_METHODS:
            raise ValueError(f"z_init_method: expected one of {', '.join(Z_INIT_METHODS)}, found {z_init_method!r}")
        self.z_init_method = z_init_method
        channels = self.encoder.memory_shapes[-1][3]
        self.z_proj = nn.Linear(channels, channels)
        init_linear(self.z_proj)
        self._add_target_embedding()
        self.decoder = Decoder(
            use_first_self_attn=dec_use_first_self_attn,
            hierarchical_pos_embed=self.options.dec_hierarchical_pos_embed,
            pos_embed_type=self.options.pos_embed_type,
            **self._decoder_levels,
        )

    def forward(self, context: Tensor) -> Tensor:
        """Return the forecast (B, T_out, H, W, C_out) of `context` (B, T_in, H, W, C_in), in its units.

        Raises:
            ValueError: `context` is not of the configured shape.
        """
        self._check_context(context)
        memories, vectors = self._encode(self.enc_pos_embed(self.initial_encoder(context)))
        return self._pixels(self.decoder(self._initial_tokens(memories[-1]), memories, vectors))

    def _initial_tokens(self, memory: Tensor) -> Tensor:
        """Return the tokens (B, T_out, H_L, W_L, C_L) from which the decoder starts."""
        batch, _, h, w, channels = memory.shape
        t_out = self.target_shape[0]
        if self.z_init_method == "zeros":
            start: Tensor = self.z_proj(self.dec_pos_embed(memory.new_zeros(1, t_out, h, w, channels)))
            return start.expand(batch, -1, -1, -1, -1)
        if self.z_init_method == "nearest_interp":
            memory = resize_nearest(memory, (t_out, h, w))
        elif self.z_init_method == "last":
            memory = memory[:, -1:].expand(-1, t_out, -1, -1, -1)
        else:
            memory = memory.mean(dim=1, keepdim=True).expand(-1, t_out, -1, -1, -1)
        tokens: Tensor = self.z_proj(memory)
        return tokens


class EarthformerNoGlobal(Earthformer):
    """Earthformer as in the paper, without global vectors.

    The rows "w/o global" of the paper's tables (SEVIR: 13.1 M parameters, ICAR-ENSO: 6.6 M).

    Source: Earthformer, tables 4, 6 and 7.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        num_global_vectors: int = 0,
        **options: Any,
    ) -> None:
        """Make an `Earthformer` whose default is no global vectors; see there for the arguments and errors."""
        super().__init__(input_shape, target_shape, num_global_vectors=num_global_vectors, **options)


class EarthformerReleased(Earthformer):
    """Earthformer as the authors released it: smaller than the models of the paper's tables.

    The presets are the configs beside the released checkpoints (SEVIR: 8.7 M parameters, ICAR-ENSO: 1.4 M);
    their scores are not those of the paper. The released EarthNet2021 model takes auxiliary input:
    `earthformer.aux_model.EarthformerAux`.

    Source: the configs of the authors' released code.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {
            "base_units": 128,
            "num_global_vectors": 8,
            "use_global_self_attn": True,
            "separate_global_qkv": True,
            "initial_downsample_type": "stack_conv",
            "initial_downsample_stack_conv_num_layers": 3,
            "initial_downsample_stack_conv_dim_list": [16, 64, 128],
            "initial_downsample_stack_conv_downscale_list": [3, 2, 2],
            "initial_downsample_stack_conv_num_conv_list": [2, 2, 2],
        },
        "sevir_lr": {
            "initial_downsample_type": "stack_conv",
            "initial_downsample_stack_conv_num_layers": 3,
            "initial_downsample_stack_conv_dim_list": [4, 16, 64],
            "initial_downsample_stack_conv_downscale_list": [1, 2, 2],
            "initial_downsample_stack_conv_num_conv_list": [2, 2, 2],
        },
        "icar_enso": {"initial_downsample_scale": [1, 1, 2]},
        "nbody_mnist": {"enc_depth": [4, 4], "dec_depth": [4, 4], "pos_embed_type": "t+hw"},
        "moving_mnist": {"enc_depth": [4, 4], "dec_depth": [4, 4], "pos_embed_type": "t+hw"},
        "tiny": {"base_units": 16, "num_heads": 2, "enc_depth": [1, 1], "dec_depth": [1, 1]},
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        enc_depth: Sequence[int] = (1, 1),
        dec_depth: Sequence[int] = (1, 1),
        num_global_vectors: int = 0,
        **options: Any,
    ) -> None:
        """Make an `Earthformer` with the depth of the released ones by default; see there for arguments and errors."""
        super().__init__(
            input_shape,
            target_shape,
            enc_depth=enc_depth,
            dec_depth=dec_depth,
            num_global_vectors=num_global_vectors,
            **options,
        )


for _model in (Earthformer, EarthformerNoGlobal, EarthformerReleased):
    _model.__signature__ = full_signature(_model)

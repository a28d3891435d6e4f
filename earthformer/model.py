"""Earthformer: a hierarchical encoder-decoder of cuboid attention.

Source: Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS 2022, arXiv
2207.05833, section 3; options as in the authors' released code, whose names are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earthformer.cuboids import resize_nearest
from earthformer.hierarchy import Decoder, Encoder
from earthformer.layers import EMBEDDING_STD, HasReference, PositionEmbedding, init_linear
from earthformer.options import Options, full_signature
from earthformer.resampling import Size4, make_final_stage, make_initial_stage


def _checked_shape(name: str, shape: Sequence[int]) -> Size4:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{name}: expected four positive sizes (T, H, W, C), found {list(shape)}")
    t, h, w, c = (int(size) for size in shape)
    return t, h, w, c


class CuboidTransformer(HasReference):
    """Base of the models: first and last stage, encoder, embeddings and global vectors.

    Attributes:
        input_shape: T, H, W, C of the context.
        target_shape: T, H, W, C of the forecast.
        options: the hyperparameters.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Shows every hyperparameter in the constructor's signature."""
        super().__init_subclass__(**arguments)
        cls.__signature__ = full_signature(cls)

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        options: Options,
        *,
        auxiliary_channels: int | None = None,
    ) -> None:
        """Makes the shared parts, with a first stage for auxiliary frames if they have channels.

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
        units = options.base_units
        if options.num_global_vectors:
            wide = options.global_dim_ratio * units
            self.init_global_vectors = nn.Parameter(torch.empty(options.num_global_vectors, wide))
            nn.init.trunc_normal_(self.init_global_vectors, std=EMBEDDING_STD)
        self.initial_encoder = make_initial_stage(options, self.input_shape[3])
        tokens = self.initial_encoder.output_shapes(self.input_shape)[-1]
        if tokens[3] != units:
            raise ValueError(f"initial stage: expected base_units={units} channels at its end, found {tokens[3]}")
        final, features = make_final_stage(options, self.initial_encoder, self.target_shape)
        if auxiliary_channels is not None:
            self.initial_aux_encoder = make_initial_stage(options, auxiliary_channels)
        self.final_decoder = final
        self.dec_final_proj = nn.Linear(features, self.target_shape[3])
        init_linear(self.dec_final_proj, options.down_up_linear_init_mode)
        self.encoder = Encoder(options, tokens)
        self.enc_pos_embed = PositionEmbedding(units, *tokens[:3], options.pos_embed_type)

    def _add_target_embedding(self) -> None:
        _, h, w, channels = self.encoder.memory_shapes[-1]
        self.dec_pos_embed = PositionEmbedding(channels, self.target_shape[0], h, w, self.options.pos_embed_type)

    def _check_context(self, context: Tensor) -> None:
        if context.dim() != 5 or tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"context: expected (B, T, H, W, C) = (B, {str(self.input_shape)[1:]}, found {tuple(context.shape)}"
            )

    def _encode(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns memories and global vectors of all levels for tokens with their positions (B, T, H, W, C)."""
        options = self.options
        if options.num_global_vectors == 0:
            memories, vectors = self.encoder(tokens)
        else:
            start = self.init_global_vectors.expand(tokens.shape[0], -1, -1)
            keep = options.use_dec_self_global or options.use_dec_cross_global
            memories, vectors = self.encoder(tokens, start, keep_globals=keep)
        return memories, vectors

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Returns the forecast (B, T, H, W, C) of the decoder's tokens (B, T_out, H_0, W_0, C_0)."""
        forecast: Tensor = self.dec_final_proj(self.final_decoder(tokens))
        return forecast


class Earthformer(CuboidTransformer):
    """Earthformer as in the paper: space-time cuboid attention with global vectors.

    The presets give the sizes of the models in the paper's tables (SEVIR: 15.1 M parameters, ICAR-ENSO: 7.6 M,
    MovingMNIST and N-body MNIST: 7.6 M), which differ from the configs that the authors released. For
    SEVIR-LR the paper has no model: the preset takes the released stages and width with the paper's depth and
    global vectors.

    Source: Earthformer, section 3, tables 4, 6 and 7; depths and global vectors recovered from the published
    parameter counts and multiply-adds.
    """

    widths: ClassVar[dict[str, int]] = {"base_units": 4, "initial_downsample_stack_conv_dim_list": 4}
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

    # Where the fields behind `**options` are described, for listing hyperparameters without importing torch.
    options_class: ClassVar[str] = "earthformer.options:Options"

    # If the decoder does not use global vectors, those of the encoder's last layer are not read.
    parameters_without_gradient: ClassVar[tuple[str, ...]] = (
        "encoder.blocks.*.attn_l.*.global_proj.*",
        "encoder.blocks.*.attn_l.*.g2*",
    )

    def __init__(self, input_shape: Sequence[int], target_shape: Sequence[int], **options: Any) -> None:
        """Makes a model from contexts of `input_shape` to forecasts of `target_shape`, both (T, H, W, C).

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the forecast; H and W as in `input_shape`.
            **options: the fields of `earthformer.options.Options`.

        Raises:
            ValueError: shapes or options that cannot work, with what was expected and what was found.
            TypeError: an unknown option.
        """
        super().__init__(input_shape, target_shape, Options(**options))
        channels = self.encoder.memory_shapes[-1][3]
        self.z_proj = nn.Linear(channels, channels)
        init_linear(self.z_proj)
        self._add_target_embedding()
        self.decoder = Decoder(self.options, self.encoder.memory_shapes, self.target_shape[0])

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C_out) of `context` (B, T_in, H, W, C_in), in its units.

        Raises:
            ValueError: `context` does not have the configured shape.
        """
        self._check_context(context)
        memories, vectors = self._encode(self.enc_pos_embed(self.initial_encoder(context)))
        return self._pixels(self.decoder(self._initial_tokens(memories[-1]), memories, vectors))

    def _initial_tokens(self, memory: Tensor) -> Tensor:
        """Returns the tokens (B, T_out, H_L, W_L, C_L) from which the decoder starts."""
        batch, _, h, w, channels = memory.shape
        t_out, method = self.target_shape[0], self.options.z_init_method
        if method == "zeros":
            start: Tensor = self.z_proj(self.dec_pos_embed(memory.new_zeros(1, t_out, h, w, channels)))
            return start.expand(batch, -1, -1, -1, -1)
        if method == "nearest_interp":
            memory = resize_nearest(memory, (t_out, h, w))
        elif method == "last":
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
        """Makes an `Earthformer` whose default is no global vectors; see there for the arguments and errors."""
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
        """Makes an `Earthformer` with the depth of the released ones by default; see there for arguments and errors."""
        super().__init__(
            input_shape,
            target_shape,
            enc_depth=enc_depth,
            dec_depth=dec_depth,
            num_global_vectors=num_global_vectors,
            **options,
        )

"""Earthformer with auxiliary input: what is known of the future (weather, terrain) drives the decoder.

Source: the authors' EarthNet2021 model in their released code, after the paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from earthformer.cuboids import resize_nearest
from earthformer.decoder import UNetDecoder
from earthformer.model import CuboidTransformer
from earthformer.options import Options, full_signature
from earthformer.resampling import as_scale


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

    __signature__: ClassVar[inspect.Signature]

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        auxiliary_channels: int = 1,
        unet_dec_cross_mode: str = "up",
        **options: Any,
    ) -> None:
        """Make a model from contexts of `input_shape` to forecasts of `target_shape`, both (T, H, W, C).

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the forecast; H and W as in `input_shape`.
            auxiliary_channels: channels of the auxiliary frames.
            unet_dec_cross_mode: where the decoder attends to the memories: on its way ``down``, ``up`` or
                ``both``.
            options: the fields of `earthformer.options.Options`.

        Raises:
            ValueError: shapes or options that cannot work, with what was expected and what was found.
            TypeError: an unknown option.
        """
        super().__init__(input_shape, target_shape, Options(**options), auxiliary_channels=auxiliary_channels)
        self.auxiliary_channels = auxiliary_channels
        if self.options.dec_hierarchical_pos_embed:
            raise ValueError("dec_hierarchical_pos_embed: expected False in a model with auxiliary input, found True")
        # No token ever gets this embedding; it stands in the authors' checkpoints.
        self._add_target_embedding()
        self.decoder = UNetDecoder(
            cross_mode=unet_dec_cross_mode,
            downsample=as_scale(self.options.downsample),
            padding_type=self.options.padding_type,
            down_linear_init_mode=self.options.down_up_linear_init_mode,
            norm_init_mode=self.options.norm_init_mode,
            **self._decoder_levels,
        )

    def forward(self, context: Tensor, aux_context: Tensor, aux_target: Tensor) -> Tensor:
        """Return the forecast (B, T_out, H, W, C_out).

        Args:
            context: (B, T_in, H, W, C_in), in the task's units.
            aux_context: auxiliary frames of the context, (B, any T, any H, any W, `auxiliary_channels`);
                resized.
            aux_target: auxiliary frames of the target, likewise.

        Raises:
            ValueError: `context` is not of the configured shape, or auxiliary frames have other channels.
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


EarthformerAux.__signature__ = full_signature(EarthformerAux)

"""The denoiser: a U-Net of cuboid attention over the frames of context and noised target.

Source: Gao et al., "PreDiff: Precipitation Nowcasting with Latent Diffusion Models", NeurIPS 2023, arXiv 2307.10422,
section 3.2; order of operations and parameter names as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from earthformer.prediff.down_path import ZERO_MODE, DownPath, Levels, checked_shape, start_linear
from earthformer.resampling import Upsample


class CuboidUNet(DownPath):
    """Predicts the noise in a latent sequence, given its diffusion step and the context's latents.

    An untrained network predicts exactly 0, because its last layer is initialised with zeros.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        upsample_kernel_size: int = 3,
        unet_res_connect: bool = True,
        **levels: Any,
    ) -> None:
        """Makes the network.

        Args:
            input_shape: T, H, W, C of the context's latents.
            target_shape: T, H, W, C of the target's latents.
            upsample_kernel_size: kernel of the convolutions after up-sampling.
            unet_res_connect: whether each level but the coarsest adds its tokens from the way down.
            **levels: fields of `Levels`.

        Raises:
            ValueError: shapes or hyperparameters do not fit.
        """
        self_input, self_target = checked_shape("input_shape", input_shape), checked_shape("target_shape", target_shape)
        if self_input[1:] != self_target[1:]:
            raise ValueError(f"target_shape: expected H, W, C of input_shape {self_input}, found {self_target}")
        frames, (height, width, channels) = self_input[0] + self_target[0], self_input[1:]
        # One more channel distinguishes frames of the context from frames of the target.
        super().__init__((frames, height, width, channels + 1), Levels(**levels))
        self.input_shape, self.target_shape = self_input, self_target
        self.unet_res_connect = unet_res_connect
        is_context = torch.zeros(1, frames, 1, 1, 1)
        is_context[:, : self_input[0]] = 1.0
        self.is_context: Tensor
        self.register_buffer("is_context", is_context, persistent=False)
        self.up_time_embed_blocks = self._residual_blocks()
        self.up_self_blocks = self._attention_blocks()
        self.upsample_layers = nn.ModuleList(
            Upsample(
                dim=coarse[3],
                out_dim=fine[3],
                target_size=fine[:3],
                kernel_size=upsample_kernel_size,
                conv_init_mode=self.levels.conv_init_mode,
            )
            for fine, coarse in zip(self.shapes, self.shapes[1:], strict=False)
        )
        self.final_proj = nn.Linear(self.shapes[0][3], channels)
        start_linear(self.final_proj, ZERO_MODE)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Returns the predicted noise (B, T_out, H, W, C).

        Args:
            x: noised target latents (B, T_out, H, W, C).
            t: diffusion steps (B,), integers from 0.
            cond: the context's latents (B, T_in, H, W, C).

        Raises:
            ValueError: latents do not have the shape that the network was made for.
        """
        for name, given, expected in (("x", x, self.target_shape), ("cond", cond, self.input_shape)):
            if tuple(given.shape[1:]) != expected:
                raise ValueError(
                    f"denoiser: expected {name} (B, T, H, W, C) = (B, {str(expected)[1:]}, found {tuple(given.shape)}"
                )
        tokens = torch.cat((cond, x), dim=1)
        mark = self.is_context.to(tokens.dtype).expand(*tokens.shape[:4], 1)
        embedded = self.time_embed(t)
        behind = self.descend(torch.cat((tokens, mark), dim=-1), embedded)
        tokens = behind[-1]
        for level in reversed(range(len(behind))):
            if level < len(behind) - 1:
                tokens = self.upsample_layers[level](tokens)
                if self.unet_res_connect:
                    tokens = tokens + behind[level]
            tokens = self._level(self.up_time_embed_blocks[level], self.up_self_blocks[level], tokens, embedded)
        noise: Tensor = self.final_proj(tokens[:, self.input_shape[0] :])
        return noise

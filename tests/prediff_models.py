"""The smallest networks of PreDiff, and the shape of their latents."""

from __future__ import annotations

from earthformer.prediff.alignment import KnowledgeAlignment, NoisyEncoder
from earthformer.prediff.constraints import make_constraint
from earthformer.prediff.denoiser import CuboidUNet

SHAPE = (2, 4, 4, 3)
"""T, h, w, channels."""


def small_denoiser() -> CuboidUNet:
    return CuboidUNet((3, 4, 4, 3), SHAPE, base_units=8, depth=[1], num_heads=2)


def small_alignment(constraint: str = "mean_intensity", values: int = 1) -> KnowledgeAlignment:
    network = NoisyEncoder(SHAPE, out_channels=values, base_units=8, depth=[1], num_heads=2)
    return KnowledgeAlignment(network, make_constraint(constraint))

"""PreDiff: probabilistic forecasts by latent diffusion, with control by prior knowledge.

Names are imported on first use: importing the package imports neither torch nor diffusers.

Source: Gao et al., "PreDiff: Precipitation Nowcasting with Latent Diffusion Models", NeurIPS 2023, arXiv 2307.10422.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Constraint": "constraints",
    "Control": "constraints",
    "CuboidUNet": "denoiser",
    "FrameAutoencoder": "autoencoder",
    "Guidance": "alignment",
    "KnowledgeAlignment": "alignment",
    "LDM": "ldm",
    "LatentDiffusion": "diffusion",
    "LatentForecaster": "forecaster",
    "NoiseSchedule": "diffusion",
    "NoisyEncoder": "alignment",
    "PreDiff": "model",
    "PreDiffKA": "aligned_model",
    "Sampler": "sampling",
    "load_alignment": "upstream",
    "load_autoencoder": "upstream",
    "load_denoiser": "upstream",
    "make_autoencoder": "autoencoder",
    "register_constraint": "constraints",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Returns a public name from the module it lives in, importing that module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Returns the public names, loaded or not."""
    return __all__

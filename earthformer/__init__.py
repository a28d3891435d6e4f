"""Cuboid attention and Earthformer, usable without the benchmark harness.

Importing the package is cheap: ``earthformer.Earthformer`` and the other names below are imported on first use, so
that listing models or drawing patterns does not import torch.

Source: Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS 2022.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Earthformer": "earthformer.model",
    "EarthformerAux": "earthformer.aux_model",
    "EarthformerNoGlobal": "earthformer.model",
    "EarthformerReleased": "earthformer.model",
    "load_earthformer": "earthformer.upstream",
    "load_earthformer_aux": "earthformer.upstream",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Returns a public name from the module it lives in, importing that module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Returns the public names, loaded or not."""
    return __all__

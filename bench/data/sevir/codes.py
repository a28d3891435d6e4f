"""SEVIR's codes of vertically integrated liquid (VIL), from the reflectivity of one level.

Sources: Greene and Clark 1972, Mon. Weather Rev. 100, 548-552 (liquid water of a reflectivity, 3.44e-6 Z^(4/7) kg/m3);
the SEVIR project's tutorial (what a code stands for: (X - 2) / 90.66 kg/m2 up to 18, exp((X - 83.9) / 38.9) above).
"""

from __future__ import annotations

import numpy as np

from bench.data.sevir.catalogue import MISSING

_DEPTH = 4500.0
"""Fixed equivalent depth in metres of the column, since one level gives no vertical profile."""
_LINEAR_UP_TO = 18
_LOWEST, _HIGHEST = 5, 254
"""Codes up to this one stand for no liquid."""


def vil_codes(reflectivity: np.ndarray) -> np.ndarray:
    """Returns SEVIR's codes, uint8: 0..254, 255 where the reflectivity is NaN; a proxy, not a measured VIL.

    Args:
        reflectivity: The factor Z, mm^6/m^3.
    """
    liquid = 3.44e-6 * np.maximum(reflectivity.astype(np.float64), 0.0) ** (4 / 7) * _DEPTH
    with np.errstate(divide="ignore", invalid="ignore"):
        linear, logarithmic = 90.66 * liquid + 2, 38.9 * np.log(liquid) + 83.9
    # the two rules do not meet at 18: the second begins at 16.4, and codes must not decrease with more rain
    exact = np.where(linear <= _LINEAR_UP_TO, linear, np.maximum(logarithmic, _LINEAR_UP_TO))
    codes = np.where(np.rint(exact) > _LOWEST, np.clip(np.rint(exact), 0, _HIGHEST), 0)
    return np.where(np.isnan(reflectivity), MISSING, codes).astype(np.uint8)

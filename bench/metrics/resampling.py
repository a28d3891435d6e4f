"""Confidence intervals of scores by the jackknife: from the score without each event in turn.

A score is a function of sums over events.  The jackknife leaves out one event at a time: the change of the score is
that event's influence, and the variance of the influences gives that of the score (Tukey's jackknife: Efron and
Tibshirani, 1993, An Introduction to the Bootstrap, ch. 11).  Two things keep its coverage with few events and heavy
tails:

- It is computed on an unbounded scale, where influences are closer to normal, and transformed back: log odds of a CSI,
  logarithm of an error, Fisher's z of a correlation.
- The quantile is Student's t, with degrees of freedom from the influences' kurtosis (Satterthwaite, 1946,
  Biometrics Bull. 2, 110-114, with the variance of a sample variance from O'Neill, 2014, Am. Statistician 68, 282-296,
  and the sample kurtosis G2 of Joanes and Gill, 1998, The Statistician 47, 183-189, unbiased for normal values): n - 1
  where they are close to normal, fewer where a few events carry the score.

`tests/speed/intervals.py` compares it with bootstraps; its table is in `docs/which_csi.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.metrics.names import MEMBERS, PER_LEAD

MIN_EVENTS = 10
"""Independent events, or blocks, below which no interval is given.

With fewer, the coverage is the same, but the width varies by chance: with six events, the widest tenth of intervals of
a pooled CSI is five times as wide as the narrowest tenth, and fifty times for a skewed squared error; with ten events,
four and eleven times (`docs/which_csi.md`).  And the events of so small a test set are seldom independent.
"""

Array = np.ndarray
_Scale = tuple[Callable[[Array], Array], Callable[[Array], Array]]

_PLAIN: _Scale = (lambda x: x, lambda y: y)
_POSITIVE: _Scale = (np.log, np.exp)
_SHARE: _Scale = (lambda x: np.log(x) - np.log1p(-x), lambda y: 1 / (1 + np.exp(-y)))
_CORRELATION: _Scale = (np.arctanh, np.tanh)
_SKILL: _Scale = (lambda x: -np.log1p(-x), lambda y: -np.expm1(-y))  # 1 minus a ratio of errors

_SCALES: dict[str, _Scale] = {
    **dict.fromkeys(("csi", "pod", "sucr", "far", "fss", "brier"), _SHARE),
    **dict.fromkeys(("hss", "ssim", "c_nino34"), _CORRELATION),
    **dict.fromkeys(("mse", "mae", "rmse", "crps", "spread", "bias", "e_mse", "e_mae"), _POSITIVE),
    "bss": _SKILL,
}
# Scores with a prefix from above that are differences and may be negative, or sums with weights above 1.
_UNBOUNDED = ("brier_debiased", "crps_fair", "c_nino34_wm")


def scale_of(score: str) -> _Scale:
    """Returns the transform to an unbounded scale and its inverse, by a score's name; the identity for unknown ones."""
    match = PER_LEAD.match(score)
    name = (match["score"] if match else score).removesuffix(MEMBERS)
    if name.startswith(_UNBOUNDED):
        return _PLAIN
    known = [prefix for prefix in _SCALES if name == prefix or name.startswith(f"{prefix}_")]
    return _SCALES[max(known, key=len)] if known else _PLAIN


def jackknife_interval(
    whole: Array, left_out: Array, *, level: float = 0.95, scale: _Scale = _PLAIN
) -> tuple[Array, Array]:
    """Returns the bounds of scores, `(low, high)`, each of the shape of `whole`.

    They are NaN if a score is undefined or at an end of its range, with all events or without one of them.

    Args:
        whole: The score of all events, any shape.
        left_out: The score without each event, `(events, *whole.shape)`.
        level: Coverage of the interval.
        scale: Transform and its inverse, see `scale_of`.
    """
    from scipy.special import stdtrit  # imported here to keep `earthbench list` fast

    there, back = scale
    n = len(left_out)
    with np.errstate(all="ignore"):
        value, without = there(np.asarray(whole, np.float64)), there(np.asarray(left_out, np.float64))
        influence = without.mean(0) - without
        squares = (influence**2).sum(0)
        deviation = np.sqrt(squares * (n - 1) / n)
        excess = n * (influence**4).sum(0) / squares**2 - 3
        unbiased = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * excess + 6) if n > 3 else np.full_like(excess, np.nan)
        beyond = unbiased + 3 - (n - 3) / (n - 1)
        freedom = np.where(beyond > 0, np.clip(2 * n / beyond, 1, n - 1), n - 1)
        reach = stdtrit(freedom, (1 + level) / 2) * deviation
        low, high = back(value - reach), back(value + reach)
    usable = np.isfinite(value) & np.isfinite(reach)
    return np.where(usable, low, np.nan), np.where(usable, high, np.nan)

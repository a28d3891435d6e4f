"""The interval of a score, from the score without each event in turn.

A score is a function of sums over events.  The jackknife leaves out one event at a time: how far the score moves is
that event's influence, and the influences' variance gives the score's (Tukey's jackknife: Efron and Tibshirani, 1993,
An Introduction to the Bootstrap, ch. 11).  Two things make its interval hold with few events and heavy tails:

- It is formed on a scale without ends, where influences are closer to normal: log odds of a CSI, logarithm of an
  error, Fisher's z of a correlation; then carried back.
- The quantile is Student's t, with the degrees of freedom that the influences' kurtosis leaves (Satterthwaite, 1946,
  Biometrics Bull. 2, 110-114, with the variance of a sample variance from O'Neill, 2014, Am. Statistician 68, 282-296,
  and the sample kurtosis G2 of Joanes and Gill, 1998, The Statistician 47, 183-189, unbiased for normal values): n - 1
  where they are close to normal, fewer where a few events carry the score.

`tests/speed/intervals.py` compares it with bootstraps; its table is in `docs/which_csi.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.metrics.names import MEMBERS, PER_LEAD

FEWEST_EVENTS = 10
"""Independent events, or blocks, below which no interval is given.

With fewer, the interval holds as often, but how wide it comes out is chance: of a pooled CSI over six events, a tenth
of the intervals are five times as wide as another tenth, of a skewed squared error fifty times; over ten events it is
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
# Named like one of those above, but a difference that may be negative, or a sum with weights above 1.
_UNBOUNDED = ("brier_debiased", "crps_fair", "c_nino34_wm")


def scale_of(score: str) -> _Scale:
    """Returns the map to a scale without ends and the way back, by a score's name; the identity where none is known."""
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

    NaN where there are none: a score that is undefined, or at an end of its range, as it is or without one of the
    events.

    Args:
        whole: The score of all events, any shape.
        left_out: The score without each event, `(events, *whole.shape)`.
        level: How often the interval is to hold the true value.
        scale: See `scale_of`.
    """
    from scipy.special import stdtrit  # here: what lists names must not wait for it

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

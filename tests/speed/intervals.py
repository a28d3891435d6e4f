"""Simulates how often 95 % intervals contain the true score, and how often two equal models are distinguished.

    python tests/speed/intervals.py

Draws test sets of n events from populations whose true score is known, and gives each to every method.  Sizes and
skills of the events are about those of the committed statistics under `results/runs`: on six radar sequences the
logarithm of the observed area has a standard deviation of 0.4 (VIL 74) to 0.9 (VIL 160 and 181), the log odds of an
event's CSI 0.2 to 0.4, a larger area has more skill, and a squared error varies by 0.3 of its mean; a season has more
kinds of weather than one day.  Prints the tables of `docs/which_csi.md`; it takes minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from bench.metrics.resampling import jackknife_interval, scale_of
from bench.records.uncertainty import swaps
from bench.tables.standings import PERMUTATIONS, corrected_level

Array = np.ndarray
Sums = Mapping[str, Array]

EVENTS = (3, 5, 6, 8, 10, 15, 20, 30, 50, 100)
SIMULATIONS = 4000
REPLICATES = 999
LEVEL = 0.95
METHODS = ("percentile", "expanded percentile", "BCa", "bootstrap-t", "jackknife, t", "ours")
PAIRED = ("percentile", "expanded percentile", "ours", "permutation")


@dataclass(frozen=True)
class Population:
    """A population of test sets."""

    title: str
    score: str
    """What `scale_of` knows it by."""
    draw: Callable[[np.random.Generator, int, int, int], list[dict[str, Array]]]
    """Generator, events, test sets, models -> per model its statistics, each `(events, test sets)`."""
    value: Callable[[Sums], Array]
    """The score of sums."""


def _contingency(spread: float, empty: float, tied: float) -> Callable[..., list[dict[str, Array]]]:
    """Counts of events: log-normal areas, some without any, and a skill that goes up with the area."""

    def draw(rng: np.random.Generator, events: int, sets: int, models: int) -> list[dict[str, Array]]:
        shape = (events, sets)
        size = rng.normal(size=shape)
        area = np.exp(spread * size) * (rng.random(shape) >= empty)
        weather = rng.normal(size=(2, *shape))  # difficult events are difficult for all models
        found = []
        for _ in range(models):
            own = rng.normal(size=(2, *shape))
            pod = 1 / (1 + np.exp(-(tied * size + 0.25 * weather[0] + 0.15 * own[0])))
            alarms = area * np.exp(-0.7 - 0.5 * tied * size + 0.25 * weather[1] + 0.15 * own[1])
            found.append({"hits": area * pod, "misses": area * (1 - pod), "false_alarms": alarms})
        return found

    return draw


def _errors(spread: float) -> Callable[..., list[dict[str, Array]]]:
    def draw(rng: np.random.Generator, events: int, sets: int, models: int) -> list[dict[str, Array]]:
        weather = rng.normal(size=(events, sets))
        return [
            {
                "sum": np.exp(spread * (0.95 * weather + 0.31 * rng.normal(size=weather.shape))),
                "count": np.ones_like(weather),
            }
            for _ in range(models)
        ]

    return draw


_LEAD, _WINDOW = 6, 26
# Of a month's anomaly that is left a month later; a second root makes the index swing, as El Nino does.
_MEMORY = (1.72, -0.76)


def _blocks(rng: np.random.Generator, events: int, sets: int, models: int) -> list[dict[str, Array]]:
    """Moments of an index at a lead of six months, over blocks of 26 windows of one long record."""
    months = events * _WINDOW + _LEAD
    warm_up = 120
    noise = rng.normal(size=(months + warm_up, sets))
    index = np.zeros_like(noise)
    for month in range(2, len(noise)):
        index[month] = _MEMORY[0] * index[month - 1] + _MEMORY[1] * index[month - 2] + noise[month]
    index = index[warm_up:] / index.std()
    now, later = index[: events * _WINDOW], index[_LEAD:]
    found = []
    for _ in range(models):
        error = np.zeros_like(now)
        fresh = rng.normal(size=now.shape)
        for month in range(1, len(now)):  # overlapping windows have similar errors
            error[month] = 0.8 * error[month - 1] + 0.6 * fresh[month]
        p = 0.6 * now + 0.4 * error
        each = {"count": np.ones_like(p), "p": p, "o": later, "pp": p * p, "oo": later * later, "po": p * later}
        found.append({name: values.reshape(events, _WINDOW, sets).sum(1) for name, values in each.items()})
    return found


def _csi(sums: Sums) -> Array:
    with np.errstate(all="ignore"):
        return sums["hits"] / (sums["hits"] + sums["misses"] + sums["false_alarms"])


def _correlation(sums: Sums) -> Array:
    n, p, o = sums["count"], sums["p"], sums["o"]
    with np.errstate(all="ignore"):
        return (sums["po"] - p * o / n) / np.sqrt((sums["pp"] - p * p / n) * (sums["oo"] - o * o / n))


POPULATIONS = {
    "csi": Population("CSI", "csi_74", _contingency(0.7, 0.0, 0.1), _csi),
    "rare": Population("CSI, rare", "csi_160", _contingency(1.1, 0.1, 0.3), _csi),
    "heavy": Population("CSI, few carry all", "csi_219", _contingency(1.5, 0.3, 0.4), _csi),
    "mse": Population("MSE", "mse", _errors(0.35), lambda sums: sums["sum"] / sums["count"]),
    "skewed": Population("MSE, skewed", "mse", _errors(0.9), lambda sums: sums["sum"] / sums["count"]),
    "blocks": Population("correlation, blocks", "c_nino34_m", _blocks, _correlation),
}


@cache
def truth_of(name: str) -> float:
    """Returns the score of the population, from a very large test set."""
    population = POPULATIONS[name]
    rng = np.random.default_rng(1)
    sums: dict[str, float] = {}
    for _ in range(20):
        for name, values in population.draw(rng, 400, 500, 1)[0].items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    return float(population.value({name: np.asarray(value) for name, value in sums.items()}))


def drawn(name: str, events: int, models: int, sets: int) -> list[dict[str, Array]]:
    """Returns test sets of a population; the same for the same arguments."""
    rng = np.random.default_rng([list(POPULATIONS).index(name), events, models])
    return POPULATIONS[name].draw(rng, events, sets, models)


def _without_each(population: Population, own: Sums) -> tuple[Array, Array]:
    whole = {name: values.sum(0) for name, values in own.items()}
    return population.value(whole), population.value({name: whole[name] - values for name, values in own.items()})


def _of_weights(population: Population, own: Sums, weights: Array) -> Array:
    return population.value({name: weights @ values for name, values in own.items()})


def _resampling(events: int) -> Array:
    rng = np.random.default_rng([7, events])
    return rng.multinomial(events, np.full(events, 1 / events), size=REPLICATES).astype(np.float64)


def _quantiles(values: Array, low: Array | float, high: Array | float) -> tuple[Array, Array]:
    """Returns two quantiles along the first axis, each the same for all columns or one per column."""
    ordered = np.sort(values, 0)  # NaN last
    defined = (~np.isnan(values)).sum(0)
    columns = np.arange(values.shape[1])

    def at(share: Array | float) -> Array:
        place = np.nan_to_num(np.asarray(share) * (defined - 1), nan=0.0)
        return ordered[np.clip(np.rint(place), 0, np.maximum(defined - 1, 0)).astype(int), columns]

    return at(low), at(high)


def _expanded(events: int) -> float:
    """Returns the lower share of the expanded percentile interval (Hesterberg, 2015, Am. Statistician 69, 371-386)."""
    return float(ndtr(-stdtrit(events - 1, (1 + LEVEL) / 2) * np.sqrt(events / (events - 1))))


def intervals(name: str, own: Sums, methods: tuple[str, ...] = METHODS) -> dict[str, tuple[Array, Array]]:
    """Returns the bounds of each method for each test set."""
    population = POPULATIONS[name]
    whole, without = _without_each(population, own)
    events = len(without)
    found = {"ours": jackknife_interval(whole, without, level=LEVEL, scale=scale_of(population.score))}
    if methods == ("ours",):
        return found
    influence = without.mean(0) - without
    deviation = np.sqrt((events - 1) / events * (influence**2).sum(0))
    reach = stdtrit(events - 1, (1 + LEVEL) / 2) * deviation
    found["jackknife, t"] = whole - reach, whole + reach
    weights = _resampling(events)
    values = _of_weights(population, own, weights)
    tail = (1 - LEVEL) / 2
    found["percentile"] = _quantiles(values, tail, 1 - tail)
    found["expanded percentile"] = _quantiles(values, _expanded(events), 1 - _expanded(events))
    with np.errstate(all="ignore"):
        shift = ndtri(np.clip((values < whole).mean(0), 1 / REPLICATES, 1 - 1 / REPLICATES))
        bend = (influence**3).sum(0) / (6 * (influence**2).sum(0) ** 1.5)
        ends = (ndtr(shift + (shift + z) / (1 - bend * (shift + z))) for z in (ndtri(tail), -ndtri(tail)))
        found["BCa"] = _quantiles(values, *ends)
        if (of_ratio := _as_ratio(name, own)) is not None:
            up, down = of_ratio
            spread = np.sqrt(
                weights @ (up * up) - 2 * values * (weights @ (up * down)) + values**2 * (weights @ (down * down))
            ) / (weights @ down)
            linear = np.sqrt((((up - whole * down) / down.sum(0)) ** 2).sum(0))
            studentised = (values - whole) / spread
            studentised[~np.isfinite(studentised)] = np.nan
            low, high = _quantiles(studentised, tail, 1 - tail)
            found["bootstrap-t"] = whole - high * linear, whole - low * linear
    return found


def _as_ratio(name: str, own: Sums) -> tuple[Array, Array] | None:
    if "hits" in own:
        return own["hits"], own["hits"] + own["misses"] + own["false_alarms"]
    return (own["sum"], own["count"]) if "sum" in own else None


def coverage(name: str, events: int, methods: tuple[str, ...] = METHODS, sets: int = SIMULATIONS) -> dict[str, float]:
    """Returns how often each method's interval contains the true score; test sets without an interval are ignored."""
    truth = truth_of(name)
    found = {}
    for method, (low, high) in intervals(name, drawn(name, events, 1, sets)[0], methods).items():
        given = np.isfinite(low) & np.isfinite(high)
        found[method] = float(((low <= truth) & (truth <= high))[given].mean())
    return found


def widths(name: str, events: int, sets: int = SIMULATIONS) -> tuple[float, float]:
    """Returns the width of our interval over that of the middle 95 % of the scores, and its variability.

    The first is the median over test sets; the second the ratio of the 90th to the 10th percentile.
    """
    own = drawn(name, events, 1, sets)[0]
    low, high = intervals(name, own, ("ours",))["ours"]
    ends = np.nanquantile(POPULATIONS[name].value(_total(own)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    narrow, typical, wide = np.nanquantile((high - low) / (ends[1] - ends[0]), [0.1, 0.5, 0.9])
    return float(typical), float(wide / narrow)


def false_positive_rate(
    name: str, events: int, methods: tuple[str, ...] = PAIRED, sets: int = SIMULATIONS
) -> dict[str, float]:
    """Returns how often two equal models are distinguished: 0 outside the interval of the difference, or p < 0.05."""
    population = POPULATIONS[name]
    a, b = drawn(name, events, 2, sets)
    whole, without = (
        one - other for one, other in zip(_without_each(population, a), _without_each(population, b), strict=True)
    )
    bounds = {"ours": jackknife_interval(whole, without, level=LEVEL)}
    if "percentile" in methods:
        weights = _resampling(events)
        values = _of_weights(population, a, weights) - _of_weights(population, b, weights)
        bounds["percentile"] = _quantiles(values, 0.025, 0.975)
        bounds["expanded percentile"] = _quantiles(values, _expanded(events), 1 - _expanded(events))
    found = {}
    for method, (low, high) in bounds.items():
        given = np.isfinite(low) & np.isfinite(high)
        found[method] = float(((low > 0) | (high < 0))[given].mean())
    if "permutation" in methods:
        p = _permutation(population, a, b)
        found["permutation"] = float((p < 0.05)[np.isfinite(whole)].mean())
    return found


def _permutation(population: Population, a: Sums, b: Sums, replicates: int = REPLICATES) -> Array:
    """Returns the p-value of each test set, as `bench.records.compare` finds it."""
    events = len(next(iter(a.values())))
    stay = swaps(events, replicates, np.random.default_rng([8, events]))
    there = population.value({key: stay @ a[key] + (1 - stay) @ b[key] for key in a})
    back = population.value({key: (1 - stay) @ a[key] + stay @ b[key] for key in a})
    observed = np.abs(population.value(_total(a)) - population.value(_total(b)))
    as_large = (np.abs(there - back) >= observed * (1 - 1e-9) - 1e-13).sum(0)
    defined = (~np.isnan(there - back)).sum(0)
    return as_large / np.maximum(defined, 1) if len(stay) == 2**events else (1 + as_large) / (1 + defined)


def _total(own: Sums) -> dict[str, Array]:
    return {key: values.sum(0) for key, values in own.items()}


def marked(name: str, events: int, models: int, sets: int = 1000) -> dict[str, float]:
    """Returns how often a table of equal models has a mark, by the rule of `bench.tables.standings` and by others."""
    population = POPULATIONS[name]
    own = drawn(name, events, models, sets)
    order = np.argsort(np.stack([population.value(_total(one)) for one in own]), 0)
    if population.score != "mse":
        order = order[::-1]
    placed = [{key: np.choose(order[place], [one[key] for one in own]) for key in own[0]} for place in range(models)]
    p = np.stack([_permutation(population, placed[0], other, PERMUTATIONS) for other in placed[1:]])
    asked = np.array([corrected_level(passed) for passed in range(1, models)])[:, None]
    return {
        "best and second": float((p[0] < 0.05).mean()),
        "ours": float((p < asked).any(0).mean()),
        "without correction": float((p < 0.05).any(0).mean()),
    }


def main(sets: int = SIMULATIONS) -> None:
    """Prints the tables: those of the page first, then every method."""
    titles = tuple(population.title for population in POPULATIONS.values())
    covered = {name: [coverage(name, n, sets=sets) for n in EVENTS] for name in POPULATIONS}
    apart = {name: [false_positive_rate(name, n, sets=sets) for n in EVENTS] for name in POPULATIONS}
    print(f"{sets} test sets each, so a standard error of {np.sqrt(0.05 * 0.95 / sets):.3f} at 0.95")
    print("\nCoverage of our 95 % interval (of the percentile bootstrap)\n")
    _print(titles, [[f"{row['ours']:.3f} ({row['percentile']:.3f})" for row in rows] for rows in covered.values()])
    print("\nTwo equal models told apart: our interval excludes 0 (percentile bootstrap), p < 0.05\n")
    cell = "{ours:.3f} ({percentile:.3f}), {permutation:.3f}"
    _print(titles, [[cell.format(**row) for row in rows] for rows in apart.values()])
    print("\nWidth of our interval over that of the scores' own 95 %: median, and 90th over 10th percentile\n")
    wide = [[widths(name, n, sets) for n in EVENTS] for name in POPULATIONS]
    _print(titles, [[f"{typical:.2f}, {varies:.1f}" for typical, varies in column] for column in wide])
    for found, methods in ((covered, METHODS), (apart, PAIRED)):
        print("\nEvery method: " + ("coverage" if methods is METHODS else "two equal models told apart"))
        for name, rows in found.items():
            print(f"\n{POPULATIONS[name].title} (true value {truth_of(name):.3f})\n")
            _print(methods, [[f"{row[m]:.3f}" if m in row else "" for row in rows] for m in methods])
    print("\nA mark in a table of equal models\n")
    for name, n, models in (("csi", 6, 10), ("csi", 30, 10), ("csi", 100, 30), ("mse", 30, 10)):
        shares = ", ".join(f"{rule} {share:.3f}" for rule, share in marked(name, n, models).items())
        print(f"{POPULATIONS[name].title}, {n} events, {models} models: {shares}")


def _print(titles: tuple[str, ...], columns: list[list[str]]) -> None:
    print(f"| events | {' | '.join(titles)} |")
    print(f"|{'---|' * (len(titles) + 1)}")
    for n, *cells in zip(EVENTS, *columns, strict=True):
        print(f"| {n} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""How much each site counts in a weighted mean: rules that look at what the sites told beside their weights.

A rule is a pure function of the checked metrics of a round and, where it has a memory, of what it remembered after the
round before. Write n for ``num-examples``, e for ``effort-contour`` (pixels of contour drawn so far), t for ``trust``
(0 … 1), L for ``loss`` and p = n / Σn.

============== ================================================================================ =====================
rule           weight of a site                                                                 options
============== ================================================================================ =====================
``examples``   n: McMahan et al. 2017, algorithm 1                                              (bounds only)
``equal``      1                                                                                (bounds only)
``effort``     n · (e / n)ᵃ: a case counts by how much was drawn on it                          ``exponent=0.5``: a
``trust``      n · (f + (1 − f) · t): who agrees with the model so far counts more              ``floor=0.25``: f
``worst-site`` (1 − s) · p, and s more for the site with the highest loss; losses are           ``emphasis=0.3``: s,
               remembered as m ← d · m + (1 − d) · L                                            ``decay=0.5``: d
``afl``        λ of the round before; then λ ← Π(λ + γ · L), Π the nearest point within the     ``rate=0.1``: γ
               bounds: agnostic federated learning (Mohri et al. 2019, algorithm 1)
``qffl``       p · Lᑫ: the gradient of q-FFL's objective Σ p · Lᑫ⁺¹ / (q + 1) (Li et al. 2020,  ``q=1``
               eq. 2); the length of the step stays that of a mean
============== ================================================================================ =====================

Bounds hold whatever a site tells. No site has a larger share than ``max_share``, by default one half (1 for
``examples``): none outweighs all others together, so that two sites count alike. None has less than ``min_share`` of an
equal share, by default 0.1 (0 for ``examples``). Losses and efforts count at most tenfold, and at least a tenth of, the
median of the sites. A site that does not tell what a rule asks for counts as the median of those who do.

Losses are those that sites had while they trained. They are measured on different cases with different labels, so that
"worst" means worst at fitting its own labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, Strategy

from wardround.errors import UsageError
from wardround.strategies.contract import EFFORT_CONTOUR, LOSS, NUM_EXAMPLES, TRUST, Metrics
from wardround.strategies.options import Option, chosen
from wardround.strategies.plan import RoundPlan
from wardround.strategies.record_privacy import PRIVATE_METRICS

Memory = Mapping[str, float]
"""What a rule remembers of each site."""

_Floats = npt.NDArray[np.float64]

_PLAUSIBLE = 10.0
_MAX_SHARE, _MIN_SHARE = "max_share", "min_share"
_BOUNDS: Mapping[str, Option] = {_MAX_SHARE: Option(0.5, 0.01, 1.0), _MIN_SHARE: Option(0.1, 0.0, 1.0)}


@dataclass(frozen=True)
class Voice:
    """An update that waits to be weighed.

    Parameters
    ----------
    site
        Who sent it.
    metrics
        The scalars beside it, checked.
    staleness
        Factor 0 … 1 by which it counts less because it is late.
    """

    site: str
    metrics: Metrics
    staleness: float = 1.0


@dataclass(frozen=True)
class Weighed:
    """What a rule makes of a round.

    Parameters
    ----------
    shares
        One for each voice, in their order; they sum to 1.
    memory
        For the next round; empty for a rule without a memory.
    """

    shares: tuple[float, ...]
    memory: Memory = field(default_factory=dict)

    def by_site(self, voices: Sequence[Voice]) -> dict[str, float]:
        """Site → its share, over all its voices."""
        found: dict[str, float] = {}
        for voice, share in zip(voices, self.shares, strict=True):
            found[voice.site] = found.get(voice.site, 0.0) + share
        return found


@dataclass(frozen=True)
class Weighting:
    """A rule with its options, as :func:`make_weighting` makes it."""

    rule: str
    options: Mapping[str, float | int]

    @property
    def plain(self) -> bool:
        """Whether this is Flower's own weighting by ``num-examples``, without bounds."""
        return self == BY_EXAMPLES

    def describe(self) -> dict[str, float | int | str]:
        """What must be equal where a run is resumed."""
        return {"rule": self.rule, **self.options}


_Raw = tuple[_Floats, Memory]


@dataclass(frozen=True)
class _Round:
    """The sites of a round, by name, with what they told."""

    sites: tuple[str, ...]
    metrics: tuple[Metrics, ...]

    def told(self, name: str, per: npt.ArrayLike = 1.0) -> _Floats:
        """``[sites]``: a metric by `per`, at least 0; where a site does not tell, the median of those who do, or 1."""
        known = [_number(metrics.get(name)) for metrics in self.metrics]
        found = np.maximum(known, 0.0) / np.asarray(per)
        there = found[np.isfinite(found)]
        return np.where(np.isfinite(found), found, np.median(there) if there.size else 1.0)

    def examples(self) -> _Floats:
        """``[sites]``: ``num-examples``."""
        return self.told(NUM_EXAMPLES)

    def losses(self) -> _Floats:
        """``[sites]``: losses within a factor of ten of their median."""
        return _plausible(self.told(LOSS))


def _equal(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    return np.ones(len(now.sites)), {}


def _examples(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    return now.examples(), {}


def _effort(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    examples = now.examples()
    drawn = _plausible(now.told(EFFORT_CONTOUR, per=examples))
    return examples * drawn ** options["exponent"], {}


def _trust(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    floor = options["floor"]
    return now.examples() * (floor + (1 - floor) * np.minimum(now.told(TRUST), 1.0)), {}


def _worst_site(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    decay, emphasis = options["decay"], options["emphasis"]
    losses = {
        site: decay * memory[site] + (1 - decay) * loss if site in memory else loss
        for site, loss in zip(now.sites, now.losses().tolist(), strict=True)
    }
    shares = (1 - emphasis) * now.examples() / now.examples().sum()
    # The first by name where two are equally bad.
    shares[int(np.argmax([losses[site] for site in now.sites]))] += emphasis
    return shares, {**memory, **losses}


def _agnostic(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    known = sorted({*memory, *now.sites})
    low, high = _limits(len(known), options)
    # Who is new has an equal share; the others make room for it.
    room = sum(1 for site in known if site in memory) / len(known)
    before = np.array([memory[site] * room if site in memory else 1 / len(known) for site in known])
    before = _projected(before, low, high, 1.0)
    here = np.array([site in now.sites for site in known])
    after = before.copy()
    # Who is not there keeps its weight.
    raised = before[here] + options["rate"] * now.losses()
    after[here] = _projected(raised, low, high, float(before[here].sum()))
    return before[here], dict(zip(known, after.tolist(), strict=True))


def _q_fair(now: _Round, options: Mapping[str, float | int], memory: Memory) -> _Raw:
    return now.examples() * now.losses() ** options["q"], {}


@dataclass(frozen=True)
class _Rule:
    weigh: Callable[[_Round, Mapping[str, float | int], Memory], _Raw]
    options: Mapping[str, Option]
    looks_at: frozenset[str] = frozenset()


_RULES: Mapping[str, _Rule] = {
    "examples": _Rule(_examples, {_MAX_SHARE: Option(1.0, 0.01, 1.0), _MIN_SHARE: Option(0.0, 0.0, 1.0)}),
    "equal": _Rule(_equal, _BOUNDS),
    "effort": _Rule(_effort, {"exponent": Option(0.5, 0.0, 4.0), **_BOUNDS}, frozenset({EFFORT_CONTOUR})),
    "trust": _Rule(_trust, {"floor": Option(0.25, 0.0, 1.0), **_BOUNDS}, frozenset({TRUST})),
    "worst-site": _Rule(
        _worst_site, {"emphasis": Option(0.3, 0.0, 1.0), "decay": Option(0.5, 0.0, 0.999), **_BOUNDS}, frozenset({LOSS})
    ),
    "afl": _Rule(_agnostic, {"rate": Option(0.1, 0.0, 10.0), **_BOUNDS}, frozenset({LOSS})),
    "qffl": _Rule(_q_fair, {"q": Option(1.0, 0.0, 20.0), **_BOUNDS}, frozenset({LOSS})),
}


def rules() -> tuple[str, ...]:
    """Every name that :func:`make_weighting` knows."""
    return tuple(_RULES)


def make_weighting(rule: str = "examples", **options: object) -> Weighting:
    """A rule with its options; what is not given has its default.

    Raises
    ------
    UsageError
        If there is no such rule or option, or its value cannot work.
    """
    if rule not in _RULES:
        raise UsageError(
            f"there is no weighting called {rule!r}", "no rule has this name", f"choose one of {', '.join(rules())}"
        )
    return Weighting(rule, chosen(f"weighting {rule}", _RULES[rule].options, options))


BY_EXAMPLES = make_weighting()
"""Flower's own: by ``num-examples``, without bounds."""


def check_weighable(strategy: Strategy, weighting: Weighting, plan: RoundPlan | None = None) -> None:
    """Refuse a rule where it could have no effect.

    Parameters
    ----------
    strategy, weighting
        Of the run.
    plan
        Of one of its rounds.

    Raises
    ------
    UsageError
        If the strategy counts all sites alike, or the plan keeps back what the rule looks at.
    """
    if isinstance(strategy, (FedMedian, FedTrimmedAvg, Krum)) and not weighting.plain:
        raise UsageError(
            f"weighting {weighting.rule} has no effect with {type(strategy).__name__}",
            "it counts all sites alike, whatever they tell",
            "leave out the weighting, or choose a strategy that takes a weighted mean",
        )
    hidden = _RULES[weighting.rule].looks_at - PRIVATE_METRICS
    if plan is not None and plan.privacy == "record" and hidden:
        raise UsageError(
            f"weighting {weighting.rule} does not go with privacy record",
            f"no site would tell its {' or '.join(sorted(hidden))}: it says something of the cases",
            "choose examples or equal",
        )


def weigh(weighting: Weighting, voices: Sequence[Voice], memory: Memory) -> Weighed:
    """How much each update counts.

    Parameters
    ----------
    weighting
        The rule.
    voices
        One or more, those of one site from the oldest to the newest, which speaks for the site.
    memory
        As it was after the round before; empty in the first one.

    Returns
    -------
    Weighed
        A function of the arguments alone.
    """
    newest = {voice.site: voice.metrics for voice in voices}
    now = _Round(tuple(sorted(newest)), tuple(newest[site] for site in sorted(newest)))
    raw, after = _RULES[weighting.rule].weigh(now, weighting.options, memory)
    places = np.array([now.sites.index(voice.site) for voice in voices])
    # Of a site with several updates each counts as an update, and the bounds hold for them together.
    parts = np.array([voice.staleness for voice in voices])
    whole = np.bincount(places, parts, len(now.sites))
    shares = bounded(raw * whole, *_limits(len(now.sites), weighting.options))
    return Weighed(tuple((shares[places] * parts / whole[places]).tolist()), after)


def bounded(weights: npt.ArrayLike, low: float, high: float) -> _Floats:
    """Shares in proportion to weights as far as bounds allow: clip(c · w, low, high), with c such that they sum to 1.

    Parameters
    ----------
    weights
        ``[K]``, at least 0. Where all are 0 they count alike.
    low, high
        With K · low ≤ 1 ≤ K · high.

    Returns
    -------
    array
        ``[K]``.
    """
    values = np.asarray(weights, dtype=np.float64)
    largest = float(values.max())
    if not largest > 0:
        return np.full(values.shape, 1 / values.size)
    # Without this, nobody could take what lies above the bounds of the others.
    values = np.maximum(values / largest, 1e-12)

    def clipped(scale: float) -> _Floats:
        return np.clip(scale * values, low, high)

    turns = np.unique(np.concatenate([low / values, high / values]))
    shares = clipped(float(np.interp(1.0, [clipped(turn).sum() for turn in turns], turns)))
    found: _Floats = shares / shares.sum()
    return found


def _projected(values: _Floats, low: float, high: float, total: float) -> _Floats:
    """The nearest point with that sum between the bounds: clip(v − c, low, high)."""

    def clipped(shift: float) -> _Floats:
        return np.clip(values - shift, low, high)

    turns = np.unique(np.concatenate([values - low, values - high]))[::-1]
    return clipped(float(np.interp(total, [clipped(turn).sum() for turn in turns], turns)))


def _limits(count: int, options: Mapping[str, float | int]) -> tuple[float, float]:
    """Least and largest share of one of so many sites."""
    return options[_MIN_SHARE] / count, max(options[_MAX_SHARE], 1 / count)


def _plausible(values: _Floats) -> _Floats:
    """Values within a factor of ten of their median."""
    middle = float(np.median(values))
    return np.clip(values, middle / _PLAUSIBLE, middle * _PLAUSIBLE)


def _number(value: object) -> float:
    """A finite number, or NaN for anything else that a site may have told."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan

"""Curves for the coordinator's page: one line a site, drawn as SVG, with the numbers beside it as a table.

Only coordinates are worked out here; the template draws. A line differs from the others in hue and in its dashes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wardround.server.journal import RoundRecord
from wardround.server.overview import scalar
from wardround.strategies.contract import DICE, LOSS

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34
HUES = 6
DASHES = ("", "7 4", "2 4", "9 3 2 3")
_MOST_DOTS = 60


@dataclass(frozen=True)
class Line:
    """One site: `pieces` of its line as SVG points, `dots` as (x, y), and how it is drawn."""

    site: str
    hue: int
    dash: str
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A chart.

    Parameters
    ----------
    title, unit
        What is shown.
    rounds
        The rounds that it has values for.
    lines
        By site.
    x_ticks, y_ticks
        Position and text.
    """

    title: str
    unit: str
    rounds: tuple[int, ...]
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def summary(self) -> str:
        """What a reader who cannot see the chart is told."""
        ends = [f"{line.site} {line.values[-1]:.3g}" for line in self.lines if math.isfinite(line.values[-1])]
        return f"{self.title} by round. In round {self.rounds[-1]}: {', '.join(ends) or 'no value'}."


def curves_of(records: Sequence[RoundRecord]) -> list[Curve]:
    """Dice, loss and waiting time of every site; what has no value is left out."""
    sites = sorted({site for record in records for site in (*record.sites, *_evaluated(record))})

    def dice(record: RoundRecord, site: str) -> float:
        return scalar(_evaluated(record).get(site, {}), DICE)

    def loss(record: RoundRecord, site: str) -> float:
        return scalar(record.sites[site].metrics, LOSS) if site in record.sites else math.nan

    def seconds(record: RoundRecord, site: str) -> float:
        return record.sites[site].seconds if site in record.sites else math.nan

    made = (
        _curve("Dice on held-back cases", "", records, sites, dice),
        _curve("Loss in training", "", records, sites, loss),
        _curve("Time until the reply", "s", records, sites, seconds),
    )
    return [curve for curve in made if curve is not None]


def _evaluated(record: RoundRecord) -> dict[str, dict[str, float | list[float]]]:
    return {} if record.evaluation is None else {site: dict(row) for site, row in record.evaluation.sites.items()}


def _curve(
    title: str,
    unit: str,
    records: Sequence[RoundRecord],
    sites: Sequence[str],
    value: Callable[[RoundRecord, str], float],
) -> Curve | None:
    rows = {site: [value(record, site) for record in records] for site in sites}
    shown = [index for index in range(len(records)) if any(math.isfinite(row[index]) for row in rows.values())]
    if not shown:
        return None
    rounds = [records[index].round for index in shown]
    rows = {site: [row[index] for index in shown] for site, row in rows.items()}
    rows = {site: row for site, row in rows.items() if any(map(math.isfinite, row))}
    ticks = nice_ticks(*_limits([number for row in rows.values() for number in row if math.isfinite(number)]))
    low, high = ticks[0], ticks[-1]

    def x(number: int) -> float:
        return round(_along(number, rounds[0], rounds[-1], LEFT, WIDTH - RIGHT), 1)

    def y(number: float) -> float:
        return round(_along(number, low, high, HEIGHT - BOTTOM, TOP), 1)

    lines = tuple(
        _line(site, sites.index(site), tuple(row), [(x(number), y(v)) for number, v in zip(rounds, row, strict=True)])
        for site, row in rows.items()
    )
    x_ticks = tuple((x(number), str(number)) for number in _some(rounds))
    return Curve(title, unit, tuple(rounds), lines, x_ticks, tuple((y(tick), f"{tick:.4g}") for tick in ticks))


def _line(site: str, index: int, row: tuple[float, ...], points: list[tuple[float, float]]) -> Line:
    pieces: list[list[str]] = [[]]
    for value, (x, y) in zip(row, points, strict=True):
        if math.isfinite(value):
            pieces[-1].append(f"{x},{y}")
        elif pieces[-1]:
            pieces.append([])
    dots = tuple(point for value, point in zip(row, points, strict=True) if math.isfinite(value))
    drawn = tuple(" ".join(piece) for piece in pieces if len(piece) > 1)
    return Line(
        site, index % HUES, DASHES[index // HUES % len(DASHES)], drawn, dots if len(row) <= _MOST_DOTS else (), row
    )


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.02 * abs(high), 1e-9)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover `low` … `high`, at most `most` + 1 of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0 and low + span / most > low):
        return [low, low + max(1.0, abs(low))]
    power = 10.0 ** math.floor(math.log10(span / (most - 1)))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _along(value: float, low: float, high: float, start: float, end: float) -> float:
    if not math.isfinite(value):
        return math.nan
    return (start + end) / 2 if high == low else start + (value - low) / (high - low) * (end - start)


def _some(rounds: Sequence[int], most: int = 8) -> list[int]:
    step = max(1, math.ceil((len(rounds) - 1) / (most - 1))) if len(rounds) > 1 else 1
    return list(rounds[::step])

"""The picture of a comparison."""

import math
from typing import Any

import numpy as np

from wardround.deploy.compare.summary import Row, rows
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import MAIN_ARM, site_names
from wardround.deploy.report.theme import Sketch, Theme, dice_limits, new_figure, short

_SITE_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")


def draw_strategies(results: Results, theme: Theme) -> Sketch | None:
    """A row an arm: its Dice with the interval over seeds, that of its worst site, and a mark for every site."""
    found = [row for row in rows(results) if row.dice.known]
    if not found:
        return None
    figure = new_figure(8.4, 1.5 + 0.44 * len(found))
    axes = figure.subplots()
    sites = [site for site in site_names(results) if any(site in row.sites for row in found)]
    places = np.arange(len(found))[::-1]
    for place, row in zip(places, found, strict=True):
        _row(axes, float(place), row, sites, theme)
    values = [score.mean for row in found for score in row.sites.values()]
    values += [value for row in found for one in (row.dice, row.worst) for value in (one.mean, one.low, one.high)]
    low, high = dice_limits(values)
    axes.set_yticks(places, [short(row.name) for row in found])
    for label, row in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(theme.ink if row.combines else theme.muted)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="Dice on test cases", xlim=(low, high), ylim=(-0.7, len(found) - 0.3))
    axes.grid(axis="x")
    first = next((place for place, row in zip(places, found, strict=True) if not row.combines), None)
    if first is not None and first < len(found) - 1:
        axes.axhline(first + 0.5, color=theme.line, lw=1.0)
    handles = [_mark(axes, theme.hue(MAIN_ARM), "o", 8), _mark(axes, theme.hue("dense"), "|", 11)]
    handles += [_mark(axes, theme.muted, _SITE_MARKERS[n % len(_SITE_MARKERS)], 4.5) for n in range(len(sites))]
    axes.legend(
        handles,
        ["all test cases", "worst site", *(short(site, 14) for site in sites)],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=min(6, len(handles)),
        frameon=False,
        fontsize=8.5,
    )
    told = " ".join(f"{row.name}: {row.dice.text()}, worst site {row.worst.text()}." for row in found)
    caption = (
        "Large marks: mean over test cases; bars across: the worst site of each seed. Lines are 95 % intervals over "
        "seeds. Small marks are sites. Under the line: what no federation does."
    )
    return Sketch(figure, "Strategies over seeds and sites", caption, "Dice of each strategy. " + told)


def _row(axes: Any, place: float, row: Row, sites: list[str], theme: Theme) -> None:
    main, worst = theme.hue(MAIN_ARM), theme.hue("dense")
    for number, site in enumerate(sites):
        if site in row.sites:
            marker = _SITE_MARKERS[number % len(_SITE_MARKERS)]
            axes.plot(row.sites[site].mean, place + 0.2, marker, color=theme.muted, ms=4.5, alpha=0.85)
    for score, hue, height in ((row.worst, worst, place - 0.16), (row.dice, main, place)):
        if math.isfinite(score.low):
            axes.plot([score.low, score.high], [height, height], color=hue, lw=2.0, alpha=0.8)
    axes.plot(row.worst.mean, place - 0.16, "|", color=worst, ms=11, mew=2.2)
    axes.plot(row.dice.mean, place, "o", color=main, ms=8, mec=theme.paper, mfc=main if row.combines else theme.paper)
    if not row.combines:
        axes.plot(row.dice.mean, place, "o", mfc="none", mec=main, ms=7, mew=1.6)


def _mark(axes: Any, hue: str, marker: str, size: float) -> Any:
    (handle,) = axes.plot([], [], marker, color=hue, ms=size, mew=2.2 if marker == "|" else 1.0)
    return handle

"""The charts of a stream. Every ``draw_…`` function returns a sketch, or None where the run holds nothing for it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from wardround.deploy.report.charts import EFFORT_AXIS
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import MAIN_ARM
from wardround.deploy.report.theme import (
    MARKERS,
    Sketch,
    Theme,
    dice_limits,
    new_figure,
    short,
    spread_out,
)
from wardround.deploy.stream.arms import DENSE, SLICES_ONLY
from wardround.deploy.stream.summary import (
    SHARE_OF_DENSE,
    WINDOW,
    Point,
    Reach,
    curves,
    dense_point,
    prequential,
    reaches,
    runs_by_name,
)
from wardround.deploy.stream.transfer import forgetting

PROXY = "proxy"
MOST_MATRICES = 8
_OTHER_MARKERS = ("D", "^", "P", "X", "<", ">", "*", "h")


def draw_curve(results: Results, theme: Theme) -> Sketch | None:
    """Dice of the final model against effort: an arm is a line over its budgets, dense labels a level."""
    lines = curves(results)
    if not lines:
        return None
    dense, reached = dense_point(results), reaches(results)
    figure = new_figure(8.4, 4.6)
    axes = figure.subplots()
    right = 1.06 * max([point.effort.mean for name, own in lines.items() if name != DENSE for point in own] or [1.0])
    bounds = [
        value for own in lines.values() for point in own for value in (point.dice.mean, point.dice.low, point.dice.high)
    ]
    axes.set(xlim=(0, right * 1.2), ylim=dice_limits(bounds), xlabel=EFFORT_AXIS, ylabel="Dice on test cases")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid()
    if dense is not None:
        _dense_level(axes, dense, right, theme)
    styles = _styles(list(lines), theme)
    for family, own in lines.items():
        if family != DENSE:
            _curve(axes, own, *styles[family], theme)
    for item in reached:
        if math.isfinite(item.effort):
            hue = styles[item.family][0]
            axes.plot([item.effort] * 2, [axes.get_ylim()[0], item.level], color=hue, lw=1.0, ls=(0, (1, 2)))
            axes.plot(item.effort, item.level, "o", mfc="none", mec=hue, ms=9, mew=1.3, zorder=5)
    _end_labels(axes, {name: own for name, own in lines.items() if name != DENSE}, styles, right)
    told = [
        f"{point.name}: Dice {point.dice.text()} at effort {point.effort.mean:.0%}."
        for own in lines.values()
        for point in own
    ]
    caption = (
        "Marks are budgets in slices a case; bars are the 95 % bootstrap interval over test cases, each averaged over "
        f"seeds. The line across is dense labels; dashed, {SHARE_OF_DENSE:.0%} of it. Rings show where an arm reaches "
        "that, by straight lines between its budgets."
    )
    return Sketch(figure, "Dice against effort", caption, "Dice against effort. " + " ".join([*told, *_told(reached)]))


def draw_prequential(results: Results, theme: Theme) -> Sketch | None:
    """Dice of the model on each new case before anything was drawn on it, along the stream."""
    courses = {name: prequential(group) for name, group in runs_by_name(results).items()}
    courses = {name: course for name, course in courses.items() if np.isfinite(course).any()}
    shown = _largest_budgets(results, list(courses))
    if not shown:
        return None
    figure = new_figure(8.4, 4.0)
    axes = figure.subplots()
    styles = _styles([family for _, family in shown], theme)
    for name, family in shown:
        axes.plot(np.arange(1, courses[name].size + 1), courses[name], color=styles[family][0], lw=1.8)
    values = [float(value) for name, _ in shown for value in courses[name]]
    last = max(courses[name].size for name, _ in shown)
    axes.set(xlabel="case in the stream", ylabel="Dice before annotation", ylim=dice_limits(values, 0.2))
    axes.set_xlim(1, last * 1.22)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid()
    gap = 0.055 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    heights = spread_out([float(courses[name][-1]) for name, _ in shown], gap, *axes.get_ylim())
    for (name, family), height in zip(shown, heights, strict=True):
        text = f"{short(name)} {courses[name][-1]:.3f}"
        axes.text(last * 1.01, height, text, color=styles[family][0], fontsize=8.5, va="center")
    if results.groups:
        _group_bounds(axes, results, theme)
    told = " ".join(f"{name}: from {courses[name][0]:.2f} to {courses[name][-1]:.2f}." for name, _ in shown)
    caption = (
        f"Running mean over {WINDOW} cases, averaged over seeds: what the model alone would have scored on each case "
        "when it came. Every arm is shown with its largest budget."
    )
    return Sketch(figure, "Learning along the stream", caption, "Dice before annotation along the stream. " + told)


def draw_proxy(results: Results, theme: Theme) -> Sketch | None:
    """Dice of the proxy masks that the learner was given, against effort."""
    lines = {
        family: [point for point in own if point.proxy_dice.known]
        for family, own in curves(results).items()
        if family not in (DENSE, SLICES_ONLY)
    }
    lines = {family: own for family, own in lines.items() if own}
    if not lines:
        return None
    figure = new_figure(8.4, 4.0)
    axes = figure.subplots()
    styles = _styles(list(lines), theme)
    right = 1.06 * max(point.effort.mean for own in lines.values() for point in own)
    bounds = [value for own in lines.values() for p in own for value in (p.proxy_dice.low, p.proxy_dice.high)]
    means = [point.proxy_dice.mean for own in lines.values() for point in own]
    axes.set(xlim=(0, right * 1.2), ylim=dice_limits([*bounds, *means]), xlabel=EFFORT_AXIS, ylabel="Dice of the proxy")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid()
    for family, own in lines.items():
        _curve(axes, own, *styles[family], theme, proxy=True)
    _end_labels(axes, lines, styles, right, proxy=True)
    told = " ".join(
        f"{point.name}: {point.proxy_dice.text()} at effort {point.effort.mean:.0%}."
        for own in lines.values()
        for point in own
    )
    caption = "Mean over the streamed cases after the last drawing; bars: 95 % bootstrap interval over cases."
    return Sketch(figure, "What the learner was given", caption, "Dice of the proxy masks against effort. " + told)


def draw_forgetting(results: Results) -> Sketch | None:
    """Dice on every group after every group, one matrix a run."""
    items = forgetting(results)[:MOST_MATRICES]
    if not items:
        return None
    columns = min(len(items), 4)
    rows = math.ceil(len(items) / columns)
    figure = new_figure(2.5 * columns + 0.9, 2.6 * rows + 0.3)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    values = [value for item in items for row in item.matrix for value in row if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    count = len(results.groups)
    picture: Any = None
    for axes, item in zip(grid, items, strict=False):
        table = np.array(item.matrix)
        picture = axes.imshow(table, cmap="viridis", vmin=low, vmax=max(high, low + 0.01))
        for row in range(count):
            for column in range(count):
                value = table[row, column]
                if math.isfinite(value):
                    ink = "#ffffff" if value < (low + high) / 2 else "#10151b"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_title(f"{short(item.name)}: {item.backward.points().split(' ')[0]}")
        names = [short(group, 10) for group in results.groups]
        axes.set_xticks(range(count), names, rotation=35, ha="right")
        axes.set_yticks(range(count), names if axes in grid[::columns] else [])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes in grid[len(items) :]:
        axes.set_axis_off()
    figure.colorbar(picture, ax=list(grid), shrink=0.7, label="Dice")
    told = " ".join(f"{item.name}: backward transfer {item.backward.points()} points." for item in items)
    caption = (
        "Rows: after the stream has passed this group; columns: test cases of this group. In the title, backward "
        "transfer in Dice points: how much the groups before the last gained or lost since they were learnt."
    )
    return Sketch(figure, "What is kept of earlier groups", caption, "Dice on each group after each group. " + told)


def draw_transfer(results: Results, theme: Theme) -> Sketch | None:
    """Backward transfer of every run, with its interval."""
    items = [item for item in forgetting(results) if item.backward.known]
    if not items:
        return None
    figure = new_figure(8.4, 1.2 + 0.36 * len(items))
    axes = figure.subplots()
    places = np.arange(len(items))[::-1]
    axes.axvline(0.0, color=theme.muted, lw=1.0)
    for place, item in zip(places, items, strict=True):
        mean, low, high = (100 * value for value in (item.backward.mean, item.backward.low, item.backward.high))
        hue = theme.hue(MAIN_ARM)
        if math.isfinite(low):
            axes.plot([low, high], [place, place], color=hue, lw=2.0)
        axes.plot(mean, place, "o", color=hue, ms=7, mec=theme.paper)
    axes.set_yticks(places, [short(item.name) for item in items])
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="backward transfer, Dice points", ylim=(-0.6, len(items) - 0.4))
    axes.grid(axis="x")
    told = " ".join(f"{item.name}: {item.backward.points()}." for item in items)
    caption = "Left of zero, later groups cost the earlier ones. Lines: 95 % bootstrap interval over test cases."
    return Sketch(figure, "Backward transfer", caption, "Backward transfer in Dice points. " + told)


def _styles(families: Sequence[str], theme: Theme) -> dict[str, tuple[str, str]]:
    """Arm → colour and marker: the same in every chart of a theme for the arms of every stream, else in turn."""
    own = {PROXY: MAIN_ARM, DENSE: DENSE, SLICES_ONLY: SLICES_ONLY}
    others = [theme.hue("pooled"), theme.hue("local"), theme.phases[3], theme.phases[4], *theme.phases[:3]]
    styles: dict[str, tuple[str, str]] = {}
    turn = 0
    for family in families:
        if family in own:
            styles[family] = theme.hue(own[family]), MARKERS[own[family]]
        elif family not in styles:
            styles[family] = others[turn % len(others)], _OTHER_MARKERS[turn % len(_OTHER_MARKERS)]
            turn += 1
    return styles


def _dense_level(axes: Any, dense: Point, right: float, theme: Theme) -> None:
    hue = theme.hue(DENSE)
    axes.plot([0, right], [dense.dice.mean] * 2, color=hue, lw=1.5)
    axes.plot([0, right], [SHARE_OF_DENSE * dense.dice.mean] * 2, color=hue, lw=1.1, ls=(0, (5, 3)))
    if math.isfinite(dense.dice.low):
        axes.fill_between([0, right], dense.dice.low, dense.dice.high, color=hue, alpha=0.08, lw=0)
    axes.annotate(
        f"{dense.name} {dense.dice.mean:.3f}, effort {dense.effort.mean:.0%}",
        (0, dense.dice.mean),
        (5, 4),
        textcoords="offset points",
        fontsize=8.5,
        color=hue,
    )


def _curve(axes: Any, own: Sequence[Point], hue: str, marker: str, theme: Theme, *, proxy: bool = False) -> None:
    scores = [point.proxy_dice if proxy else point.dice for point in own]
    xs = [point.effort.mean for point in own]
    for x, score in zip(xs, scores, strict=True):
        if math.isfinite(score.low):
            axes.plot([x, x], [score.low, score.high], color=hue, lw=1.3, alpha=0.7)
    axes.plot(xs, [score.mean for score in scores], color=hue, lw=1.9, marker=marker, ms=7.5, mec=theme.paper, zorder=4)
    for point, x, score in zip(own, xs, scores, strict=True):
        axes.annotate(
            str(point.budget),
            (x, score.mean),
            (6, -11),
            textcoords="offset points",
            fontsize=7.5,
            color=theme.muted,
        )


def _end_labels(
    axes: Any,
    lines: Mapping[str, Sequence[Point]],
    styles: Mapping[str, tuple[str, str]],
    right: float,
    *,
    proxy: bool = False,
) -> None:
    """The name of each arm right of its last point."""
    if not lines:
        return
    low, high = axes.get_ylim()
    ends = [own[-1].proxy_dice.mean if proxy else own[-1].dice.mean for own in lines.values()]
    heights = spread_out(ends, 0.06 * (high - low), low + 0.03 * (high - low), high - 0.03 * (high - low))
    for (family, own), end, height in zip(lines.items(), ends, heights, strict=True):
        axes.annotate(
            f"{short(family)} {end:.3f}",
            (own[-1].effort.mean, end),
            (right * 1.02, height),
            va="center",
            fontsize=8.5,
            fontweight="bold" if family == PROXY else "normal",
            color=styles[family][0],
            arrowprops={"arrowstyle": "-", "color": styles[family][0], "lw": 0.6, "shrinkA": 1, "shrinkB": 5},
        )


def _largest_budgets(results: Results, names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and arm of the run with the largest budget of every arm."""
    best: dict[str, tuple[int, str]] = {}
    for result in results.arms:
        family = result.family or result.arm
        if result.arm in names and result.budget >= best.get(family, (-1, ""))[0]:
            best[family] = (result.budget, result.arm)
    return [(name, family) for family, (_, name) in best.items()]


def _group_bounds(axes: Any, results: Results, theme: Theme) -> None:
    start = 0
    for group in results.groups:
        axes.axvline(start + 0.5, color=theme.line, lw=1.2)
        axes.annotate(
            short(group, 14),
            (max(start + 0.5, 1.0), axes.get_ylim()[0]),
            (4, 4),
            textcoords="offset points",
            fontsize=8,
            color=theme.muted,
        )
        start += results.sites[group].stream if group in results.sites else 0


def _told(reached: Sequence[Reach]) -> list[str]:
    return [f"{item.family} reaches {SHARE_OF_DENSE:.0%} of dense at effort {item.text()}." for item in reached]

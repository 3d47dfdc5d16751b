"""The charts of the report: Dice against effort, learning over rounds, sites and cost.

Every ``draw_…`` function returns a sketch, or None where the run holds nothing for it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from wardround.deploy.report.results import ArmResult, Interaction, Results
from wardround.deploy.report.summary import (
    MAIN_ARM,
    ArmSummary,
    Spread,
    arm_groups,
    best_local,
    site_names,
    summarise,
)
from wardround.deploy.report.theme import (
    MARKERS,
    Sketch,
    Theme,
    dice_limits,
    new_figure,
    short,
    spread_out,
)

PHASES = ("predict", "annotate", "propagate", "update", "aggregate", "evaluate")
MOST_SITES = 12
EFFORT_AXIS = "effort (share of contouring every slice)"


def draw_effort(results: Results, theme: Theme) -> Sketch | None:
    """Dice against effort: the arms on test cases, and the proxy and the model while a case is annotated."""
    summaries = [summary for summary in summarise(results) if summary.dice.known and summary.effort.known]
    steps = _step_curves(results)
    if not summaries and not steps:
        return None
    panels = bool(summaries) + bool(steps)
    figure = new_figure(5.2 * panels if panels > 1 else 6.4, 3.9)
    every = np.atleast_1d(figure.subplots(1, panels))
    if summaries:
        arm_points(every[0], summaries, theme)
        every[0].set_title("Test cases, after the last round")
    if steps:
        _draw_steps(every[-1], steps, theme)
        every[-1].set_title(f"Streamed cases, {_steps_arm(results)} arm, step by step")
    alt = "Dice against annotation effort. " + " ".join(sentence(summary) for summary in summaries)
    for kind, points in steps.items():
        told = ", ".join(f"{y.mean:.2f} at {x.mean:.0%}" for x, y in points)
        alt += f" {kind.capitalize()} over annotation steps: {told}."
    caption = (
        "Left: means over seeds, bars are their standard deviation. Right: means over the streamed cases; "
        "0 is the prediction before anything was drawn on a case, 1 follows the first round of drawing."
        if panels > 1
        else "Marks are means over seeds; bars are their standard deviation, bands their range."
    )
    return Sketch(figure, "Dice against effort", caption, alt)


def draw_rounds(results: Results, theme: Theme) -> Sketch | None:
    """The prequential score of every site over the rounds: Dice on each new case before it was annotated."""
    curves = {name: _prequential(group) for name, group in arm_groups(results).items()}
    curves = {name: sites for name, sites in curves.items() if sites}
    sites = list(dict.fromkeys([*results.sites, *(site for own in curves.values() for site in own)]))
    sites = [site for site in sites if any(site in own for own in curves.values())]
    if not sites:
        return None
    shown = sites[:MOST_SITES]
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    width = 10.4 if columns > 2 else 4.2 * columns + 1.6
    figure = new_figure(width, 2.5 * rows + 0.75)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    values = [spread.mean for own in curves.values() for points in own.values() for spread in points.values()]
    arms = {name: group[0].arm for name, group in arm_groups(results).items()}
    for axes, site in zip(grid, shown, strict=False):
        for name in reversed(list(curves)):
            course = curves[name].get(site)
            if course:
                _band(axes, list(course), list(course.values()), theme.hue(arms[name]), MARKERS.get(arms[name], "P"))
        axes.set_title(short(site))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_ylim(*dice_limits(values, 0.2))
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for index, axes in enumerate(grid[: len(shown)]):
        if index + columns >= len(shown):
            axes.set_xlabel("round")
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("Dice before annotation", fontsize=9, color=theme.muted)
    _arm_legend(figure, {name: arms[name] for name in curves}, theme)
    told = []
    for site in shown:
        name = next(name for name in curves if site in curves[name])
        points = list(curves[name][site].values())
        told.append(f"{site}: {name} from {points[0].mean:.2f} to {points[-1].mean:.2f}.")
    hidden = f" {len(sites) - len(shown)} more sites are in results.json." if len(sites) > len(shown) else ""
    caption = f"Dice of the model on each new case before anything was drawn on it; bands: range over seeds.{hidden}"
    return Sketch(figure, "How every hospital's model learns", caption, "Dice by round. " + " ".join(told))


def draw_sites(results: Results, theme: Theme) -> Sketch | None:
    """All arms at every site."""
    summaries = [summary for summary in summarise(results) if summary.site_dice]
    if not summaries:
        return None
    sites = [site for site in site_names(results) if any(site in summary.site_dice for summary in summaries)]
    figure = new_figure(8.4, 0.9 + 0.55 * min(len(sites), MOST_SITES) + 0.4)
    site_dots(figure.subplots(), results, summaries, theme, best=True)
    arms: dict[str, str] = {summary.name: summary.arm for summary in summaries}
    _arm_legend(figure, arms, theme, best=bool(best_local(results)))
    told = []
    for site in sites:
        scores = [f"{item.name} {item.site_dice[site].mean:.3f}" for item in summaries if site in item.site_dice]
        told.append(f"{site}: {', '.join(scores)}.")
    caption = "Mean Dice over labels on the test cases of each hospital; lines: standard deviation over seeds."
    alone = bool(best_local(results))
    if alone:
        caption += " The ring is the best single-site model there, whoever trained it."
    return Sketch(
        figure,
        "Together against alone, at every hospital" if alone else "Every hospital",
        caption,
        "Test Dice. " + " ".join(told),
    )


def draw_cost(results: Results, theme: Theme) -> Sketch | None:
    """What the arms cost: effort paid and saved, bytes exchanged, time by phase."""
    summaries = summarise(results)
    groups = arm_groups(results)
    if not summaries:
        return None
    names = [summary.name for summary in summaries]
    figure = new_figure(10.4, 1.55 + 0.42 * len(names))
    effort, traffic, time = figure.subplots(1, 3, sharey=True, width_ratios=(1.0, 0.9, 1.35))
    figure.get_layout_engine().set(wspace=0.06)
    places = np.arange(len(names))[::-1]
    for place, summary in zip(places, summaries, strict=True):
        _effort_bar(effort, float(place), summary, theme)
    effort.set(xlim=(0, 1), xlabel="share of contouring every slice")
    effort.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    effort.set_title("Effort paid and saved")
    up = np.nan_to_num([summary.bytes_up.mean for summary in summaries])
    down = np.nan_to_num([summary.bytes_down.mean for summary in summaries])
    unit, factor = _byte_unit(float(max(np.max(up + down), 0.0)))
    traffic.barh(places, up / factor, 0.55, color=theme.flow[0], label="from the sites")
    traffic.barh(places, down / factor, 0.55, left=up / factor, color=theme.flow[1], label="to the sites")
    for place, total in zip(places, (up + down) / factor, strict=True):
        traffic.annotate(
            f"{total:.3g}" if total else "none",
            (total, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=theme.muted,
        )
    traffic.set(xlabel=unit, xlim=(0, max(float(np.max(up + down)) / factor * 1.22, 1e-9)))
    if not np.any(up + down):
        traffic.set(xlim=(0, 1), xticks=[0])
    traffic.set_title("Exchanged")
    _time_bars(time, places, list(groups.values()), theme)
    effort.set_yticks(places, [short(name) for name in names])
    for axes in (effort, traffic, time):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    effort.tick_params(axis="y", labelcolor=theme.ink)
    _legend_below(traffic, theme, 1)
    _legend_below(time, theme, 4)
    told = " ".join(
        f"{summary.name}: effort {summary.effort.text(2)}, {(sent + received) / factor:.3g} {unit}, "
        f"{summary.seconds.text(0)} seconds."
        for summary, sent, received in zip(summaries, up, down, strict=True)
    )
    caption = (
        "Means over seeds; bytes and seconds are summed over sites and rounds. The upright stroke is the strict count, "
        "which also charges for slices viewed and for clicks."
    )
    return Sketch(figure, "What it costs", caption, "Cost of every arm. " + told)


def _effort_bar(axes: Any, place: float, summary: ArmSummary, theme: Theme) -> None:
    axes.barh(place, 1.0, 0.55, color=theme.line)
    if not summary.effort.known:
        axes.text(0.02, place, "not measured", va="center", fontsize=8, color=theme.muted)
        return
    paid = min(summary.effort.mean, 1.0)
    axes.barh(place, paid, 0.55, color=theme.hue(summary.arm))
    if summary.strict_effort.known:
        axes.plot([min(summary.strict_effort.mean, 1.0)] * 2, [place - 0.38, place + 0.38], color=theme.ink, lw=1.4)
    if paid < 0.75:
        edge = max(paid, min(summary.strict_effort.mean, 1.0) if summary.strict_effort.known else 0.0)
        axes.text(edge + 0.03, place, f"{1 - paid:.0%} saved", va="center", fontsize=8, color=theme.ink)


def _time_bars(axes: Any, places: Any, groups: Sequence[Sequence[ArmResult]], theme: Theme) -> None:
    phases = {
        phase: [Spread.of(getattr(item.seconds, phase) for item in group).mean for group in groups] for phase in PHASES
    }
    totals = np.nan_to_num([Spread.of(item.seconds.total for item in group).mean for group in groups])
    known = {phase: np.nan_to_num(values) for phase, values in phases.items()}
    known["other"] = np.maximum(totals - np.sum(list(known.values()), axis=0), 0.0)
    ends = np.sum(list(known.values()), axis=0)
    unit, factor = ("minutes", 60.0) if float(np.max(ends)) >= 180.0 else ("seconds", 1.0)
    start = np.zeros(len(groups))
    for (phase, values), colour in zip(known.items(), theme.phases, strict=True):
        if np.any(values > 0):
            axes.barh(
                places,
                values / factor,
                0.55,
                left=start / factor,
                color=colour,
                label=phase,
                edgecolor=theme.paper,
                linewidth=0.5,
            )
            start = start + values
    for place, end in zip(places, ends / factor, strict=True):
        axes.annotate(
            f"{end:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8, color=theme.muted
        )
    axes.set(xlabel=unit, xlim=(0, max(float(np.max(ends)) / factor * 1.15, 1e-9)))
    axes.set_title("Time by phase")


def _legend_below(axes: Any, theme: Theme, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(0.0, 0.0),
            bbox_transform=axes.transAxes + ScaledTranslation(0.0, -0.5, axes.figure.dpi_scale_trans),
            ncols=columns,
            frameon=False,
            fontsize=8,
            labelcolor=theme.ink,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.2,
            borderaxespad=0,
            borderpad=0,
        )


def arm_points(axes: Any, summaries: Sequence[ArmSummary], theme: Theme) -> None:
    known = [summary for summary in summaries if summary.dice.known and summary.effort.known]
    bounds = [value for item in known for value in (item.dice.low, item.dice.high, *_bar(item.dice))]
    low, high = dice_limits(bounds)
    efforts = [item.effort.mean for item in known]
    right = max(1.0, *efforts) * 1.04
    axes.set(xlim=(0, right), ylim=(low, high), xlabel=EFFORT_AXIS, ylabel="Dice")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid()
    for item in reversed(known):
        hue, marker = theme.hue(item.arm), MARKERS.get(item.arm, "P")
        x, y = item.effort, item.dice
        axes.errorbar(x.mean, y.mean, yerr=_sd(y), xerr=_sd(x), color=hue, lw=1.4, zorder=3)
        axes.plot(x.mean, y.mean, marker, color=hue, ms=8.5, mec=theme.paper, mew=1.0, zorder=4)
    _arm_labels(axes, known, theme, (low, high), right)


def _arm_labels(
    axes: Any, known: Sequence[ArmSummary], theme: Theme, limits: tuple[float, float], right: float
) -> None:
    low, high = limits
    gap = 0.09 * (high - low)
    heights = spread_out([item.dice.mean for item in known], gap, low + gap / 2, high - gap / 2)
    crowd = [item.effort.mean for item in known if item.effort.mean <= 0.6 * right]
    for item, height in zip(known, heights, strict=True):
        hue, x = theme.hue(item.arm), item.effort.mean
        beyond = x > 0.6 * right
        axes.annotate(
            f"{short(item.name)} {item.dice.mean:.3f}",
            (x, item.dice.mean),
            (x - 0.06 * right if beyond else max(crowd) + 0.06 * right, height),
            ha="right" if beyond else "left",
            va="center",
            fontsize=8.5,
            fontweight="bold" if item.arm == MAIN_ARM else "normal",
            color=hue,
            arrowprops={"arrowstyle": "-", "color": hue, "lw": 0.6, "shrinkA": 1, "shrinkB": 5},
        )


def site_dots(
    axes: Any, results: Results, summaries: Sequence[ArmSummary], theme: Theme, *, best: bool = False, names: int = 16
) -> None:
    sites = [site for site in site_names(results) if any(site in summary.site_dice for summary in summaries)]
    sites = sites[:MOST_SITES]
    places = {site: len(sites) - 1 - index for index, site in enumerate(sites)}
    offsets = np.linspace(0.24, -0.24, len(summaries)) if len(summaries) > 1 else np.zeros(1)
    bounds: list[float] = []
    for place in places.values():
        axes.axhspan(place - 0.4, place + 0.4, color=theme.line, alpha=0.35, lw=0)
    for summary, offset in zip(summaries, offsets, strict=True):
        hue = theme.hue(summary.arm)
        for site, spread in summary.site_dice.items():
            if site in places:
                height = places[site] + float(offset)
                axes.errorbar(spread.mean, height, xerr=_sd(spread), color=hue, lw=1.3)
                axes.plot(
                    spread.mean,
                    height,
                    MARKERS.get(summary.arm, "P"),
                    color=hue,
                    ms=6.5,
                    mec=theme.paper,
                    mew=0.7,
                    zorder=4,
                )
                bounds += [spread.mean, *_bar(spread)]
    if best:
        for site, winner in best_local(results).items():
            if site in places:
                position = next((o for s, o in zip(summaries, offsets, strict=True) if s.arm == "local"), 0.0)
                axes.plot(
                    winner.dice.mean,
                    places[site] + float(position),
                    "o",
                    mfc="none",
                    mec=theme.ink,
                    ms=10,
                    mew=1.1,
                    zorder=5,
                )
                bounds.append(winner.dice.mean)
    axes.set(xlabel="Dice", ylim=(-0.55, len(sites) - 0.45), xlim=dice_limits(bounds))
    axes.set_yticks(list(places.values()), [short(site, names) for site in places])
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _arm_legend(figure: Any, arms: Mapping[str, str], theme: Theme, *, best: bool = False) -> None:
    handles = [
        Line2D([], [], color=theme.hue(arm), marker=MARKERS.get(arm, "P"), ms=6.5, lw=1.6, label=short(name))
        for name, arm in arms.items()
    ]
    if best:
        handles.append(Line2D([], [], ls="none", marker="o", ms=9, mfc="none", mec=theme.ink, label="best single-site"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )


def _band(axes: Any, xs: Sequence[float], spreads: Sequence[Spread], hue: str, marker: str) -> None:
    axes.plot(xs, [spread.mean for spread in spreads], color=hue, lw=1.8, marker=marker, ms=4)
    if any(spread.count > 1 for spread in spreads):
        low, high = [spread.low for spread in spreads], [spread.high for spread in spreads]
        axes.fill_between(xs, low, high, color=hue, alpha=0.16, lw=0)


def _draw_steps(axes: Any, steps: Mapping[str, list[tuple[Spread, Spread]]], theme: Theme) -> None:
    hues = {"proxy": theme.hue("pooled"), "model": theme.hue(MAIN_ARM)}
    styles = {"proxy": ("s", "-"), "model": ("o", "-")}
    values = [y.mean for points in steps.values() for _, y in points]
    low, high = dice_limits(values, 0.2)
    right = max(max(x.mean for x, _ in points) for points in steps.values())
    for kind, points in steps.items():
        marker, line = styles[kind]
        xs, ys = [x.mean for x, _ in points], [y for _, y in points]
        axes.plot(xs, [y.mean for y in ys], marker=marker, ls=line, color=hues[kind], lw=2, ms=6)
        if any(y.count > 1 for y in ys):
            axes.fill_between(xs, [y.low for y in ys], [y.high for y in ys], color=hues[kind], alpha=0.16, lw=0)
        axes.annotate(
            f"{kind} {ys[-1].mean:.3f}",
            (xs[-1], ys[-1].mean),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=hues[kind],
            fontweight="bold",
            fontsize=8.5,
        )
    for step, (x, y) in enumerate(steps.get("model", [])):
        axes.annotate(
            str(step),
            (x.mean, y.mean),
            (0, -13),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=theme.muted,
        )
    axes.set(xlim=(-0.02, max(right * 1.45, 0.1)), ylim=(low, high), xlabel=EFFORT_AXIS, ylabel="Dice")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid()


def sentence(summary: ArmSummary) -> str:
    effort = f" at effort {summary.effort.mean:.0%}" if summary.effort.known else ""
    return f"{summary.name}: Dice {summary.dice.text()}{effort}."


def _sd(spread: Spread) -> float:
    return spread.sd if math.isfinite(spread.sd) else 0.0


def _bar(spread: Spread) -> tuple[float, float]:
    return spread.mean - _sd(spread), spread.mean + _sd(spread)


def _byte_unit(most: float) -> tuple[str, float]:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= factor:
            return unit, factor
    return "bytes", 1.0


def _steps_arm(results: Results) -> str:
    for name, group in arm_groups(results).items():
        if any(math.isfinite(item.proxy_dice) for result in group for item in result.interactions):
            return name
    return next((name for name, group in arm_groups(results).items() if any(r.interactions for r in group)), "")


def _step_curves(results: Results) -> dict[str, list[tuple[Spread, Spread]]]:
    """Proxy and model Dice over annotation steps: (effort, Dice) per step, each a spread over seeds."""
    group = arm_groups(results).get(_steps_arm(results), ())
    steps = sorted({item.step for result in group for item in result.interactions})
    curves: dict[str, list[tuple[Spread, Spread]]] = {}
    for kind in ("proxy", "model"):
        points = []
        for step in steps:
            per_seed = [[item for item in result.interactions if item.step == step] for result in group]
            effort = Spread.of(_mean(item.effort for item in items) for items in per_seed)
            dice = Spread.of(_mean(getattr(item, f"{kind}_dice") for item in items) for items in per_seed)
            if dice.known and effort.known:
                points.append((effort, dice))
        if points:
            curves[kind] = points
    return curves


def _mean(values: Iterable[float]) -> float:
    return Spread.of(values).mean


def _prequential(group: Sequence[ArmResult]) -> dict[str, dict[int, Spread]]:
    """Site → round → Dice at step 0, averaged over the cases of the round, as a spread over seeds."""
    collected: dict[tuple[str, int], list[float]] = {}
    for result in group:
        first: dict[tuple[str, int], list[Interaction]] = {}
        for item in result.interactions:
            if item.step == 0:
                first.setdefault((item.site, item.round), []).append(item)
        for key, items in first.items():
            collected.setdefault(key, []).append(_mean(item.model_dice for item in items))
    curves: dict[str, dict[int, Spread]] = {}
    for (site, number), values in sorted(collected.items()):
        spread = Spread.of(values)
        if spread.known:
            curves.setdefault(site, {})[number] = spread
    return curves

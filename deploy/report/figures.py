"""The figures of the report, drawn with matplotlib's Agg canvas: no window, no network, no global state.

Every `draw_…` function takes the results (and the examples) and returns a figure with its alternative text, or None
where the run holds nothing for it. :func:`makers_of` puts them in order.
"""

from collections.abc import Sequence
from typing import Any

from wardround.deploy.report.charts import (
    arm_points,
    draw_cost,
    draw_effort,
    draw_rounds,
    draw_sites,
    sentence,
    site_dots,
)
from wardround.deploy.report.drawing import Makers
from wardround.deploy.report.examples import LAYERS, Example, chosen
from wardround.deploy.report.results import Results
from wardround.deploy.report.slices import contour_legend, draw_examples, draw_imagined, layer_title, tile
from wardround.deploy.report.summary import (
    MAIN_ARM,
    ArmSummary,
    summarise,
)
from wardround.deploy.report.theme import (
    Sketch,
    Theme,
    counted,
    new_figure,
    short,
)


def makers_of(results: Results, examples: Sequence[Example], imagined: Sequence[Example]) -> Makers:
    """What draws the figures of a federation's report, in its order."""
    return {
        "overview": lambda theme: draw_overview(results, examples, theme),
        "effort": lambda theme: draw_effort(results, theme),
        "rounds": lambda theme: draw_rounds(results, theme),
        "sites": lambda theme: draw_sites(results, theme),
        "examples": lambda theme: draw_examples(results, examples, theme),
        "imagined": lambda theme: draw_imagined(results, imagined, theme),
        "cost": lambda theme: draw_cost(results, theme),
    }


def draw_overview(results: Results, examples: Sequence[Example], theme: Theme) -> Sketch | None:
    """The run in one picture of 1600 × 900 pixels: example slices, Dice against effort, Dice per site."""
    summaries = [summary for summary in summarise(results) if summary.dice.known]
    shown = [example.cropped(1.17) for example in chosen(examples, 2)]
    if not summaries and not shown:
        return None
    figure = new_figure(10.0, 5.625, constrained=False)
    headline, detail = _headline(results, summaries)
    figure.text(0.03, 0.935, headline, fontsize=15, fontweight="bold", va="center")
    figure.text(0.03, 0.885, detail, fontsize=9.5, color=theme.muted, va="center")
    split = 0.0
    if shown:
        split = 0.615 if summaries else 0.97
        _overview_tiles(figure, shown, results, theme, split)
    if summaries:
        left, width = split + 0.105, 0.865 - split
        upper = (left, 0.505, width, 0.285) if shown else (0.075, 0.13, 0.41, 0.66)
        lower = (left, 0.12, width, 0.235) if shown else (0.60, 0.13, 0.37, 0.66)
        top, bottom = figure.add_axes(upper), figure.add_axes(lower)
        arm_points(top, summaries, theme)
        top.set_title("Test Dice against effort")
        if any(summary.site_dice for summary in summaries):
            site_dots(bottom, results, summaries, theme, names=13)
            bottom.set_title("Test Dice by hospital")
        else:
            bottom.set_axis_off()
    alt = f"{headline}. {detail}. " + " ".join(sentence(summary) for summary in summaries)
    return Sketch(figure, headline, detail, alt.strip())


def _overview_tiles(figure: Any, shown: Sequence[Example], results: Results, theme: Theme, right: float) -> None:
    columns = (*LAYERS, "residual")
    wide, high = figure.get_size_inches()
    left, top = 0.03 * wide, 0.79 * high
    side = (right - 0.03) * wide / len(columns)
    height = min(1.17 * side, (top - 0.09 * high) / len(shown) - 0.27)
    for row, example in enumerate(shown):
        floor = top - (row + 1) * height - row * 0.27
        for column, layer in enumerate(columns):
            box = ((left + column * side) / wide, floor / high, (side - 0.05) / wide, (height - 0.05) / high)
            axes = figure.add_axes(box)
            tile(axes, example, layer, theme)
            if row == 0:
                axes.set_title(layer_title(layer), pad=9)
        text = short(example.title, int(side * len(columns) * 14))
        figure.text(left / wide, (floor - 0.05) / high, text, fontsize=7.5, color=theme.muted, va="top")
    contour_legend(figure, shown, results, theme, (0.03, floor / high - 0.085))


def _headline(results: Results, summaries: Sequence[ArmSummary]) -> tuple[str, str]:
    count = len(results.sites)
    who = f"{counted(count)} hospitals learn together" if count > 1 else "One hospital learns"
    headline = f"{who} from a few strokes" if count else "A run of Wardround"
    data = f"{short(results.dataset.name, 30)}: " if results.dataset.name else ""
    main = next((item for item in summaries if item.arm == MAIN_ARM), None)
    dense = next((item for item in summaries if item.arm == "dense"), None)
    if main is None:
        return headline, data.rstrip(": ")
    detail = f"{data}test Dice {main.dice.text()}"
    if main.effort.known:
        detail += f" for {main.effort.mean:.0%} of the contouring effort"
    if dense is not None:
        detail += f"; with every slice contoured {dense.dice.text()}"
    return headline, detail

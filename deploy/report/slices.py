"""Example slices with their contours and residual maps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wardround.deploy.report.examples import IMAGINED, LAYERS, Example, chosen
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import (
    label_name,
)
from wardround.deploy.report.theme import (
    CONTOURS,
    Sketch,
    Theme,
    counted,
    new_figure,
    short,
)

MOST_EXAMPLES = 6
MOST_SITES = 10


def draw_examples(results: Results, examples: Sequence[Example], theme: Theme) -> Sketch | None:
    """Example slices in rows: truth, proxy, prediction and residual map."""
    shown = [example.cropped() for example in chosen(examples, MOST_EXAMPLES)]
    if not shown:
        return None
    columns = (*LAYERS, "residual")
    rows = len(shown)
    side = 1.85
    figure = new_figure(side * len(columns) + 0.3, (side + 0.3) * rows + 0.75, constrained=False)
    width, height = figure.get_size_inches()
    for row, example in enumerate(shown):
        floor = height - 0.4 - (row + 1) * (side + 0.3) + 0.3
        for column, layer in enumerate(columns):
            box = ((0.15 + column * side) / width, floor / height, (side - 0.06) / width, (side - 0.06) / height)
            axes = figure.add_axes(box)
            tile(axes, example, layer, theme)
            if row == 0:
                axes.set_title(layer_title(layer), pad=6)
        drawn = f"; drawn: {', '.join(example.drawn)}" if example.drawn else ""
        text = short(f"{example.title}{drawn}", 118)
        figure.text(0.15 / width, (floor - 0.05) / height, text, fontsize=7.5, color=theme.muted, va="top")
    contour_legend(figure, shown, results, theme, (0.15 / width, 0.08 / height))
    told = " ".join(_sentence(example) for example in shown)
    caption = (
        "The proxy is spread from the drawn slices alone; the dotted line is the truth, which the learner never sees. "
        "The residual is bright where proxy and prediction disagree; the next slices are suggested where it is bright "
        "and the proxy is in doubt."
    )
    return Sketch(figure, "What the model sees and says", caption, f"Example slices. {told}", dpi=120)


def draw_imagined(results: Results, imagined: Sequence[Example], theme: Theme) -> Sketch | None:
    """Made images in a row for each site, with contours of the labels that they were made of."""
    by_site: dict[str, list[Example]] = {}
    for example in imagined:
        by_site.setdefault(example.title, []).append(example)
    if not by_site:
        return None
    shown = dict(list(by_site.items())[:MOST_SITES])
    columns = max(4, *(len(row) for row in shown.values()))
    side = 1.85
    figure = new_figure(side * columns + 0.3, (side + 0.3) * len(shown) + 0.45, constrained=False)
    width, height = figure.get_size_inches()
    for row, (site, examples) in enumerate(shown.items()):
        floor = height - 0.1 - (row + 1) * (side + 0.3) + 0.3
        for column, example in enumerate(examples):
            box = ((0.15 + column * side) / width, floor / height, (side - 0.06) / width, (side - 0.06) / height)
            tile(figure.add_axes(box), example, "truth", theme)
        figure.text(0.15 / width, (floor - 0.05) / height, short(site, 60), fontsize=7.5, color=theme.muted, va="top")
    drawn = [example for examples in shown.values() for example in examples]
    contour_legend(figure, drawn, results, theme, (0.15 / width, 0.08 / height), truth=False)
    hidden = f" {len(by_site) - len(shown)} more sites are in {IMAGINED}/." if len(by_site) > len(shown) else ""
    caption = (
        "The last images that each site's own generator made having passed its test; of a volume the slice that shows "
        f"most. Contours are the labels that an image was made of.{hidden}"
    )
    told = " ".join(f"{site}: {counted(len(examples)).lower()}." for site, examples in shown.items())
    return Sketch(figure, "What the sites' generators make", caption, f"Made images by site. {told}", dpi=120)


def _sentence(example: Example) -> str:
    scores = [
        f"{name} {score:.2f}"
        for name, score in (("proxy", example.dice(example.proxy)), ("prediction", example.dice(example.prediction)))
        if math.isfinite(score)
    ]
    return f"{example.title}{': Dice of the ' if scores else ''}{', '.join(scores)}."


def tile(axes: Any, example: Example, layer: str, theme: Theme) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("#000000")
    axes.set_adjustable("datalim")
    ratio = example.spacing[0] / example.spacing[1]
    values = example.residual if layer == "residual" else getattr(example, layer)
    if layer == "residual" and values is not None:
        axes.imshow(values, cmap="magma", vmin=0.0, vmax=1.0, interpolation="bilinear", aspect=ratio)
    else:
        low, high = np.percentile(example.image, [1.0, 99.5])
        axes.imshow(
            example.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic", aspect=ratio
        )
    if values is None:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color="#ffffff")
        return
    if layer != "truth" and example.truth is not None:
        _contour(axes, example.truth > 0, "#ffffff", 0.9, "dotted")
    if layer in ("proxy", "prediction"):
        _score(axes, example.dice(getattr(example, layer)))
    if layer != "residual":
        for value in example.labels():
            _contour(axes, values == value, _colour(value), 1.7, "solid")


def _score(axes: Any, dice: float) -> None:
    if math.isfinite(dice):
        axes.text(
            0.03,
            0.03,
            f"Dice {dice:.2f}",
            transform=axes.transAxes,
            fontsize=7.5,
            color="#ffffff",
            va="bottom",
            bbox={"facecolor": "#000000", "alpha": 0.55, "lw": 0, "pad": 1.6},
        )


def _contour(axes: Any, mask: Any, colour: str, width: float, style: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def _colour(value: int) -> str:
    """Of a structure: the same on every slice, whatever else is on it."""
    return CONTOURS[(value - 1) % len(CONTOURS)]


def contour_legend(
    figure: Any, shown: Sequence[Example], results: Results, theme: Theme, at: Any, *, truth: bool = True
) -> None:
    values = sorted({value for example in shown for value in example.labels()})
    handles: list[Any] = [
        Patch(color=_colour(value), label=short(label_name(str(value), results.dataset.labels))) for value in values
    ]
    if truth:
        handles.append(Line2D([], [], color=theme.muted, ls="dotted", label="truth, never shown to the learner"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=at,
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
        handlelength=1.6,
        handleheight=0.8,
        borderaxespad=0,
        borderpad=0,
    )


def layer_title(layer: str) -> str:
    return "residual (0 … 1)" if layer == "residual" else layer

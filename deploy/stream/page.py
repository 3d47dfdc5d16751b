"""The report of a stream as one self-contained page; the PNGs also lie beside it in `figures/`."""

import math
from collections.abc import Sequence
from pathlib import Path

from wardround.deploy.report import html
from wardround.deploy.report.drawing import Drawings, Makers, write_page
from wardround.deploy.report.examples import Example, load_examples
from wardround.deploy.report.results import Results, load_results
from wardround.deploy.report.slices import draw_examples
from wardround.deploy.report.summary import signed
from wardround.deploy.report.tables import drawing_table
from wardround.deploy.stream.charts import (
    PROXY,
    draw_curve,
    draw_forgetting,
    draw_prequential,
    draw_proxy,
    draw_transfer,
)
from wardround.deploy.stream.goals import stream_goals
from wardround.deploy.stream.summary import SHARE_OF_DENSE, against, curves, dense_point, points, reaches
from wardround.deploy.stream.tables import curve_table, forgetting_table, matrix_table, open_runs, reach_table
from wardround.deploy.stream.transfer import forgetting
from wardround.pages import NOTHING

_DICE = (
    "Dice is the overlap of thresholded label maps on the original grid, averaged over the labels of a test case, then "
    "over test cases; each case is averaged over seeds first. Intervals are 95 % bootstrap intervals over test cases. "
    "A difference is taken case by case under the same seed."
)
_EFFORT = (
    "Effort is the share of a full contouring of every axial slice; strict effort also charges for every slice viewed "
    "and every click. All arms of a seed start from the same weights and see the same cases in the same order."
)


def write_stream_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` from what a stream left in `folder`.

    Parameters
    ----------
    folder
        Holds `results.json`, and `examples/*.npz` where the run kept examples. Partial runs are fine.

    Returns
    -------
    Path
        The page. It replaces an older one atomically; writing it again from the same input gives the same bytes.

    Raises
    ------
    DataError
        If there are no results or they cannot be read.
    StorageError
        If the disk is full or the folder is not writable.
    """
    results = load_results(folder)
    examples = load_examples(folder)
    makers = _makers(results, examples)
    return write_page(folder, makers, lambda light, dark: _render(results, light, dark))


def _makers(results: Results, examples: Sequence[Example]) -> Makers:
    return {
        "curve": lambda theme: draw_curve(results, theme),
        "prequential": lambda theme: draw_prequential(results, theme),
        "proxy": lambda theme: draw_proxy(results, theme),
        "forgetting": lambda theme: draw_forgetting(results),
        "transfer": lambda theme: draw_transfer(results, theme),
        "examples": lambda theme: draw_examples(results, examples, theme),
    }


def _render(results: Results, light: Drawings, dark: Drawings) -> str:
    figures = {name: html.figure(drawing, dark.get(name)) for name, drawing in light.items()}
    note = "".join(f"<p class='note'>{html.text(line)}</p>" for line in (f"{_DICE} {_readings(results)}", _EFFORT))
    parts = [_head(results), html.tile_row(_tiles(results)), html.warning(open_runs(results))]
    # Where sites come one after the other, what is kept of them is the question.
    order = ("forgetting", "transfer") if results.groups else ()
    parts += [figures.get(name, "") for name in order]
    if forgetting(results):
        parts.append(html.section("Forgetting", html.table(forgetting_table(results)) + _forgetting_note()))
    parts += [figures.get("curve", ""), html.goal_list(stream_goals(results))]
    marked = [point.name for point in points(results) if point.family == PROXY]
    parts.append(html.section("All runs", html.table(curve_table(results), marked) + note))
    if (drawn := drawing_table(results)).rows:
        parts.append(html.section("What was drawn on a case", html.table(drawn)))
    if reaches(results):
        title = f"Effort at {SHARE_OF_DENSE:.0%} of the Dice on dense labels"
        parts.append(html.section(title, html.table(reach_table(results))))
    parts += [figures.get(name, "") for name in ("prequential", "proxy")]
    for item in forgetting(results):
        parts.append(
            html.section(f"{item.name}: each group after each group", html.table(matrix_table(results, item.name)))
        )
    parts += [figures.get("examples", ""), html.facts_of(results)]
    name = f" · {results.dataset.name}" if results.dataset.name else ""
    return html.document(f"Wardround stream{name}", parts)


def _head(results: Results) -> str:
    name = f": {results.dataset.name}" if results.dataset.name else ""
    streamed = sum(site.stream for site in results.sites.values())
    tested = max((point.dice.count for point in points(results)), default=0)
    facts = [html.count(streamed, "streamed case"), html.count(tested, "test case")]
    if results.groups:
        facts.append("ordered by site: " + ", ".join(results.groups))
    facts += [html.seeds_of(results), results.created]
    return html.heading(f"One pass over a stream{name}", facts)


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    lines = curves(results)
    own = lines.get(PROXY) or next((points for name, points in lines.items() if name != "dense"), [])
    if not own:
        return []
    best, dense = own[-1], dense_point(results)
    tiles = [
        (f"Test Dice, {best.name}", f"{best.dice.mean:.3f}", best.dice.text()),
        ("Effort", f"{best.effort.mean:.0%}", f"strict count: {best.strict_effort.mean:.0%}"),
    ]
    if dense is not None:
        found = against(results, best.name, dense.name)
        tiles.append(("Against dense labels", signed(found.mean) if found else NOTHING, "Dice points, paired by case"))
    reached = next((item for item in reaches(results) if item.family == best.family), None)
    if reached is not None:
        value = (
            f"{'≤ ' if reached.bound else ''}{reached.effort:.0%}" if math.isfinite(reached.effort) else "not reached"
        )
        tiles.append((f"Effort at {SHARE_OF_DENSE:.0%} of dense", value, reached.text()))
    kept = next((item for item in forgetting(results) if item.name == best.name), None)
    if kept is not None:
        tiles.append(("Backward transfer", signed(100 * kept.backward.mean), "Dice points"))
    return tiles


def _readings(results: Results) -> str:
    """When test cases were read."""
    every = int(str(results.settings.get("evaluate_every") or 0))
    if results.groups:
        return "Test cases are read by the model after every site, and by nothing else."
    if every:
        chunks = "chunk" if every == 1 else f"{every} chunks"
        return f"Test cases are read by the model after every {chunks} of the stream and by the final model."
    return "Test cases are read by the final model of a run only."


def _forgetting_note() -> str:
    text = (
        "Backward transfer: how much Dice on the test cases of the groups before the last changed from the time each "
        "was learnt to the end (Lopez-Paz and Ranzato 2017). Forgetting: how far each fell from its best (Chaudhry et "
        "al. 2018). Average: over all groups, at the end."
    )
    return f"<p class='note'>{html.text(text)}</p>"

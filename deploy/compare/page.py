"""The report of a comparison as one self-contained page; the PNGs also lie beside it in `figures/`."""

from pathlib import Path

from wardround.deploy.compare.charts import draw_strategies
from wardround.deploy.compare.summary import rows
from wardround.deploy.compare.tables import compare_table, open_runs
from wardround.deploy.report import html
from wardround.deploy.report.drawing import Drawings, Makers, write_page
from wardround.deploy.report.results import Results, load_results
from wardround.deploy.report.summary import signed
from wardround.deploy.report.tables import Table

_DICE = (
    "Dice is the overlap of thresholded label maps on the original grid, averaged over the labels of a test case, then "
    "over test cases; test cases are read by the last weights of a run only. All arms of a seed start from the same "
    "weights and see the same cases of each site in the same order. What is called best is best on these very cases."
)
_INTERVALS = (
    "Intervals of Dice are 95 % intervals over seeds (Student's t): the cases are the same, so they say nothing about "
    "other patients. A difference is taken case by case under the same seed and averaged over seeds; its interval is a "
    "95 % bootstrap over test cases. The worst site is found anew for each seed."
)
_BESIDE = (
    "Pooled: one site has all cases, which no hospital may. Local only: every site learns alone and is tested with its "
    "own model. Best single site: at each site the model of the hospital that did best there, chosen on the test cases "
    "themselves, which favours it."
)


def write_compare_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` from what a comparison left in `folder`.

    Parameters
    ----------
    folder
        Holds `results.json`. Partial runs are fine.

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
    makers: Makers = {"strategies": lambda theme: draw_strategies(results, theme)}
    return write_page(folder, makers, lambda light, dark: _render(results, light, dark))


def _render(results: Results, light: Drawings, dark: Drawings) -> str:
    notes = "".join(f"<p class='note'>{html.text(line)}</p>" for line in (_DICE, _INTERVALS, _BESIDE))
    marked = [row.name for row in rows(results) if row.combines][:1]
    parts = [_head(results), html.tile_row(_tiles(results)), html.warning(open_runs(results))]
    parts += [html.figure(drawing, dark.get(name)) for name, drawing in light.items()]
    parts.append(html.section("All arms", html.table(compare_table(results), marked) + notes))
    parts.append(html.section("What each strategy is", html.table(_definitions(results))))
    parts.append(html.facts_of(results))
    name = f" · {results.dataset.name}" if results.dataset.name else ""
    return html.document(f"Wardround comparison{name}", parts)


def _head(results: Results) -> str:
    name = f": {results.dataset.name}" if results.dataset.name else ""
    facts = [
        html.count(len(results.sites), "site"),
        html.count(sum(site.stream for site in results.sites.values()), "streamed case"),
        html.seeds_of(results),
        results.created,
    ]
    return html.heading(f"Strategies beside each other{name}", facts)


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    found = [row for row in rows(results) if row.dice.known]
    combined = [row for row in found if row.combines]
    if not combined:
        return []
    best = max(combined, key=lambda row: row.dice.mean)
    fairest = max(combined, key=lambda row: row.worst.mean)
    tiles = [
        ("Best mean Dice", f"{best.dice.mean:.3f}", f"{best.name}, {best.dice.text()}"),
        ("Best worst site", f"{fairest.worst.mean:.3f}", f"{fairest.name}, at {fairest.worst_site}"),
    ]
    for row in found:
        if not row.combines:
            gap = signed(100 * (best.dice.mean - row.dice.mean))
            tiles.append((f"{best.name} − {row.name}", gap, f"Dice points; {row.name} {row.dice.text()}"))
    return tiles


def _definitions(results: Results) -> Table:
    told = {
        name.removeprefix("arms."): str(text) for name, text in results.settings.items() if name.startswith("arms.")
    }
    return Table(("arm", "strategy and settings"), tuple(told.items()))

"""The tables of a stream as text cells, the same for the terminal, the page and Markdown."""

import math

from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import PairedDifference, signed
from wardround.deploy.report.tables import Table
from wardround.deploy.stream.summary import (
    SHARE_OF_DENSE,
    against,
    dense_point,
    partner,
    points,
    reaches,
    runs_by_name,
)
from wardround.deploy.stream.transfer import forgetting
from wardround.pages import NOTHING


def stream_tables(results: Results) -> dict[str, Table]:
    """Title → table: everything that the terminal shows of a stream."""
    tables = {"final model on test cases": curve_table(results)}
    if reaches(results):
        tables[f"effort at {SHARE_OF_DENSE:.0%} of the Dice on dense labels"] = reach_table(results)
    if forgetting(results):
        tables["forgetting over the groups"] = forgetting_table(results)
        for item in forgetting(results):
            tables[f"{item.name}: Dice on each group (columns) after each group (rows)"] = matrix_table(
                results, item.name
            )
    return tables


def curve_table(results: Results) -> Table:
    """A row a run: effort, Dice with its interval, what was learnt from, and the paired differences."""
    dense = dense_point(results)
    found = points(results)
    alone = any(partner(results, point) for point in found)
    headers: tuple[str, ...] = ("run", "effort", "strict effort", "test Dice [95 %]", "± seeds", "proxy Dice")
    headers += (f"− {dense.name}, points",) if dense else ()
    headers += ("− slices-only, points",) if alone else ()
    rows = []
    for point in found:
        cells: tuple[str, ...] = (
            point.name,
            point.effort.text(3),
            point.strict_effort.text(3),
            point.dice.text(),
            f"{point.dice_seeds.sd:.3f}" if math.isfinite(point.dice_seeds.sd) else NOTHING,
            f"{point.proxy_dice.mean:.3f}" if point.proxy_dice.known else NOTHING,
        )
        cells += (_difference(against(results, point.name, dense.name)),) if dense else ()
        cells += (_difference(against(results, point.name, partner(results, point))),) if alone else ()
        rows.append((*cells, f"{point.updates.mean:.0f}", f"{point.rejected.mean:.3g}"))
    return Table((*headers, "updates", "taken back"), tuple(rows))


def reach_table(results: Results) -> Table:
    """The effort at which each arm reaches its share of the Dice on dense labels."""
    rows = tuple((item.family, f"{item.level:.3f}", item.text()) for item in reaches(results))
    return Table(("arm", "Dice to reach", "effort [95 %]"), rows)


def forgetting_table(results: Results) -> Table:
    """A row a run: average accuracy, backward transfer and forgetting over the groups, in their order."""
    headers = (
        "run",
        "average Dice [95 %]",
        "backward transfer, points [95 %]",
        "± over seeds",
        "forgetting, points [95 %]",
        "updates",
    )
    updates = {point.name: point.updates for point in points(results)}
    rows = tuple(
        (
            item.name,
            item.average.text(),
            item.backward.points(),
            f"{100 * item.backward_seeds.sd:.1f}" if math.isfinite(item.backward_seeds.sd) else NOTHING,
            item.forgotten.points(),
            f"{updates[item.name].mean:.0f}",
        )
        for item in forgetting(results)
    )
    return Table(headers, rows)


def matrix_table(results: Results, name: str) -> Table:
    """Dice on every group after every group, of one run."""
    item = next(item for item in forgetting(results) if item.name == name)
    rows = tuple(
        (f"after {group}", *(f"{value:.3f}" if math.isfinite(value) else NOTHING for value in row))
        for group, row in zip(results.groups, item.matrix, strict=True)
    )
    return Table(("", *results.groups), rows)


def open_runs(results: Results) -> list[str]:
    """What is still missing of a stream: seeds not run, runs that did not end."""
    notes = []
    for name, group in runs_by_name(results).items():
        notes += [f"{name}, seed {result.seed}: not finished" for result in group if not result.models]
        missing = sorted(set(results.seed_list) - {result.seed for result in group})
        if missing:
            notes.append(f"{name}: seed {', '.join(map(str, missing))} not run")
    return notes


def _difference(found: PairedDifference | None) -> str:
    if found is None:
        return NOTHING
    return found.text() if found.cases > 1 else signed(found.mean)

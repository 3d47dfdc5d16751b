"""The tables of a run as text cells, the same for the terminal, the page and Markdown."""

from dataclasses import dataclass

from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import (
    MAIN_ARM,
    Spread,
    arm_groups,
    best_local,
    case_scores,
    signed,
    site_names,
    summarise,
)
from wardround.pages import NOTHING


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = ["| " + " | ".join(self.headers) + " |", "|" + " --- |" + " ---: |" * (len(self.headers) - 1)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join(lines)


def arm_table(results: Results) -> Table:
    """The main table: a row per arm, test Dice per label and in the mean, effort, difference and worst site."""
    summaries = summarise(results)
    labels = list(dict.fromkeys(label for summary in summaries for label in summary.label_dice))
    headers = (
        "arm",
        *(f"Dice {label}" for label in labels),
        "mean Dice",
        "effort",
        "strict effort",
        "against federated, points",
        "worst site",
    )
    rows = []
    for summary in summaries:
        worst = summary.site_dice.get(summary.worst_site, Spread())
        rows.append(
            (
                summary.name,
                *(summary.label_dice.get(label, Spread()).text() for label in labels),
                summary.dice.text(),
                summary.effort.text(2),
                summary.strict_effort.text(2),
                summary.against.text() if summary.against else NOTHING,
                f"{summary.worst_site} {worst.text()}" if worst.known else NOTHING,
            )
        )
    return Table(headers, tuple(rows))


def site_table(results: Results) -> Table:
    """A row per site: mean Dice of every arm there, the best single-site model and the distance to it."""
    summaries = summarise(results)
    best = best_local(results)
    main = next((summary for summary in summaries if summary.arm == MAIN_ARM), None)
    headers = ("site", *(summary.name for summary in summaries))
    if best:
        headers += ("best single-site model", "federated − best, points")
    rows = []
    for site in site_names(results):
        cells = [summary.site_dice.get(site, Spread()).text() for summary in summaries]
        if best:
            there = best.get(site)
            here = main.site_dice.get(site, Spread()) if main else Spread()
            cells.append(f"{there.dice.text()} (of {there.owner})" if there else NOTHING)
            cells.append(signed(100.0 * (here.mean - there.dice.mean)) if there else NOTHING)
        rows.append((site, *cells))
    return Table(headers, tuple(rows))


def drawing_table(results: Results) -> Table:
    """What was drawn on a case in the mean, and what it cost: a row an arm, or an arm and site where sites differ.

    Returns
    -------
    Table
        Without rows where the run does not say what was drawn.
    """
    apart = any(name.startswith("site_prompts.") for name in results.settings)
    headers = (
        "arm",
        *(("site",) if apart else ()),
        "slices",
        "slices with strokes",
        "points",
        "effort",
        "strict effort",
    )
    rows = []
    for arm, group in arm_groups(results).items():
        last = {(row.site, row.case, result.seed): row for result in group for row in result.interactions}
        if not any(row.slices or row.scribbles or row.points for row in last.values()):
            continue
        sites = dict.fromkeys(row.site for row in last.values()) if apart else ("",)
        for site in sites:
            own = [row for row in last.values() if row.site == site or not apart]
            counts = [Spread.of(getattr(row, kind) for row in own).mean for kind in ("slices", "scribbles", "points")]
            paid = [Spread.of(getattr(row, kind) for row in own).mean for kind in ("effort", "strict_effort")]
            cells = (*(f"{mean:.1f}" for mean in counts), *(f"{mean:.3f}" for mean in paid))
            rows.append((arm, *((site,) if apart else ()), *cells))
    return Table(headers, tuple(rows))


def open_ends(results: Results) -> list[str]:
    """What is still missing: arms that stopped before their last round, seeds not run, arms not evaluated."""
    wanted = results.settings.get("rounds")
    notes = []
    for name, group in arm_groups(results).items():
        for result in group:
            done = max((item.round for item in result.rounds), default=0)
            if isinstance(wanted, int) and 0 < done < wanted:
                notes.append(f"{name}, seed {result.seed}: {done} of {wanted} rounds")
            elif not case_scores(result):
                notes.append(f"{name}, seed {result.seed}: not evaluated on test cases")
        missing = sorted(set(results.seed_list) - {result.seed for result in group})
        if missing:
            notes.append(f"{name}: seed {', '.join(map(str, missing))} not run")
    return notes

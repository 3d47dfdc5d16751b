"""The table of a comparison as text cells, the same for the terminal, the page and Markdown."""

from wardround.deploy.compare.summary import Row, rows
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import arm_groups, site_names
from wardround.deploy.report.tables import Table
from wardround.pages import NOTHING


def compare_table(results: Results) -> Table:
    """A row an arm: Dice over all test cases, at the worst site and at each site, and what it cost."""
    found = rows(results)
    sites = [site for site in site_names(results) if any(site in row.sites for row in found)]
    reference = next((row.against.reference for row in found if row.against), "")
    headers: tuple[str, ...] = ("strategy", "Dice [95 %]", "worst site [95 %]", *sites)
    headers += (f"− {reference}, points",) if reference else ()
    headers += ("from the sites, MB", "seconds")
    body = []
    for row in found:
        cells: tuple[str, ...] = (row.name, row.dice.text(), _worst(row))
        cells += tuple(f"{row.sites[site].mean:.3f}" if site in row.sites else NOTHING for site in sites)
        cells += (row.against.text() if row.against else NOTHING,) if reference else ()
        sent = f"{row.bytes_up.mean / 1e6:.1f}" if row.bytes_up.known else NOTHING
        body.append((*cells, sent, f"{row.seconds.mean:.0f}" if row.seconds.known else NOTHING))
    return Table(headers, tuple(body))


def open_runs(results: Results) -> list[str]:
    """What is still missing: seeds not run, runs that did not end."""
    notes = []
    for name, group in arm_groups(results).items():
        notes += [f"{name}, seed {result.seed}: not finished" for result in group if not result.models]
        missing = sorted(set(results.seed_list) - {result.seed for result in group})
        if missing:
            notes.append(f"{name}: seed {', '.join(map(str, missing))} not run")
    return notes


def _worst(row: Row) -> str:
    return f"{row.worst.text()} ({row.worst_site})" if row.worst_site else NOTHING

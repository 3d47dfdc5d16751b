"""The report of a federation as one self-contained page; the PNGs also lie beside it in `figures/`."""

from collections.abc import Sequence
from pathlib import Path

from wardround.deploy.report import html
from wardround.deploy.report.drawing import Drawings, write_page
from wardround.deploy.report.examples import IMAGINED, Example, load_examples
from wardround.deploy.report.figures import makers_of
from wardround.deploy.report.results import Results, load_results
from wardround.deploy.report.summary import (
    MAIN_ARM,
    ArmSummary,
    Spread,
    arm_groups,
    goals,
    signed,
    summarise,
)
from wardround.deploy.report.tables import Table, arm_table, drawing_table, open_ends, site_table
from wardround.deploy.report.theme import counted
from wardround.pages import NOTHING

_METHOD = (
    "Dice is the overlap of thresholded label maps on the original grid, averaged over the labels of a test case, then "
    "over test cases; an arm in which every hospital keeps its own model scores each case with the model of the "
    "hospital whose test case it is. ± is the sample standard deviation over seeds.",
    "Effort is the share of a full contouring of every axial slice; strict effort also charges for every slice viewed "
    "and every click.",
    "A difference between arms is taken case by case under the same seed; the bracket is the 95 % bootstrap interval "
    "over cases. One Dice point is 0.01.",
    "The best single-site model at a hospital is the one with the highest mean there; it is picked on the test cases "
    "themselves, which favours it.",
    "Made: pairs of a site's generator that may be learnt from, none where it has failed its test. Nearer: the "
    "probability that one is nearer to what the generator has learnt than a case that it has not seen; 0.5 is neither "
    "nearer nor farther. Faithful: Dice of what the site's network finds in made images with what they were made of. "
    "Each is a mean over sites.",
)
# What a site reports of a round under some plans only: the head of its column, and how it is written.
_FURTHER = {
    "kernel_ratio": ("attention", ".2f"),
    "made": ("made", ".0f"),
    "made_nearer": ("nearer", ".2f"),
    "made_faithful": ("faithful", ".2f"),
}


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` from what a run left in `folder`.

    Parameters
    ----------
    folder
        Holds `results.json`, `examples/*.npz` where the run kept examples, and `imagined/*.npz` where generators made
        any. Partial runs are fine.

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
    makers = makers_of(results, examples, load_examples(folder, IMAGINED))
    return write_page(folder, makers, lambda light, dark: _render(results, examples, light, dark))


def _render(results: Results, examples: Sequence[Example], light: Drawings, dark: Drawings) -> str:
    summaries = summarise(results)
    parts = [_head(results), _tiles(results, summaries), _warnings(results)]
    figures = {name: html.figure(drawing, dark.get(name)) for name, drawing in light.items()}
    overview = light.get("overview")
    if overview is not None and examples:
        parts.append(
            f"<section aria-label='Overview'><figure>{html.picture(overview, dark.get('overview'))}</figure></section>"
        )
    parts.append(html.goal_list(goals(results)))
    if results.arms:
        parts.append(html.section("All arms", html.table(arm_table(results), _main_rows(results)) + _method(0, 1, 2)))
    parts += [figures.get("effort", ""), figures.get("rounds", ""), figures.get("sites", "")]
    sites = site_table(results)
    if sites.rows and results.arms:
        note = _method(3) if "best single-site model" in sites.headers else ""
        parts.append(html.section("Test Dice at every hospital", html.table(sites) + note))
    if (drawn := drawing_table(results)).rows:
        parts.append(html.section("What was drawn on a case", html.table(drawn) + _method(1)))
    parts += [figures.get(name, "") for name in ("examples", "imagined", "cost")]
    parts += [_distances(summaries), _refused(results), _rounds(results), html.facts_of(results)]
    return html.document(f"Wardround · {results.dataset.name}" if results.dataset.name else "Wardround", parts)


def _head(results: Results) -> str:
    count = len(results.sites)
    name = f": {results.dataset.name}" if results.dataset.name else ""
    title = f"{counted(count)} hospitals, a few strokes each{name}" if count > 1 else f"A run of Wardround{name}"
    facts = []
    streamed = sum(site.stream for site in results.sites.values())
    tested = max((summary.cases for summary in summarise(results)), default=0)
    if streamed:
        facts.append(f"{streamed} streamed cases")
    if tested:
        facts.append(f"{tested} test cases")
    rounds = max((item.round for arm in results.arms for item in arm.rounds), default=0)
    if rounds:
        facts.append(f"{rounds} rounds")
    facts.append(html.seeds_of(results))
    strategies = dict.fromkeys(arm.strategy for arm in results.arms if arm.strategy and arm.arm == MAIN_ARM)
    facts += list(strategies)
    facts.append(results.created)
    return html.heading(title, facts)


def _tiles(results: Results, summaries: Sequence[ArmSummary]) -> str:
    main = next((item for item in summaries if item.arm == MAIN_ARM), summaries[0] if summaries else None)
    if main is None:
        return ""
    spread = f" ± {main.dice.sd:.3f} over {html.count(main.dice.count, 'seed')}" if main.dice.count > 1 else ""
    shown = f"{main.dice.mean:.3f}" if main.dice.known else NOTHING
    tiles = [(f"Test Dice, {main.name}", shown, f"{spread}; {html.count(main.cases, 'test case')}".strip("; "))]
    if main.effort.known:
        strict = f"strict count: {main.strict_effort.mean:.0%}" if main.strict_effort.known else ""
        tiles.append(
            ("Annotation effort", f"{main.effort.mean:.0%}", f"of contouring every slice; {strict}".strip("; "))
        )
    dense = next((line for line in goals(results) if line.title.endswith("− dense")), None)
    if dense is not None:
        tiles.append(("Against dense labels", signed(dense.value), "Dice points, paired by test case"))
    if main.worst_site:
        worst = main.site_dice[main.worst_site]
        tiles.append(("Weakest hospital", f"{worst.mean:.3f}", main.worst_site))
    if main.bytes_up.known and main.bytes_up.mean + main.bytes_down.mean > 0:
        tiles.append(
            ("Exchanged", html.size(main.bytes_up.mean + main.bytes_down.mean), "weights only; images never leave")
        )
    if main.seconds.known:
        memory = f"peak memory {html.size(main.peak_memory_mb.mean * 1e6)}" if main.peak_memory_mb.known else "per seed"
        tiles.append(("Time per seed", html.duration(main.seconds.mean), memory))
    return html.tile_row(tiles)


def _warnings(results: Results) -> str:
    notes = open_ends(results)
    if not results.arms:
        notes = ["The run has not finished a first arm; there is nothing to compare yet."]
    return html.warning(notes)


def _method(*which: int) -> str:
    return f"<p class='note'>{html.text(' '.join(_METHOD[index] for index in which))}</p>"


def _main_rows(results: Results) -> list[str]:
    return [name for name, group in arm_groups(results).items() if group[0].arm == MAIN_ARM]


def _distances(summaries: Sequence[ArmSummary]) -> str:
    labels = list(dict.fromkeys(label for item in summaries for label in (*item.label_hd95, *item.label_assd)))
    if not any(item.label_hd95.get(label, Spread()).known for item in summaries for label in labels):
        return ""
    headers = ("arm", *(f"{kind} {label}, mm" for label in labels for kind in ("HD95", "ASSD")))
    rows = tuple(
        (
            item.name,
            *(
                measured.get(label, Spread()).text(2)
                for label in labels
                for measured in (item.label_hd95, item.label_assd)
            ),
        )
        for item in summaries
    )
    return html.section("Surface distances", html.table(Table(headers, rows)))


def _refused(results: Results) -> str:
    rows = tuple(
        (name, str(result.seed), str(item.round), site, reason)
        for name, group in arm_groups(results).items()
        for result in group
        for item in result.rounds
        for site, reason in item.refused.items()
    )
    if not rows:
        return ""
    table = Table(("arm", "seed", "round", "site", "reason"), rows)
    return html.section("Replies that were left out", html.table(table))


def _rounds(results: Results) -> str:
    main = next((arm for arm in results.arms if arm.arm == MAIN_ARM and arm.rounds), None)
    if main is None:
        return ""
    every = [site for item in main.rounds for site in item.sites.values()]
    further = [field for field in _FURTHER if Spread.of(getattr(site, field) for site in every).known]
    rows = []
    for item in main.rounds:
        sites = item.sites.values()
        loss, effort = Spread.of(site.loss for site in sites), Spread.of(site.effort for site in sites)
        means = {field: Spread.of(getattr(site, field) for site in sites) for field in further}
        rows.append(
            (
                str(item.round),
                f"{len(item.sites)}",
                str(sum(site.cases for site in sites)),
                f"{loss.mean:.3f}" if loss.known else NOTHING,
                *(f"{mean.mean:{_FURTHER[field][1]}}" if mean.known else NOTHING for field, mean in means.items()),
                f"{effort.mean:.0%}" if effort.known else NOTHING,
                html.size(sum(site.bytes_up for site in sites)),
                html.size(sum(site.bytes_down for site in sites)),
                html.duration(item.seconds),
            )
        )
    heads = ("round", "sites", "cases", "loss", *(_FURTHER[field][0] for field in further), "effort")
    headers = (*heads, "from the sites", "to the sites", "time")
    title = f"Rounds of the {main.arm} arm, seed {main.seed}"
    note = _method(4) if "made" in further else ""
    return html.section(title, html.table(Table(headers, tuple(rows))) + note)

"""The report of a run as one HTML file that needs nothing else: no network, no script, no font to load.

Pictures are embedded twice, drawn for light and for dark paper, and the reader's setting chooses; a printout is always
light. Every text that comes from the run is escaped. The PNGs also lie beside the page in `figures/`.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from wardround import files
from wardround.deploy.report.examples import Example, load_examples
from wardround.deploy.report.figures import Drawing, draw_all
from wardround.deploy.report.results import Results, load_results
from wardround.deploy.report.summary import (
    MAIN_ARM,
    NOTHING,
    ArmSummary,
    GoalLine,
    Spread,
    arm_groups,
    goals,
    signed,
    summarise,
)
from wardround.deploy.report.tables import Table, arm_table, open_ends, site_table
from wardround.deploy.report.theme import DARK, LIGHT, counted

FILE_NAME = "report.html"

_STYLE = """
:root{color-scheme:light dark;--paper:#f4f6f8;--card:#fff;--ink:#1b2530;--muted:#5a6776;--line:#dde3e9;--accent:#0068b0;
--good:#00734f;--bad:#b23a00;--tint:#eaf3fa}
@media screen and (prefers-color-scheme:dark){:root{--paper:#0d1117;--card:#161b22;--ink:#e8edf3;--muted:#9aa8b7;
--line:#313a45;--accent:#5cb8f2;--good:#38cfa3;--bad:#ff8d52;--tint:#16283a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .3rem;letter-spacing:-.005em}
p{margin:.2rem 0 .8rem}
.lead,.caption,.note{color:var(--muted)}
.caption,.note{font-size:.875rem;max-width:52rem}
section,.tiles>div{background:var(--card);border:1px solid var(--line);border-radius:12px}
section{padding:1.3rem 1.5rem;margin:1.1rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:.8rem;margin:1.3rem 0 0;padding:0}
.tiles>div{padding:.9rem 1.1rem}
.tiles dt{color:var(--muted);font-size:.85rem}
.tiles dd{margin:0}
.tiles .big{font-size:1.65rem;font-weight:650;letter-spacing:-.02em;line-height:1.3;overflow-wrap:anywhere}
.tiles .small{color:var(--muted);font-size:.82rem;overflow-wrap:anywhere}
.warn{border-left:4px solid var(--bad);background:var(--card);border-radius:8px;padding:.7rem 1.1rem;margin:1.1rem 0}
.warn ul{margin:.2rem 0;padding-left:1.2rem}
figure{margin:.4rem 0 0}
figcaption{margin:0 0 .9rem}
img{display:block;max-width:100%;height:auto;margin:0 auto;border-radius:6px}
.scroll{overflow-x:auto;margin:.4rem 0 .6rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .7rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline}
thead th{color:var(--muted);font-weight:600;font-size:.8rem;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:.2rem}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:6.5rem;max-width:20rem}
td{white-space:nowrap}
tr.main{background:var(--tint)}
.goals{list-style:none;margin:.3rem 0 0;padding:0}
.goals li{display:grid;grid-template-columns:8rem minmax(0,24rem) 1fr;gap:.8rem;padding:.42rem 0;
border-bottom:1px solid var(--line)}
.goals li:last-child{border-bottom:0}
.goals b{overflow-wrap:anywhere}
.met{color:var(--good);font-weight:650}.missed{color:var(--bad);font-weight:650}.plain{color:var(--muted)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:0 2rem}
dl.facts{display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.15rem 1rem;font-size:.875rem;margin:.4rem 0 0}
.facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
code,pre{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem;white-space:pre-wrap;
overflow-wrap:anywhere;margin:.4rem 0}
footer{color:var(--muted);font-size:.85rem;margin-top:1.6rem}
@media screen and (max-width:720px){section{padding:1.1rem 1rem}picture{display:block;overflow-x:auto}
figure img{min-width:680px}.pair,.goals li{grid-template-columns:1fr;gap:.1rem}}
@media print{:root{color-scheme:light}body{background:#fff;font-size:10.5pt}main{max-width:none;padding:0}
section,.tiles>div{border:0;padding:.3rem 0;break-inside:avoid}.tiles{grid-template-columns:repeat(4,1fr)}
section{margin:.9rem 0}img{max-height:21cm;width:auto}h2,figcaption{break-after:avoid}
.scroll{overflow:visible}table{font-size:8pt}th,td{padding:.25rem .35rem}}
"""

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
)


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` from what a run left in `folder`.

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
    light, dark = draw_all(results, examples, LIGHT), draw_all(results, examples, DARK)
    for drawings, suffix in ((light, ""), (dark, "-dark")):
        for name, drawing in drawings.items():
            files.write_bytes(folder / "figures" / f"{name}{suffix}.png", drawing.png)
    page = folder / FILE_NAME
    files.write_text(page, render(results, examples, light, dark))
    return page


def render(
    results: Results, examples: Sequence[Example], light: Mapping[str, Drawing], dark: Mapping[str, Drawing]
) -> str:
    """The page as text, from the results and the figures drawn for light and dark paper."""
    summaries = summarise(results)
    parts = [_head(results), _tiles(results, summaries), _warnings(results)]
    figures = {name: _figure(drawing, dark.get(name)) for name, drawing in light.items()}
    overview = light.get("overview")
    if overview is not None and examples:
        parts.append(
            f"<section aria-label='Overview'><figure>{_picture(overview, dark.get('overview'))}</figure></section>"
        )
    parts.append(_goals(goals(results)))
    if results.arms:
        parts.append(_section("All arms", _html_table(arm_table(results), _main_rows(results)) + _method(0, 1, 2)))
    parts += [figures.get("effort", ""), figures.get("rounds", ""), figures.get("sites", "")]
    sites = site_table(results)
    if sites.rows and results.arms:
        note = _method(3) if "best single-site model" in sites.headers else ""
        parts.append(_section("Test Dice at every hospital", _html_table(sites) + note))
    parts += [figures.get("examples", ""), figures.get("cost", ""), _distances(summaries), _refused(results)]
    parts += [_rounds(results), _facts(results)]
    title = f"Wardround · {results.dataset.name}" if results.dataset.name else "Wardround"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return escape(
        "".join(sign if sign.isprintable() or sign in "\n\u00a0" else "\ufffd" for sign in str(value)), quote=True
    )


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
    seeds = sorted({arm.seed for arm in results.arms})
    if seeds:
        facts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    strategies = dict.fromkeys(arm.strategy for arm in results.arms if arm.strategy and arm.arm == MAIN_ARM)
    facts += list(strategies)
    if results.created:
        facts.append(results.created)
    return f"<header><h1>{_text(title)}</h1><p class='lead'>{_text(' · '.join(facts))}</p></header>"


def _tiles(results: Results, summaries: Sequence[ArmSummary]) -> str:
    main = next((item for item in summaries if item.arm == MAIN_ARM), summaries[0] if summaries else None)
    if main is None:
        return ""
    spread = f" ± {main.dice.sd:.3f} over {_count(main.dice.count, 'seed')}" if main.dice.count > 1 else ""
    shown = f"{main.dice.mean:.3f}" if main.dice.known else NOTHING
    tiles = [(f"Test Dice, {main.name}", shown, f"{spread}; {_count(main.cases, 'test case')}".strip("; "))]
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
            ("Exchanged", _size(main.bytes_up.mean + main.bytes_down.mean), "weights only; images never leave")
        )
    if main.seconds.known:
        memory = f"peak memory {_size(main.peak_memory_mb.mean * 1e6)}" if main.peak_memory_mb.known else "per seed"
        tiles.append(("Time per seed", _duration(main.seconds.mean), memory))
    cells = "".join(
        f"<div><dt>{_text(title)}</dt><dd class='big'>{_text(big)}</dd><dd class='small'>{_text(small)}</dd></div>"
        for title, big, small in tiles
    )
    return f"<dl class='tiles'>{cells}</dl>"


def _warnings(results: Results) -> str:
    notes = open_ends(results)
    if not results.arms:
        notes = ["The run has not finished a first arm; there is nothing to compare yet."]
    if not notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<div class='warn' role='note'><b>This run is not complete.</b><ul>{items}</ul></div>"


def _goals(lines: Sequence[GoalLine]) -> str:
    if not lines:
        return ""
    words = {True: ("met", "✓ reached"), False: ("missed", "✗ missed"), None: ("plain", "· for the record")}
    items = "".join(
        f"<li><span class='{words[line.met][0]}'>{words[line.met][1]}</span>"
        f"<b>{_text(line.title)}</b><span>{_text(line.text)}</span></li>"
        for line in lines
    )
    return _section("What the run shows", f"<ul class='goals'>{items}</ul>")


def _picture(light: Drawing, dark: Drawing | None) -> str:
    source = ""
    if dark is not None:
        source = f"<source media='screen and (prefers-color-scheme: dark)' srcset='{_data(dark.png)}'>"
    return f"<picture>{source}<img alt='{_text(light.alt)}' src='{_data(light.png)}'></picture>"


def _figure(light: Drawing, dark: Drawing | None) -> str:
    caption = f"<figcaption class='caption'>{_text(light.caption)}</figcaption>"
    return _section(light.title, f"<figure>{caption}{_picture(light, dark)}</figure>")


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _method(*which: int) -> str:
    return f"<p class='note'>{_text(' '.join(_METHOD[index] for index in which))}</p>"


def _html_table(table: Table, marked: Iterable[str] = ()) -> str:
    marks = set(marked)
    head = "".join(f"<th scope='col'>{_text(header)}</th>" for header in table.headers)
    rows = "".join(
        f"<tr{' class=main' if row[0] in marks else ''}><th scope='row'>{_text(row[0])}</th>"
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


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
    return _section("Surface distances", _html_table(Table(headers, rows)))


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
    return _section("Replies that were left out", _html_table(table))


def _rounds(results: Results) -> str:
    main = next((arm for arm in results.arms if arm.arm == MAIN_ARM and arm.rounds), None)
    if main is None:
        return ""
    rows = []
    for item in main.rounds:
        sites = item.sites.values()
        loss, effort = Spread.of(site.loss for site in sites), Spread.of(site.effort for site in sites)
        rows.append(
            (
                str(item.round),
                f"{len(item.sites)}",
                str(sum(site.cases for site in sites)),
                f"{loss.mean:.3f}" if loss.known else NOTHING,
                f"{effort.mean:.0%}" if effort.known else NOTHING,
                _size(sum(site.bytes_up for site in sites)),
                _size(sum(site.bytes_down for site in sites)),
                _duration(item.seconds),
            )
        )
    headers = ("round", "sites", "cases", "loss", "effort", "from the sites", "to the sites", "time")
    title = f"Rounds of the {main.arm} arm, seed {main.seed}"
    return _section(title, _html_table(Table(headers, tuple(rows))))


def _facts(results: Results) -> str:
    machine = results.machine
    facts: dict[str, object] = {}
    if machine.cores:
        facts["machine"] = f"{machine.cores} cores, {_number(machine.memory_gb)} GB, load {_number(machine.load)}"
    if machine.python:
        facts["software"] = f"Wardround {results.version}, Python {machine.python}, torch {machine.torch}"
    for name, site in results.sites.items():
        facts[name] = f"{_count(site.stream, 'streamed case')}, {_count(site.tests, 'test case')}"
    left = _fact_list(facts)
    right = _fact_list(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in results.settings.items()}
    )
    command = f"<pre>{_text(results.command)}</pre>" if results.command else ""
    if not (facts or results.settings or command):
        return ""
    return _section("How to run it again", f"{command}<div class='pair'>{left}{right}</div>")


def _fact_list(facts: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f"<dl class='facts'>{rows}</dl>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else NOTHING


def _size(count: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes" if math.isfinite(count) else NOTHING


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

"""What our pages are made of: one file each that needs nothing else, no network, no script, no font to load.

Pictures are embedded twice, drawn for light and for dark paper, and the reader's setting chooses; a printout is always
light. Every text that comes from a run is escaped.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from wardround.deploy.report.figures import Drawing
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import NOTHING, GoalLine
from wardround.deploy.report.tables import Table

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


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Any value, escaped, with a mark in place of what cannot be printed."""
    return escape(
        "".join(sign if sign.isprintable() or sign in "\n\u00a0" else "\ufffd" for sign in str(value)), quote=True
    )


def tile_row(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Title, large figure and small print of each tile."""
    cells = "".join(
        f"<div><dt>{text(title)}</dt><dd class='big'>{text(big)}</dd><dd class='small'>{text(small)}</dd></div>"
        for title, big, small in tiles
    )
    return f"<dl class='tiles'>{cells}</dl>"


def warning(notes: Sequence[str]) -> str:
    """What is missing; nothing where nothing is."""
    if not notes:
        return ""
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f"<div class='warn' role='note'><b>This run is not complete.</b><ul>{items}</ul></div>"


def goal_list(lines: Sequence[GoalLine]) -> str:
    """The section that says what was reached; nothing without lines."""
    if not lines:
        return ""
    words = {True: ("met", "✓ reached"), False: ("missed", "✗ missed"), None: ("plain", "· for the record")}
    items = "".join(
        f"<li><span class='{words[line.met][0]}'>{words[line.met][1]}</span>"
        f"<b>{text(line.title)}</b><span>{text(line.text)}</span></li>"
        for line in lines
    )
    return section("What the run shows", f"<ul class='goals'>{items}</ul>")


def picture(light: Drawing, dark: Drawing | None) -> str:
    """One figure for both papers."""
    source = ""
    if dark is not None:
        source = f"<source media='screen and (prefers-color-scheme: dark)' srcset='{_data(dark.png)}'>"
    return f"<picture>{source}<img alt='{text(light.alt)}' src='{_data(light.png)}'></picture>"


def figure(light: Drawing, dark: Drawing | None) -> str:
    """A section with a figure, its title and its caption."""
    caption = f"<figcaption class='caption'>{text(light.caption)}</figcaption>"
    return section(light.title, f"<figure>{caption}{picture(light, dark)}</figure>")


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def section(title: str, body: str) -> str:
    """A card with a heading; `body` is HTML."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def table(content: Table, marked: Iterable[str] = ()) -> str:
    """A table; rows whose first cell is `marked` stand out."""
    marks = set(marked)
    head = "".join(f"<th scope='col'>{text(header)}</th>" for header in content.headers)
    rows = "".join(
        f"<tr{' class=main' if row[0] in marks else ''}><th scope='row'>{text(row[0])}</th>"
        + "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in content.rows
    )
    return f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def facts_of(results: Results) -> str:
    """Machine, data, settings and command of a run."""
    machine = results.machine
    facts: dict[str, object] = {}
    if machine.cores:
        facts["machine"] = f"{machine.cores} cores, {number(machine.memory_gb)} GB, load {number(machine.load)}"
    if machine.python:
        facts["software"] = f"Wardround {results.version}, Python {machine.python}, torch {machine.torch}"
    for name, site in results.sites.items():
        facts[name] = f"{count(site.stream, 'streamed case')}, {count(site.tests, 'test case')}"
    left = _fact_list(facts)
    right = _fact_list(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in results.settings.items()}
    )
    command = f"<pre>{text(results.command)}</pre>" if results.command else ""
    if not (facts or results.settings or command):
        return ""
    return section("How to run it again", f"{command}<div class='pair'>{left}{right}</div>")


def _fact_list(facts: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return f"<dl class='facts'>{rows}</dl>"


def count(number: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number(value: float) -> str:
    """Three digits, or a dash."""
    return f"{value:.3g}" if math.isfinite(value) else NOTHING


def size(count: float) -> str:
    """Bytes in a unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes" if math.isfinite(count) else NOTHING


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

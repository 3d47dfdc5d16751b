"""What our pages are made of: one file each that needs nothing else, no network, no script, no font to load.

Pictures are embedded twice, drawn for light and for dark paper, and the reader's setting chooses; a printout is always
light. Every text that comes from a run is escaped.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence

from wardround.deploy.report.drawing import Drawing
from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import GoalLine
from wardround.deploy.report.tables import Table
from wardround.pages import count, duration, number, size, style, text

__all__ = [
    "count",
    "document",
    "duration",
    "facts_of",
    "figure",
    "goal_list",
    "heading",
    "number",
    "picture",
    "section",
    "seeds_of",
    "size",
    "table",
    "text",
    "tile_row",
    "warning",
]


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def heading(title: str, facts: Iterable[str]) -> str:
    """What a page begins with: its title, and what it is about in one line; empty facts are left out."""
    return f"<header><h1>{text(title)}</h1><p class='lead'>{text(' · '.join(filter(None, facts)))}</p></header>"


def seeds_of(results: Results) -> str:
    """The seeds of a run's arms, for such a line; empty where there is no arm."""
    seeds = sorted({arm.seed for arm in results.arms})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""


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

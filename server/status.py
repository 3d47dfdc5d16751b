"""The coordinator's page: who is online, how far the runs are, what was refused; and the same for Prometheus.

::

    python -m wardround.server.status --home C

It reads the coordinator's folder and writes nothing, needs no coordinator at work, and holds no password: it listens on
the machine itself unless coordinator.toml says otherwise, and answers only requests that read.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from wardround import __version__, pages
from wardround.errors import WardroundError
from wardround.server import curves
from wardround.server.home import CoordinatorHome
from wardround.server.journal import RoundRecord
from wardround.server.metrics import exposition
from wardround.server.overview import ORDER, Overview, RunView, SiteTotals, SiteView, read_overview, scalar
from wardround.strategies.contract import DICE

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 100
_SILENT_S = 3600.0


@dataclass(frozen=True)
class _Traffic:
    down: int
    up: int


@dataclass(frozen=True)
class _Round:
    number: int
    closed: float
    sites: int
    seconds: float
    down: int
    up: int
    dice: float
    left_out: str


@dataclass(frozen=True)
class _Answer:
    site: str
    answered: bool
    asked: bool
    before: str


def create_app(home: Path) -> FastAPI:
    """The page of the coordinator whose folder is `home`, without a guard (:func:`wardround.pages.Guard`)."""
    folder = CoordinatorHome(home)
    template = _environment().get_template("coordinator.html")
    app = FastAPI(title="Wardround coordinator", docs_url=None, redoc_url=None, openapi_url=None)

    def page(name: str | None, refresh: int | None) -> Response:
        view = read_overview(folder)
        run = view.run(name) if name is not None else next(iter(view.runs), None)
        if name is not None and run is None:
            return PlainTextResponse("there is no such run\n", status_code=404)
        return HTMLResponse(template.render(_context(folder, view, run, chosen=name is not None, refresh=refresh)))

    @app.get("/")
    def start(refresh: Annotated[int | None, Query(ge=5, le=3600)] = None) -> Response:
        return page(None, refresh)

    @app.get("/runs/{name}")
    def one_run(name: str, refresh: Annotated[int | None, Query(ge=5, le=3600)] = None) -> Response:
        return page(name, refresh)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(exposition(read_overview(folder)), media_type=CONTENT_TYPE_LATEST)

    @app.get("/style.css")
    def style() -> Response:
        return Response(pages.style(), media_type="text/css")

    @app.get("/health")
    def health() -> Response:
        return PlainTextResponse("ok\n")

    @app.exception_handler(WardroundError)
    def failed(request: Request, error: WardroundError) -> Response:
        logger.error("%s", error)
        return PlainTextResponse(f"{error}\n", status_code=500)

    return app


def serve(home: Path, host: str | None = None, port: int | None = None, names: Sequence[str] = ()) -> None:
    """Serve the page until the process is told to end.

    Parameters
    ----------
    home
        The coordinator's folder.
    host, port
        Where to listen; what coordinator.toml says by default.
    names
        Host names besides ``localhost`` under which the page may be asked for; the coordinator's own always are.

    Raises
    ------
    DataError
        If `home` is no coordinator's folder.
    ConnectionFailed
        If the port cannot be opened.
    """
    settings = CoordinatorHome(home).settings
    host, port = host or settings.status_host, settings.status_port if port is None else port
    guarded = pages.Guard(create_app(home), (*settings.names, *names))
    logger.info("the page is at http://%s:%d", host, port)
    pages.run(uvicorn.run, guarded, host, port)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pages.template_folders("wardround.server")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        **pages.template_settings(),
    )
    environment.globals.update(pages.template_names(), tone=_tone)
    return environment


def _context(
    folder: CoordinatorHome, view: Overview, run: RunView | None, *, chosen: bool, refresh: int | None
) -> dict[str, Any]:
    last = run.last if run is not None else None
    return {
        "home": folder.path,
        "version": __version__,
        "view": view,
        "run": run,
        "chosen": chosen,
        "refresh": refresh,
        "registered": sum(site.state == "registered" for site in view.sites),
        "sites": _sites(view, run),
        "traffic": _traffic(last),
        "answers": _answers(run),
        "curves": curves.curves_of(run.records) if run is not None else [],
        "frame": {
            "width": curves.WIDTH,
            "height": curves.HEIGHT,
            "left": curves.LEFT,
            "right": curves.RIGHT,
            "bottom": curves.BOTTOM,
        },
        "rounds": _rounds(run) if run is not None else [],
        "warnings": _warnings(view, run),
        "ago": lambda moment: pages.ago(view.now - moment),
    }


def _sites(view: Overview, run: RunView | None) -> list[tuple[SiteView, SiteTotals | None]]:
    """Every site that is known or that the run names."""
    totals = {total.name: total for total in run.site_totals()} if run is not None else {}
    known = {site.name: site for site in view.sites}
    known |= {name: SiteView(name, "not registered") for name in totals if name not in known}
    return [(known[name], totals.get(name)) for name in sorted(known)]


def _answers(run: RunView | None) -> list[_Answer]:
    """Every site that the open round names, by name."""
    view = run.open if run is not None else None
    if view is None:
        return []
    names = sorted({*view.asked, *view.answered, *view.left_out})
    return [_Answer(name, name in view.answered, name in view.asked, view.left_out.get(name, "")) for name in names]


def _traffic(record: RoundRecord | None) -> _Traffic:
    reports = list(record.sites.values()) if record is not None else []
    return _Traffic(sum(report.bytes_down for report in reports), sum(report.bytes_up for report in reports))


def _rounds(run: RunView) -> list[_Round]:
    rows = []
    for record in reversed(run.records[-_MOST_ROUNDS:]):
        traffic = _traffic(record)
        scores = record.evaluation.sites.values() if record.evaluation is not None else ()
        dice = [value for row in scores if math.isfinite(value := scalar(row, DICE))]
        left_out = {**record.missing, **record.refused}
        late = {site: f"late for round {found.round}, weight {found.weight:.3g}" for site, found in record.late.items()}
        rows.append(
            _Round(
                record.round,
                run.closed.get(record.round, math.nan),
                len(record.sites),
                math.fsum(record.seconds.values()),
                traffic.down,
                traffic.up,
                math.fsum(dice) / len(dice) if dice else math.nan,
                ", ".join(f"{site}: {why}" for site, why in sorted([*left_out.items(), *late.items()])),
            )
        )
    return rows


def _warnings(view: Overview, run: RunView | None) -> list[str]:
    found = list(view.notes)
    if run is not None and run.trouble:
        found.append(f"run {run.name}: {run.trouble}")
    if run is not None and run.state == "failed":
        found.append(f"run {run.name} has failed: {run.reason or 'no reason was written down'}")
    if run is not None and run.state in ORDER and view.serving is False:
        found.append(f"run {run.name} waits: no coordinator is serving")
    for site in view.sites:
        if site.state == "registered" and site.online is False and not view.now - site.seen < _SILENT_S:
            when = pages.ago(view.now - site.seen) if math.isfinite(site.seen) else "never"
            found.append(
                f"site {site.name} was last seen {when}" if when != "never" else f"site {site.name} never came"
            )
    return found


def _tone(state: str) -> str:
    return {"running": "good", "finished": "good", "failed": "bad"}.get(state, "off")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(
        prog="python -m wardround.server.status", description="Serve a coordinator's page."
    )
    parser.add_argument("--home", type=Path, required=True, help="the coordinator's folder")
    parser.add_argument("--host", help="where to listen (default: what coordinator.toml says)")
    parser.add_argument("--port", type=int, help="as --host")
    parser.add_argument("--name", action="append", default=[], help="a host name under which the page may be asked for")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        serve(given.home, given.host, given.port, given.name)
    except WardroundError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

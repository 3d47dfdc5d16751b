"""A site's own page: what left and when, what was refused, whether it takes part; and the same for Prometheus.

::

    python -m wardround.client.status --home H

It reads the site's home and writes nothing, needs no agent at work, and shows nothing of any case. It listens on the
machine itself unless it is told otherwise, and answers only requests that read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jinja2
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from wardround import __version__, pages
from wardround.client.gate.approvals import Approval
from wardround.client.gate.codes import SENT, describe
from wardround.client.home import SiteHome
from wardround.client.metrics import exposition
from wardround.client.overview import SiteOverview, read_site, seconds_of
from wardround.errors import UsageError, WardroundError

logger = logging.getLogger(__name__)


def create_app(home: Path) -> FastAPI:
    """The page of the site whose home is `home`, without a guard (:class:`wardround.pages.Guard`)."""
    template = _environment().get_template("site.html")
    app = FastAPI(title="Wardround site", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def page(refresh: Annotated[int | None, Query(ge=5, le=3600)] = None) -> Response:
        view = read_site(SiteHome(home))
        return HTMLResponse(template.render(_context(home, view, refresh)))

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(exposition(read_site(SiteHome(home))), media_type=CONTENT_TYPE_LATEST)

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


def serve(home: Path, host: str = "127.0.0.1", port: int | None = None, names: Sequence[str] = ()) -> None:
    """Serve the page until the process is told to end.

    Parameters
    ----------
    home
        The site's home.
    host, port
        Where to listen; by default on this machine only, and on the port that site.toml says.
    names
        Host names besides ``localhost`` under which the page may be asked for.

    Raises
    ------
    DataError
        If `home` is no site's home.
    UsageError
        If no port was given and site.toml says that there is no page.
    ConnectionFailed
        If the port cannot be opened.
    """
    port = SiteHome(home).settings.status_port if port is None else port
    if port == 0:
        raise UsageError("there is no port for the page", "status-port in site.toml is 0", "set it, or give --port")
    logger.info("the page is at http://%s:%d", host, port)
    pages.run(uvicorn.run, pages.Guard(create_app(home), names), host, port)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pages.template_folders("wardround.client")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        **pages.template_settings(),
    )
    environment.globals.update(pages.template_names(), describe=describe, plain=_plain)
    return environment


def _context(home: Path, view: SiteOverview, refresh: int | None) -> dict[str, Any]:
    account = view.account
    return {
        "home": home,
        "version": __version__,
        "view": view,
        "account": account,
        "refresh": refresh,
        "sent": account.sum_of(direction="out", verdict="allowed", code=SENT),
        "refused": account.sum_of(verdict="refused"),
        "warnings": _warnings(view),
        "ago": lambda entry: pages.ago(view.now - seconds_of(entry)),
        "word": lambda bundle: _word(bundle, view.now),
        "tone": lambda bundle: {"approved": "good", "waits for you": "bad"}.get(_word(bundle, view.now), "off"),
    }


def _warnings(view: SiteOverview) -> list[str]:
    found = list(view.notes)
    seen = view.account.verification
    if not seen.ok:
        where = f" at line {seen.line}" if seen.line else ""
        found.append(f"the ledger is not whole{where}: {seen.problem}")
    for bundle in view.waiting:
        found.append(f"the app bundle {bundle.name} waits for a decision: wardround site approve")
    if view.participation == "paused":
        found.append("the site is paused: rounds go on without it until somebody resumes")
    if view.agent is False and view.participation == "active":
        found.append("the agent is not running, so the site cannot take part: wardround site serve")
    return found


def _word(bundle: Approval, now: float) -> str:
    if bundle.state == "pending":
        return "waits for you"
    return "expired" if bundle.state == "approved" and not bundle.is_valid(now) else bundle.state


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset | set):
        return ", ".join(sorted(map(str, value)))
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m wardround.client.status", description="Serve a site's page.")
    parser.add_argument("--home", type=Path, required=True, help="the site's home")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: what site.toml says")
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

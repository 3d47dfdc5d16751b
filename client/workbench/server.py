"""The workbench over HTTP: one application, and the thread that serves it inside the agent's process.

::

    /                 our page (``static/``), which holds no data
    /api/v1/…         our API
    /info/ …          the MONAI Label protocol, at the paths that viewers know
    /health           whether it is there, for whoever watches
    /openapi.json     all of it, for those who are signed in
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from wardround import __version__
from wardround.client.cases.dicom.archives import read_password
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.workbench import notation, oidc, own, people
from wardround.client.workbench.access import Access
from wardround.client.workbench.accounts import Accounts, Person
from wardround.client.workbench.connections import MOST, Connection, HallServer
from wardround.client.workbench.entrance import Entrance
from wardround.client.workbench.errors import handle_errors, note
from wardround.client.workbench.events import Events
from wardround.client.workbench.monai_label import make_router
from wardround.client.workbench.provider import Provider
from wardround.client.workbench.settings import Endpoint
from wardround.client.workbench.studio import Studio
from wardround.listening import bind, modern

log = logging.getLogger(__name__)

STATIC = Path(str(files("wardround.client.workbench").joinpath("static")))
_GRACE_S = 5
_STOPPED_WITHIN_S = 20.0


def create_app(
    home: SiteHome,
    studio: Studio,
    store: CaseStore,
    accounts: Accounts,
    *,
    endpoint: Endpoint,
    export: own.Export | None = None,
    static: Path = STATIC,
) -> FastAPI:
    """All that people and viewers can ask for, behind the one entrance.

    Parameters
    ----------
    home
        Of the site.
    studio, store
        Benches and cases.
    accounts
        Who may come in.
    endpoint
        Where it is going to be served.
    export
        Sends an author's label of a case to the archive; None where there is none.
    static
        Folder of the page.

    Raises
    ------
    DataError, StorageError
        If the secret or the authority of the hospital's sign-in service cannot be used.

    Returns
    -------
    FastAPI
        ``state.events`` is what :meth:`Server.stop` ends, ``state.access`` the door.
    """
    app = FastAPI(title="Wardround workbench", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    settings = home.workbench
    service = settings.oidc
    provider = None
    if service is not None:
        ca = home.path / service.ca if service.ca else None
        provider = Provider(service, read_password(home.oidc_secret), ca)
    passwords = service is None or service.passwords
    access = Access(accounts, secure=endpoint.certificate is not None, passwords=passwords)
    events = Events(studio)
    app.state.events, app.state.access, app.state.provider = events, access, provider
    handle_errors(app)
    app.add_middleware(
        Entrance,
        access=access,
        names=endpoint.names,
        secure=endpoint.certificate is not None and not endpoint.made,
    )
    app.include_router(oidc.make_router(access, accounts, service, provider))
    app.include_router(people.make_router(access, accounts))
    app.include_router(
        own.make_router(
            studio,
            store,
            access,
            site=home.settings.name,
            review=settings.review,
            ohif=bool(settings.ohif),
            events=events,
            export=export,
        )
    )
    app.include_router(make_router(studio, store, home, access))
    _describe_drawings(app)

    @app.get("/health", summary="Whether the workbench is there", response_class=PlainTextResponse)
    def health() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/openapi.json", summary="This description")
    def description(person: Annotated[Person, Depends(access.require())]) -> Response:
        return JSONResponse(app.openapi())

    if (static / "index.html").is_file():
        app.mount("/", _Page(directory=static, html=True), name="page")
    else:
        app.add_api_route("/", _no_page, methods=["GET"], include_in_schema=False)
    return app


def _describe_drawings(app: FastAPI) -> None:
    """A drawing is read by us, not by FastAPI, which would describe it otherwise."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        found = describe()
        found["components"]["schemas"].update(notation.draw_schemas())
        return found

    app.openapi = described  # type: ignore[method-assign]


class Server:
    """Serves an application in a thread of its own, until it is stopped.

    Parameters
    ----------
    app
        Made by :func:`create_app`.
    endpoint
        Where. Port 0 takes any that is free.

    Raises
    ------
    ConnectionFailed
        If the port cannot be had.
    """

    def __init__(self, app: FastAPI, endpoint: Endpoint) -> None:
        self._events: Events = app.state.events
        self._provider: Provider | None = app.state.provider
        self._socket = bind(
            endpoint.host,
            endpoint.port,
            who="the workbench",
            fix="end what uses the port, or choose another `port` under [workbench] in site.toml",
        )
        self.port: int = self._socket.getsockname()[1]
        tls: Mapping[str, Any] = {}
        if endpoint.certificate is not None:
            tls = {"ssl_certfile": endpoint.certificate, "ssl_keyfile": endpoint.key}
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            # Nobody's word about who the client is.
            proxy_headers=False,
            ws="none",
            lifespan="off",
            http=Connection,
            limit_concurrency=MOST,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GRACE_S,
            **tls,
        )
        config.load()
        modern(config.ssl)
        self._server = HallServer(config)
        self._thread = threading.Thread(target=self._run, name="workbench", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._socket.listen(MOST)  # From now on nobody is turned away; who comes early waits.
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; requests under way get a few seconds."""
        self._events.end()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOPPED_WITHIN_S)
        self._socket.close()
        if self._provider is not None:
            self._provider.close()
        if self._thread.is_alive():
            log.warning("the workbench did not stop in time")

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of a thread, nobody would hear of it
            note(error)
        if not self._server.should_exit:
            log.error("the workbench has ended by itself; the agent goes on without it: restart `wardround site serve`")


@contextmanager
def serving(app: FastAPI, endpoint: Endpoint) -> Iterator[Server]:
    """A server that answers as long as the block lasts."""
    for name in ("httpx", "httpcore"):
        # They write down addresses of what is asked for, and those of an archive hold UIDs.
        logging.getLogger(name).setLevel(logging.WARNING)
    server = Server(app, endpoint)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Page(StaticFiles):
    """Our page. A browser may keep its files, and asks each time whether they are still the same."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.setdefault("cache-control", "no-cache")
        return response


def _no_page() -> Response:
    return HTMLResponse("<!doctype html><title>Wardround</title><p>This build has no page. The API is there.")

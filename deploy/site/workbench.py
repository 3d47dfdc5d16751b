"""The workbench of a site that is served, inside the agent's process: both share the device and the cases."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from wardround.client.agent import Agent
from wardround.client.cases.dicom.export import export_label
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.server import create_app, serving
from wardround.client.workbench.settings import endpoint
from wardround.client.workbench.studio import Studio

log = logging.getLogger(__name__)


@contextmanager
def workbench(home: SiteHome, agent: Agent) -> Iterator[None]:
    """Serve the workbench that site.toml describes as long as the block lasts.

    Raises
    ------
    ConnectionFailed
        If its port is taken.
    DataError, StorageError
        If its certificate, its accounts or the store cannot be used.
    """
    place = endpoint(home)
    accounts = Accounts(home.accounts)
    with ExitStack() as stack:
        store = stack.enter_context(CaseStore(home.site / STORE))
        studio = Studio(home, store, agent.device, torch_device=home.settings.device, federation=lambda: agent.working)
        stack.callback(studio.close_all)
        register = stack.enter_context(Register(home.site / FOLDER))
        export = partial(export_label, home, store, register) if home.pacs else None
        app = create_app(home, studio, store, accounts, endpoint=place, export=export)
        stack.enter_context(serving(app, place))
        log.info("the workbench is at %s", place.url)
        if place.made:
            log.info("its certificate was made here; compare in the browser, SHA-256: %s", place.fingerprint)
        if not accounts.listing():
            log.warning("nobody has an account yet: wardround site account add")
        yield

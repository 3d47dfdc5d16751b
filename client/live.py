"""A live site, opened for its agent."""

from collections.abc import Iterator
from contextlib import contextmanager

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.removal import finish_removal
from wardround.client.round_cases import RoundCases
from wardround.client.site import Charging, Site


@contextmanager
def open_live_site(home: SiteHome, charge: Charging | None = None) -> Iterator[Site]:
    """The site below `home`, with the annotator and the device that its settings name.

    Its rounds learn from what people drew and accepted (or a reviewer approved, where the settings say so), and from
    the labels that were imported with the other cases. Steps of rounds that keep cases private are charged to `charge`;
    without it such rounds are refused.

    Raises
    ------
    DataError
        If there is no site.
    StorageError
        If its store cannot be read.
    UsageError
        If its device is not there.
    """
    settings = home.settings
    with CaseStore(home.site / STORE) as store:
        finish_removal(home, store)
        cases = RoundCases(store, home.workbench.review)
        site = Site.open(
            home.site,
            annotator=SimulatedAnnotator(lambda case_id: Truth(cases.label(case_id))),
            device=settings.device,
            cases_per_round=settings.cases_per_round,
            round_cases=cases,
            charge=charge,
        )
        try:
            yield site
        finally:
            site.close()

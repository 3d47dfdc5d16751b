"""A live site, opened for its agent."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.arrivals import IMPORTED
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.site import Site
from wardround.errors import DataError

_LABELS_IN_MEMORY = 8


@contextmanager
def open_live_site(home: SiteHome) -> Iterator[Site]:
    """The site below `home`, with the annotator and the device that its settings name.

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
    with CaseStore(home.site / STORE) as labels:
        site = Site.open(
            home.site,
            annotator=_labels_annotator(labels),
            device=settings.device,
            cases_per_round=settings.cases_per_round,
        )
        try:
            yield site
        finally:
            site.close()


def _labels_annotator(store: CaseStore) -> SimulatedAnnotator:
    @functools.lru_cache(maxsize=_LABELS_IN_MEMORY)
    def truth(case_id: str) -> Truth:
        label = store.label(case_id, IMPORTED)
        if label is None:
            raise DataError("a case has no imported label", "it was imported without one", "import its label")
        return Truth(label)

    return SimulatedAnnotator(truth)

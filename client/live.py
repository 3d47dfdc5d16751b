"""A live site, opened for its agent."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.arrivals import IMPORTED
from wardround.client.cases.nifti import check_classes
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
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
    with CaseStore(home.site / STORE) as store:
        imported = _imported_labels(store)
        site = Site.open(
            home.site,
            annotator=SimulatedAnnotator(lambda case_id: Truth(imported(case_id))),
            device=settings.device,
            cases_per_round=settings.cases_per_round,
            # Whole, and not slice by slice as they are asked for: whether a round fails must not depend on these.
            check=lambda case_id, plan: check_classes(
                imported(case_id), plan.labels, f"the imported label of case {case_id}"
            ),
        )
        try:
            yield site
        finally:
            site.close()


def _imported_labels(store: CaseStore) -> Callable[[str], Volume]:
    @functools.lru_cache(maxsize=_LABELS_IN_MEMORY)
    def imported(case_id: str) -> Volume:
        label = store.label(case_id, IMPORTED)
        if label is None:
            raise DataError("a case has no imported label", "it was imported without one", "import its label")
        return label

    return imported

"""Taking a case out of a site: image, labels, drawings, its entry in the register of DICOM, and what is remembered.

What a round has learnt from it stays learnt, but no later one rehearses it; a round that is under way and would may
fail, and is asked for again. The ledger of what came in and left is never changed. Which case goes is written down
first: a crash on the way leaves a removal that the next start brings to its end.
"""

import json
import logging

from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.errors import DataError
from wardround.files import write_text

log = logging.getLogger(__name__)

_INTENT = "removing.json"


def remove_case(home: SiteHome, store: CaseStore, case_id: str) -> None:
    """Remove a case with everything that the site's store, register and memories of runs and benches hold of it.

    Raises
    ------
    DataError
        If there is no such case.
    StorageError
        If the disk is full or not writable.
    """
    finish_removal(home, store)
    if case_id not in store.cases():
        raise DataError(
            f"there is no case {case_id}", "it was never imported, or it is removed already", "check the id"
        )
    write_text(home.site / _INTENT, json.dumps({"case": case_id}))
    finish_removal(home, store)


def finish_removal(home: SiteHome, store: CaseStore) -> None:
    """Bring a removal that was interrupted to its end; nothing happens where there is none.

    Raises
    ------
    StorageError
        If the disk is not writable, or what is stored is damaged.
    """
    from wardround.client.cases.dicom.register import FOLDER, Register
    from wardround.client.learning.replay import remove_remembered

    intent = home.site / _INTENT
    try:
        case_id = str(json.loads(intent.read_text(encoding="utf-8"))["case"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("a removal cannot be brought to its end, since what it was cannot be read; remove the case again")
        intent.unlink(missing_ok=True)
        return
    store.remove(case_id)
    if (home.site / FOLDER).exists():
        with Register(home.site / FOLDER) as register:
            register.forget(case_id)
    # After the store: what a round would remember of it from now on is no longer in there, and is left out.
    for kind in ("runs", "benches"):
        for memory in home.site.glob(f"{kind}/[!.]*/memory"):
            remove_remembered(memory, case_id)
    intent.unlink(missing_ok=True)

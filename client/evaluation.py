"""Scores of a network on a site's held-back cases: case by case for the site, as means for a coordinator."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wardround.client.arrivals import REFERENCE
from wardround.client.cases.nifti import check_classes
from wardround.client.cases.store import CaseStore
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import StructureScore, score
from wardround.errors import DataError
from wardround.strategies.plan import RoundPlan


def score_cases(
    learner: OnlineLearner,
    store: CaseStore,
    tests: Sequence[str],
    plan: RoundPlan,
    between: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Predict every test case and hold it against its reference label.

    Parameters
    ----------
    learner
        Predicts.
    store
        Holds images and reference labels.
    tests
        Ids of the cases.
    plan
        Says how many labels there are.
    between
        Called before every case.

    Returns
    -------
    list of dict
        For each case its id (``case``), and ``dice``, ``hd95_mm`` and ``assd_mm`` by structure, ``"1"`` and up; None
        where there is nothing to measure.

    Raises
    ------
    DataError
        If there is no test case, or one has no reference label.
    LabelError
        If a reference holds structures that the plan does not know.
    """
    if not tests:
        raise DataError("there is nothing to evaluate on", "the site has no test case", "hold some cases back")
    rows = []
    for case_id in tests:
        between()
        image = store.image(case_id)
        reference = store.label(case_id, REFERENCE)
        if reference is None:
            raise DataError("a test case has no reference label", "it was imported without one", "import it again")
        check_classes(reference, plan.labels, f"the reference label of case {case_id}")
        labels = learner.predict(normalise(image.array)).argmax(axis=0).astype(np.uint8)
        truth = reference.array.astype(np.uint8)
        scores = {str(n): score(labels, truth, n, image.spacing) for n in range(1, plan.labels)}
        rows.append({"case": case_id} | _columns(scores))
    return rows


def means_of(rows: Sequence[Mapping[str, Any]], plan: RoundPlan) -> dict[str, float | list[float]]:
    """What a coordinator may know of scores: their number (``num-examples``), ``dice-1`` …, and the mean of these."""
    means = {f"dice-{n}": _mean([row["dice"][str(n)] for row in rows]) for n in range(1, plan.labels)}
    return {"num-examples": float(len(rows)), "dice": _mean(list(means.values())), **means}


def _mean(values: list[Any]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def _columns(scores: Mapping[str, StructureScore]) -> dict[str, Any]:
    """Scores by metric, then by structure; None where there is nothing to measure."""

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    names = ("dice", "hd95_mm", "assd_mm")
    return {name: {label: known(getattr(found, name)) for label, found in scores.items()} for name in names}

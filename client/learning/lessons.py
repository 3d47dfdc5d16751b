"""One case of a round from its opening to its end: with an annotator who is asked, or along what a person drew."""

from wardround.client.annotation.annotator import Annotator
from wardround.client.annotation.prompts import Prompt, SliceRequest
from wardround.client.cases.drawings import Drawing
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.session import CaseSession


def learn_with(work: OnlineRound, session: CaseSession, annotator: Annotator) -> bool:
    """Annotate one case in the plan's rounds, learn after each, and accept it.

    Parameters
    ----------
    work
        The round; no case is open in it.
    session
        Not open yet.
    annotator
        Is asked for what the plan says: slices, strokes on them, or points.

    Returns
    -------
    bool
        As :meth:`wardround.client.learning.round.OnlineRound.accept`.
    """
    if work.plan.supervision == "dense":
        with work.phase("annotate"):
            requests = [SliceRequest(2, k) for k in range(*session.depth)]
            session.dense = tuple(annotator.draw(session.case_id, request) for request in requests)
    work.open(session)
    for step in range(work.plan.annotation_rounds):
        ask = _points if work.plan.asked_for == "points" else _slices
        work.step(session, ask(work, session, annotator, step))
    return work.accept(session)


def live_through(work: OnlineRound, session: CaseSession, drawing: Drawing) -> None:
    """Learn a case from what a person drew on it, in the order in which it was drawn, and accept it."""
    work.open(session)
    groups = drawing.in_groups(work.plan.annotation_rounds)
    for number, drawn in enumerate(groups, start=1):
        session.unfinished = number < len(groups)
        work.step(session, drawn)
    work.accept(session)


def _slices(work: OnlineRound, session: CaseSession, annotator: Annotator, step: int) -> list[Prompt]:
    """This round's slices, drawn or scribbled on."""
    with work.phase("predict"):
        requests = session.suggest(step)
    draw = annotator.strokes if work.plan.asked_for == "scribbles" else annotator.draw
    with work.phase("annotate"):
        return [draw(session.case_id, request) for request in requests]


def _points(work: OnlineRound, session: CaseSession, annotator: Annotator, step: int) -> list[Prompt]:
    """Seven points a structure in the first round, one more in each of the others."""
    if not step:
        with work.phase("annotate"):
            return list(annotator.points(session.case_id))
    with work.phase("predict"):
        where = session.suggest_point()
    with work.phase("annotate"):
        return [] if where is None else [annotator.label_at(session.case_id, where)]

"""What the studio tells those who serve it: frozen values without a network, a lock or a file behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.point_sets import PointSets
from wardround.client.annotation.prompts import Annotations, SliceRequest
from wardround.strategies.plan import Prompts

Federation = Literal["idle", "train", "evaluate"]
Source = Literal["proxy", "prediction"]
Strategy = Literal["disagreement", "random", "first"]
CaseState = Literal["new", "open", "skipped", "accepted", "rejected", "approved"]
TrainStatus = Literal["SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"]

STATES: tuple[CaseState, ...] = ("new", "skipped", "open", "rejected", "accepted", "approved")
"""From the least to the furthest: a case with several authors is where the furthest of them is."""
STRATEGIES: tuple[Strategy, ...] = ("disagreement", "random", "first")


@dataclass(frozen=True)
class CaseView:
    """One line of a work list.

    Parameters
    ----------
    id
        Which case.
    shape
        ``(I, J, K)`` in voxels.
    spacing
        Millimetres between voxel centres along i, j, k.
    state
        Of the furthest of its authors, ``new`` without any.
    mine
        Of the one who asks.
    authors
        Who drew on it, in alphabetical order.
    effort
        Of the one who asks, in contour pixels.
    role
        ``stream`` or ``test``.
    """

    id: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    state: CaseState
    mine: CaseState
    authors: tuple[str, ...]
    effort: float
    role: str


@dataclass(frozen=True)
class Progress:
    """What the model behind a person's drawing is and does.

    Parameters
    ----------
    model
        First 12 hexadecimal digits of the digest of the global weights that the bench stands on; of the weights that
        a network begins with where the site saw no round yet.
    run, round
        Of the federation's plan that the bench stands on; an empty name and 0 where there was none.
    learning
        Whether updates run, or wait to run.
    updates_done
        Updates since the bench was opened.
    updates_left
        Updates that are asked for and not done.
    federation
        What the site does for the federation at this moment.
    """

    model: str
    run: str
    round: int
    learning: bool
    updates_done: int
    updates_left: int
    federation: Federation


@dataclass(frozen=True, eq=False)
class Answer:
    """What a person sees after a stroke.

    Parameters
    ----------
    case_id
        Which case.
    step
        How many drawings were answered, undone ones left out.
    can_undo, can_redo
        Whether there is a step to take back, or one that was taken back.
    suggestion
        Slices to draw next, the most telling first; empty where none is left.
    effort_contour, effort_strict
        What was drawn, in contour pixels, by both counts.
    effort_share
        `effort_contour` over that of drawing every axial slice of the object as the proxy has it, of the prediction
        before anything was drawn; 0 where there is no object. No ground truth is involved.
    changed
        Share of the label voxels, of the last answer and this one together, that changed; 0 for the first answer.
    versions
        Of every layer that there is, by name.
    latency_ms
        Wall time of this answer: ``wait`` (for the bench), ``propagate``, ``suggest``, ``encode``, ``persist`` and
        ``total``; after opening also ``load`` and ``predict``.
    progress
        Of the bench.
    annotations
        All that is drawn, as it stands.
    prompts
        What the plan asks for.
    points
        How the points are read where it asks for them; empty elsewhere.
    """

    case_id: str
    step: int
    can_undo: bool
    can_redo: bool
    suggestion: tuple[SliceRequest, ...]
    effort_contour: float
    effort_strict: float
    effort_share: float
    changed: float
    versions: Mapping[str, int]
    latency_ms: Mapping[str, float]
    progress: Progress
    annotations: Annotations
    prompts: Prompts = "slices"
    points: PointSets = field(default_factory=PointSets)


@dataclass(frozen=True)
class Outcome:
    """How a case was closed.

    Parameters
    ----------
    case_id
        Which case.
    state
        Of the one who closed it.
    kept
        Whether what was learnt from it stayed; None while that is judged, or where nothing is learnt.
    next
        The case to go on with, None where none is left.
    """

    case_id: str
    state: CaseState
    kept: bool | None
    next: str | None


@dataclass(frozen=True, eq=False)
class Inference:
    """Labels without a session.

    Parameters
    ----------
    labels
        ``[I, J, K]``, uint8: the proxy where prompts were given, else the prediction.
    latency_ms
        ``load``, ``predict``, ``propagate``, ``total``.
    progress
        Of the bench that answered.
    """

    labels: npt.NDArray[np.uint8]
    latency_ms: Mapping[str, float]
    progress: Progress


@dataclass(frozen=True)
class TrainView:
    """A rehearsal that somebody asked for.

    Parameters
    ----------
    id
        Of the task, a UUID.
    status
        In MONAI Label's words.
    started, ended
        Seconds since 1970; None before.
    lines
        What happened, oldest first; never empty.
    """

    id: str
    status: TrainStatus
    started: float | None
    ended: float | None
    lines: tuple[str, ...]

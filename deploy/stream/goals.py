"""What a stream shows, each line against its goal where one is set."""

import math
from dataclasses import dataclass

from wardround.deploy.report.results import Results
from wardround.deploy.report.summary import GoalLine, signed
from wardround.deploy.stream.arms import DENSE
from wardround.deploy.stream.settings import told_plan_field
from wardround.deploy.stream.summary import (
    SHARE_OF_DENSE,
    Point,
    against,
    curves,
    dense_point,
    last_steps,
    partner,
    reaches,
    runs_by_name,
)
from wardround.deploy.stream.transfer import forgetting
from wardround.strategies.plan import CERTAINTY, FORMERLY_PARTIAL

PROXY = "proxy"


@dataclass(frozen=True)
class StreamTargets:
    """Goals of a stream; what is NaN is told for the record only.

    Parameters
    ----------
    family
        The arm that is held to them.
    effort
        Largest effort (0 … 1) at which it is compared with dense labels.
    dense_margin
        Dice points that it may stay below them there.
    slices_margin
        Dice points that it has to lie above an arm which learns from the same number of drawn slices alone.
    total_effort
        No run that draws slices may pay more, as a mean over its cases.
    share_effort
        Largest effort at which :data:`SHARE_OF_DENSE` of the Dice on dense labels is reached.
    backward
        Least backward transfer in Dice points, of a stream that is ordered by site.
    backward_families
        The arms that are held to it.
    """

    family: str = PROXY
    effort: float = math.nan
    dense_margin: float = math.nan
    slices_margin: float = math.nan
    total_effort: float = math.nan
    share_effort: float = math.nan
    backward: float = math.nan
    backward_families: tuple[str, ...] = (PROXY,)


def stream_goals(results: Results, targets: StreamTargets | None = None) -> list[GoalLine]:
    """What the stream shows about one arm.

    Returns
    -------
    list of GoalLine
        Only lines for which the run holds both sides. Against dense labels the goal counts at the largest budget within
        the effort; the smaller ones are for the record.
    """
    wanted = targets or StreamTargets()
    return [
        *_against_dense(results, wanted),
        *_against_slices(results, wanted),
        *_efforts(results, wanted),
        *_transfer(results, wanted),
    ]


def _against_dense(results: Results, targets: StreamTargets) -> list[GoalLine]:
    dense = dense_point(results)
    if dense is None:
        return []
    curve = curves(results).get(targets.family, [])
    within = [point for point in curve if not point.effort.mean > targets.effort]
    lines = []
    if curve and not within:
        text = f"no budget of {targets.family} stays within an effort of {targets.effort:.2f}"
        lines.append(
            GoalLine(f"{targets.family} − {dense.name}", math.nan, -targets.dense_margin, "points", False, text)
        )
    for point in curve:
        found = against(results, point.name, dense.name)
        if found is None:
            continue
        judged = bool(within) and point is max(within, key=lambda item: item.budget)
        goal = -targets.dense_margin if judged else math.nan
        text = f"{found.text()} Dice points over {found.cases} test cases at effort {point.effort.mean:.3f}"
        text += f"; {_weights(results, point, dense)}"
        lines.append(_line(f"{point.name} − {dense.name}", found.mean, goal, "points", text, at_least=True))
    return lines


def _weights(results: Results, point: Point, dense: Point) -> str:
    """In what the voxel weights of a run differ from those of dense labels, which are certain everywhere."""
    doubt = float(told_plan_field(results.settings, point.family, "confidence_weight"))
    off = "1"
    if told_plan_field(results.settings, point.family, "supervision") in ("partial", FORMERLY_PARTIAL):
        off = "0"
    elif doubt > 0:
        off = f"confidence^{CERTAINTY}" if doubt == 1 else f"{1 - doubt:g} + {doubt:g} · confidence^{CERTAINTY}"
    return (
        f"off the drawn slices each voxel weighs 1 for {dense.name} and {off} for {point.name}, on them 1 + λ for both "
        f"({dense.budget} slices for {dense.name}, {point.budget} for {point.name})"
    )


def _against_slices(results: Results, targets: StreamTargets) -> list[GoalLine]:
    lines = []
    for point in curves(results).get(targets.family, ()):
        name = partner(results, point)
        found = against(results, point.name, name) if name else None
        if found is not None:
            text = f"{found.text()} Dice points over {found.cases} test cases at effort {point.effort.mean:.3f}"
            title = f"{point.name} − {name}"
            lines.append(_line(title, found.mean, targets.slices_margin, "points", text, at_least=True))
    return lines


def _efforts(results: Results, targets: StreamTargets) -> list[GoalLine]:
    lines = []
    drawing = [p for family, own in curves(results).items() if family != DENSE for p in own]
    if drawing:
        most = max(drawing, key=lambda point: point.effort.mean)
        text = f"{most.effort.mean:.3f} of contouring every slice, mean over cases, at most, by {most.name}"
        text += _above(results, most, targets.total_effort)
        title = "largest total effort, mean over cases"
        lines.append(_line(title, most.effort.mean, targets.total_effort, "share", text, at_least=False))
    for item in reaches(results):
        if item.family == targets.family:
            title = f"effort at {SHARE_OF_DENSE:.0%} of dense, {item.family}"
            text = f"{item.text()} for a Dice of {item.level:.3f}"
            lines.append(_line(title, item.effort, targets.share_effort, "share", text, at_least=False))
    return lines


def _above(results: Results, point: Point, limit: float) -> str:
    """How many streamed cases of a run cost more than `limit`, over its seeds."""
    efforts = [item.effort for result in runs_by_name(results)[point.name] for item in last_steps(result)]
    known = [effort for effort in efforts if math.isfinite(effort)]
    if not known or not math.isfinite(limit):
        return ""
    share = sum(effort > limit for effort in known) / len(known)
    return f"; {share:.0%} of its streamed cases lie above {limit:.2f}"


def _transfer(results: Results, targets: StreamTargets) -> list[GoalLine]:
    families = {result.arm: result.family for result in results.arms}
    return [
        _line(
            f"backward transfer, {item.name}",
            100 * item.backward.mean,
            targets.backward if families[item.name] in targets.backward_families else math.nan,
            "points",
            f"{item.backward.points()} Dice points; average Dice {item.average.text()}",
            at_least=True,
        )
        for item in forgetting(results)
    ]


def _line(title: str, value: float, goal: float, unit: str, text: str, *, at_least: bool) -> GoalLine:
    if not math.isfinite(goal):
        return GoalLine(title, value, goal, unit, None, text)
    met = value >= goal if at_least else value <= goal
    shown = signed(goal) if unit == "points" else f"{goal:.2f}"
    return GoalLine(title, value, goal, unit, met, f"{text}, goal {'≥' if at_least else '≤'}\u00a0{shown}")

"""What a simulation sees that no hospital would: every step of every interaction beside the truth.

An observer scores and records. Nothing that it knows flows back: a site keeps the returned numbers in its own history,
and the learner never receives the observer.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.annotator import SimulatedAnnotator
from wardround.client.annotation.effort import effort_of
from wardround.client.learning.metrics import mean_dice
from wardround.client.site import Interaction
from wardround.deploy.report.examples import Example, save_example

Labels = npt.NDArray[np.uint8]
PLANES = ("i", "j", "k")


class TruthObserver:
    """Scores each interaction step against the truth and keeps a few slices to look at.

    Parameters
    ----------
    truth
        Case → its label map ``[I, J, K]``, uint8.
    annotator
        Knows what drawing everything would have cost.
    labels
        Number of classes including background.
    examples
        Where example slices go; None to keep none.
    example_rounds
        From which rounds: one slice for each site in each of them, of its first case in that round.
    last_step
        Number of annotation rounds a case; examples are taken after the last.
    listen
        Called with every interaction and its scores, for instance to show progress; may raise to stop the run.
    """

    def __init__(
        self,
        truth: Callable[[str], Labels],
        annotator: SimulatedAnnotator,
        labels: int,
        *,
        examples: Path | None = None,
        example_rounds: frozenset[int] = frozenset(),
        last_step: int = 1,
        listen: Callable[[Interaction, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._truth = truth
        self._annotator = annotator
        self._labels = labels
        self._examples = examples
        self._example_rounds = example_rounds
        self._last_step = last_step
        self._listen = listen
        self._shown: set[tuple[str, int]] = set()

    def observe(self, interaction: Interaction) -> Mapping[str, Any]:
        """Score one step.

        Returns
        -------
        Mapping
            ``effort`` and ``strict_effort``, shares of drawing every slice (0 … 1); ``proxy_dice`` and ``model_dice``,
            means over structures; None where there is nothing to score; ``slices``, ``scribbles`` and ``points``, how
            many were drawn, scribbled on and clicked.
        """
        truth = self._truth(interaction.case_id)
        effort = effort_of(interaction.annotations, *self._annotator.full_effort(interaction.case_id))
        predicted = interaction.prediction.argmax(axis=0).astype(np.uint8)
        proxy = None if interaction.proxy is None else interaction.proxy.labels
        scores = {
            "effort": effort.contour,
            "strict_effort": effort.strict,
            "proxy_dice": None if proxy is None else _number(mean_dice(proxy, truth, self._labels)),
            "model_dice": _number(mean_dice(predicted, truth, self._labels)),
            "slices": len(interaction.annotations.slices),
            "scribbles": len({(stroke.axis, stroke.index) for stroke in interaction.annotations.scribbles}),
            "points": len(interaction.annotations.points),
        }
        self._keep_example(interaction, truth, predicted)
        if self._listen is not None:
            self._listen(interaction, scores)
        return scores

    def _keep_example(self, interaction: Interaction, truth: Labels, predicted: Labels) -> None:
        key = (interaction.site, interaction.round)
        if self._examples is None or interaction.round not in self._example_rounds or key in self._shown:
            return
        if interaction.step != self._last_step or interaction.proxy is None or interaction.residual is None:
            return
        self._shown.add(key)
        # The axial slice that holds most of the object; shown with rows along j, as a viewer would.
        k = int((truth > 0).sum(axis=(0, 1)).argmax())
        example = Example(
            image=interaction.image.array[:, :, k].T.astype(np.float32),
            truth=truth[:, :, k].T,
            proxy=interaction.proxy.labels[:, :, k].T,
            prediction=predicted[:, :, k].T,
            residual=interaction.residual[:, :, k].T,
            title=f"{interaction.site}, round {interaction.round}, slice k = {k}",
            drawn=tuple(f"{PLANES[p.axis]} = {p.index}" for p in interaction.annotations.slices[:32]),
            spacing=(interaction.image.spacing[1], interaction.image.spacing[0]),
        )
        save_example(self._examples / f"{interaction.site}-round{interaction.round:05d}.npz", example)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

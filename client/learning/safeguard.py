"""Protection of what was learnt: a case whose updates make the model worse on remembered ones is taken back.

A slip of the pen, a case in the wrong order of axes or a label map that belongs to another patient is learnt like any
other, and at the learning rate of an online learner one such case can undo the work of many. Before a case's updates
the model is therefore scored on a few remembered cases, against the targets that were stored with them, and again
after. No truth is involved: the annotator's accepted work judges.

What this cannot tell apart is a wrong case and a right one that is unlike all before it, such as the first of another
scanner: if learning it costs more on the old cases than the plan allows, it is refused as well. Its label is kept.

As a refusal leaves the model exactly as it was, a site that changes its scanner for good would be refused every case
from then on. Refusals in a row are therefore counted, from round to round. One wrong case is an accident; a third in a
row is a change of the world: after :data:`PATIENCE` refusals in a row the next case is accepted whatever the judges
say, and the count starts again. The price is that the third of three wrong cases in a row is learnt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.metrics import mean_dice
from wardround.client.learning.replay import ReplayMemory, Sample

# Mean Dice on the remembered cases from which a model counts as one that works: below, there is little to lose, and a
# young model's scores go up and down by more than any sensible tolerance.
WORKING = 0.5
# Refusals in a row after which the next case is accepted.
PATIENCE = 2

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Safeguard:
    """The remembered cases that judge one new case, and how the model did on them before it.

    Parameters
    ----------
    samples
        Distinct remembered cases; empty where there is nothing to judge by.
    before
        Dice of the model on each of them before the case's first update, 0 … 1.
    labels
        Number of classes including background.
    """

    samples: tuple[Sample, ...]
    before: Scores
    labels: int

    @classmethod
    def before_case(
        cls,
        case_id: str,
        learner: OnlineLearner,
        memory: ReplayMemory,
        *,
        count: int,
        labels: int,
        rng: np.random.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> "Safeguard":
        """Choose the judges of `case_id` and score the model on them.

        It takes `count` remembered cases other than the case itself, or as many as the memory has room for. Where
        fewer are remembered yet, nobody judges: the mean over one or two cases says little.

        Parameters
        ----------
        case_id
            The new case.
        learner
            As it is before the first update on the case.
        memory
            Accepted cases with their stored targets.
        count
            Judges; 0 for none.
        labels
            Number of classes including background.
        rng
            Chooses the judges. It must not be the one that training draws from, so that a check which finds nothing
            leaves no trace.
        between
            Called before every prediction: others may use the device before it returns.
        """
        names = [name for name in memory.reservoir.kept if name != case_id]
        count = min(count, memory.reservoir.capacity)
        if not 0 < count <= len(names):
            return cls((), np.zeros(0), labels)
        chosen = rng.choice(len(names), size=count, replace=False)
        samples = tuple(memory.sample(names[int(index)]) for index in chosen)
        return cls(samples, stored_dice(learner, samples, labels, between), labels)

    @property
    def judges(self) -> bool:
        """Whether there is something to judge by: remembered cases, on which the model worked."""
        return len(self.samples) > 0 and float(self.before.mean()) >= WORKING

    def fall(self, learner: OnlineLearner, between: Callable[[], None] = lambda: None) -> float:
        """By how much the mean Dice on the judges has fallen since; 0 where nobody judges, negative where it rose."""
        if not self.judges:
            return 0.0
        return float((self.before - stored_dice(learner, self.samples, self.labels, between)).mean())


def stored_dice(
    learner: OnlineLearner, samples: Sequence[Sample], labels: int, between: Callable[[], None] = lambda: None
) -> Scores:
    """Thresholded Dice of the model against the stored target of each sample, mean over its structures.

    Only voxels that the learner was given a weight for count, so that a target known on a few slices is compared on
    these. A structure that is absent from both is left out; a sample without any counts 1.

    Returns
    -------
    ndarray
        ``[len(samples)]``, 0 … 1.
    """
    scores = []
    for sample in samples:
        between()
        known = sample.weight > 0
        predicted = np.where(known, learner.predict(sample.image).argmax(axis=0), 0).astype(np.uint8)
        target = np.where(known, sample.target.argmax(axis=0), 0).astype(np.uint8)
        found = mean_dice(predicted, target, labels)
        scores.append(1.0 if np.isnan(found) else found)
    return np.array(scores, dtype=np.float64)

"""Who is in which stage, and the slices of a case on the grid of networks and generators.

Cases of one person never serve two stages. Judge and held-out cases are the same under every seed; the labelled ones
are drawn by seed, one a person, and fewer are a part of more.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from weak.labels import samples, split_of

from imagined.arms import VALIDATION_CASES, Recipe
from wardround.client.cases.dataset import Dataset
from wardround.client.learning.replay import Sample
from wardround.client.synthesis.pairs import Pair, pairs_of


@dataclass(frozen=True)
class Deal:
    """Case ids by what is done with them; no two parts share a person.

    Parameters
    ----------
    training, validation
        Of the k labelled cases: all in the one and none in the other, unless some are set aside.
    judge
        What the network learns from that says what synthetic images show.
    held_out
        What nothing learns from: real images to compare with.
    test
        For the final Dice.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    judge: tuple[str, ...]
    held_out: tuple[str, ...]
    test: tuple[str, ...]

    def described(self) -> dict[str, list[str]]:
        """As plain values."""
        return {stage: list(cases) for stage, cases in asdict(self).items()}

    @property
    def labelled(self) -> tuple[str, ...]:
        """All k."""
        return self.training + self.validation


def deal(dataset: Dataset, recipe: Recipe, k: int, seed: int, *, apart: bool, inner: bool) -> Deal:
    """Cases for one run.

    Parameters
    ----------
    dataset
        With a ``split.json``.
    recipe
        Says how many judge, are held out and, where settings are chosen, test.
    k
        Labelled cases.
    seed
        Draws them.
    apart
        Set one in :data:`VALIDATION_CASES` of them aside for validation.
    inner
        Test on training cases, and leave the test cases alone.

    Raises
    ------
    SystemExit
        If there are not as many people.
    """
    split = split_of(dataset.root, inner=False)
    people: dict[str, list[str]] = {}
    for case in split.train:
        people.setdefault(dataset.subjects[case], []).append(case)
    names = sorted(people)
    left = [names[index] for index in np.random.default_rng(0).permutation(len(names))]

    def taken(count: int) -> tuple[str, ...]:
        found: list[str] = []
        while len(found) < count and left:
            found += people[left.pop()]
        return tuple(found)

    test = taken(recipe.tests) if inner else split.test
    judge, held_out = taken(recipe.judge_cases), taken(recipe.held_out)
    rng = np.random.default_rng([seed, 4])
    chosen = [people[left[index]] for index in rng.permutation(len(left))]
    if len(chosen) < max(recipe.sizes):
        raise SystemExit(f"{max(recipe.sizes)} labelled people are needed, and {len(chosen)} are left")
    # Drawn for all, so that fewer are a part of more.
    labelled = [cases[int(rng.integers(len(cases)))] for cases in chosen][:k]
    aside = labelled[::VALIDATION_CASES] if apart else []
    found = Deal(tuple(case for case in labelled if case not in aside), tuple(aside), judge, held_out, test)
    assert_apart(dataset, found)
    return found


def assert_apart(dataset: Dataset, dealt: Deal) -> None:
    """No person is in two stages."""
    owner: dict[str, str] = {}
    for stage in ("training", "validation", "judge", "held_out", "test"):
        for case in getattr(dealt, stage):
            assert owner.setdefault(dataset.subjects[case], stage) == stage, f"{case} is in two stages"


def slices_of(dataset: Dataset, cases: Sequence[str], grid: tuple[int, int]) -> list[Pair]:
    """All slices across the last axis, case after case, stretched to `grid`; labels as an annotator would draw them."""
    given = samples(dataset, tuple(cases), "dense")[0] if cases else []
    return [pair for sample in given for pair in pairs_of(sample, grid, smallest=0)]


def learnable(pair: Pair, classes: int, factor: float = 1.0) -> Sample:
    """A slice as something to learn from that counts `factor` as a whole."""
    target = (pair.labels == np.arange(classes)[:, None, None]).astype(np.float16)[..., None]
    shape = (*pair.image.shape, 1)
    counts = np.ones(shape, dtype=np.float16)
    return Sample(pair.case_id, pair.image[..., None], target, counts, np.ones(shape, dtype=bool), factor=factor)


def shown(pairs: Sequence[Pair]) -> list[Pair]:
    """Those in which any structure is seen."""
    return [pair for pair in pairs if pair.labels.any()]


def images_of(pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
    """``[N, I, J]``."""
    return np.stack([pair.image for pair in pairs])


def labels_of(pairs: Sequence[Pair]) -> npt.NDArray[np.uint8]:
    """``[N, I, J]``."""
    return np.stack([pair.labels for pair in pairs])

"""What a batch knows of the samples that it was cut from."""

from dataclasses import replace

import numpy as np

from wardround.client.learning.augmentation import Augmentation, StrongAugmentation
from wardround.client.learning.batches import assemble
from wardround.client.learning.replay import Sample


def labelled(*structures: int, unknown: bool) -> Sample:
    """Three classes; half of the voxels of each structure given, the first plane of nobody's label if `unknown`."""
    labels = np.zeros((8, 8, 8), np.uint8)
    for structure in structures:
        labels[4, 4, 3 * structure] = structure
    target = (labels == np.arange(3)[:, None, None, None]).astype(np.float16)
    weight = np.ones(labels.shape, np.float16)
    weight[0] = 0 if unknown else 1
    return Sample("case", np.random.default_rng(0).normal(size=labels.shape).astype(np.float32), target, weight)


def test_of_a_case_that_is_known_whole_every_structure_is_known_to_be_there_or_not() -> None:
    whole = labelled(1, unknown=False)
    assert whole.told.all()
    for augmentation in (None, Augmentation(), StrongAugmentation()):
        # What is turned in from outside counts nothing, and leaves nothing unknown.
        batch = assemble([whole] * 4, 3, 4, None, np.random.default_rng(0), augmentation)
        assert batch.told is None
        assert augmentation is None or (batch.weight == 0).any()


def test_with_unknown_voxels_only_what_somebody_showed_is_known() -> None:
    part, other = labelled(2, unknown=True), labelled(1, 2, unknown=True)
    assert part.told.tolist() == [False, True]
    batch = assemble([part, other], 3, 4, (4, 4, 4), np.random.default_rng(0), Augmentation())
    assert batch.told is not None
    assert batch.told.tolist() == [[False, True], [True, True]]
    # A little of a prediction in the target is no structure that somebody showed.
    faint = part.target + np.array([-0.1, 0.1, 0], np.float16)[:, None, None, None] * (part.target[0] > 0)
    assert replace(part, target=faint).told.tolist() == [False, True]
    # One that lies where nothing counts is none either.
    hidden = part.target.copy()
    hidden[:, 0] = np.array([0, 1, 0], np.float16)[:, None, None]
    assert replace(part, target=hidden).told.tolist() == [False, True]

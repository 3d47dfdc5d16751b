"""The two sizes of cases on which people's waiting is measured, and where their cases come from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wardround.client.cases.dataset import load_dataset, split_by_file
from wardround.client.cases.nifti import read_image, read_labels
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.volume import Volume

SEED = 0
SMALL, LARGE = (35, 50, 35), (128, 128, 128)


def load_cases(data: Path | None, shape: tuple[int, int, int], cases: int) -> Iterator[tuple[Volume, Volume]]:
    """Images and labels of the size that is asked for: cases of a data set for the small one, else phantoms."""
    if data is None or shape != SMALL:
        for number in range(cases):
            yield draw_phantom(np.random.default_rng([SEED, number]), shape)
        return
    dataset = load_dataset(data)
    federation = split_by_file(dataset, Path("split.json"))
    for case in sorted(case for cases_ in federation.sites.values() for case in cases_)[:cases]:
        files = dataset.cases[case]
        assert files.label is not None
        yield read_image(files.image), read_labels(files.label)

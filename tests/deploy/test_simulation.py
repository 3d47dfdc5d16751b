"""What a simulated annotator answers from."""

import json
from pathlib import Path

import numpy as np

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import UNLABELLED, SliceRequest
from wardround.client.cases.nifti import read_labels, write_volume
from wardround.client.cases.phantoms import write_phantom_dataset
from wardround.deploy.simulation import stroke_source, truth_source


def test_strokes_of_an_expert_are_answered_where_the_data_has_any(tmp_path: Path) -> None:
    data = tmp_path / "data"
    sizes = {"sites": 1, "cases_per_site": 2, "test_cases_per_site": 1}
    write_phantom_dataset(data, **sizes, seed=0, shift_strength=0.0, shape=(24, 24, 24))
    description = json.loads((data / "dataset.json").read_text())
    mine, other = description["training"][:2]
    labels = read_labels(data / mine["label"])
    strokes = np.full(labels.shape, 9, dtype=np.uint8)
    strokes[4:9, 7, 12] = 1
    write_volume(data / "strokes.nii.gz", labels.with_array(strokes))
    mine["scribble"] = "strokes.nii.gz"
    description["scribble_ignore_value"] = 9
    (data / "dataset.json").write_text(json.dumps(description))
    names = [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in (mine, other)]
    truth = truth_source(data)
    found = {}
    for source in (stroke_source(data), None):
        annotator = SimulatedAnnotator(lambda case: Truth(truth(case)), source)
        for name in names:
            found[name, source is None] = annotator.strokes(name, SliceRequest(2, 12)).labels
    expert = found[names[0], False]
    assert np.array_equal(np.argwhere(expert != UNLABELLED), [(i, 7) for i in range(4, 9)])
    assert not np.array_equal(expert, found[names[0], True])
    assert np.array_equal(found[names[1], False], found[names[1], True])

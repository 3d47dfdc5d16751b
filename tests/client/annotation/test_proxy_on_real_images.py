"""The proxy on real images: floors a little below what was measured."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from wardround.client.annotation.allocation import allocate
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.effort import effort_of
from wardround.client.annotation.guidance import suggest
from wardround.client.annotation.prompts import UNLABELLED, Annotations, ScribblePrompt
from wardround.client.annotation.propagation import propagate
from wardround.client.annotation.registration import register, warp
from wardround.client.cases.volume import Volume

pytestmark = pytest.mark.data


def cases(name, count):
    """The first `count` training cases that hold an object."""
    folder = Path(os.environ["WARDROUND_DATA"]) / name
    split = json.loads((folder / "split.json").read_text())
    sites = split.get("federation") or split["simulated_federation"]
    held_out = set(split["validation"])
    ids = sorted({case for site in sites.values() if isinstance(site, list) for case in site} - held_out)
    for case in ids:
        image, labels = (nibabel.load(folder / part / f"{case}.nii.gz") for part in ("imagesTr", "labelsTr"))
        array = np.asarray(labels.dataobj).astype(np.uint8)
        if array.any():
            yield Volume(np.asarray(image.dataobj).astype(np.float32), image.affine), Volume(array, labels.affine)
            count -= 1
        if not count:
            return


def annotated(image, labels, total):
    annotator = SimulatedAnnotator({"": Truth(labels)})
    annotations = Annotations(extent=annotator.extent(""))
    size = tuple(high - low + 1 for low, high in zip(annotations.extent.lower, annotations.extent.upper, strict=True))
    counts = allocate(total, size, image.spacing, image.shape)
    requests = suggest(annotations, image.shape, counts, rule="even", residual=None, rng=np.random.default_rng(0))
    return annotations.adding(*(annotator.draw("", request) for request in requests)), annotator


def proxy_of(image, labels, total):
    annotations, annotator = annotated(image, labels, total)
    found = propagate(image, annotations, int(labels.array.max()) + 1).labels
    one, other = found > 0, labels.array > 0
    dice = 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
    return dice, effort_of(annotations, *annotator.full_effort("")).contour


@pytest.mark.parametrize(
    ("name", "total", "floor", "effort"),
    [("hippocampus", 12, 0.93, 0.36), ("lgg_multisite", 8, 0.86, 0.42), ("acdc_scribbles", 8, 0.95, 0.45)],
)
def test_proxy_reaches_its_floor(name, total, floor, effort):
    figures = np.array([proxy_of(image, labels, total) for image, labels in cases(name, 10)])
    assert len(figures) == 10
    assert figures[:, 0].mean() > floor
    assert figures[:, 1].mean() < effort


def test_registration_improves_correlation_between_real_slices():
    better, pairs = 0, 0
    for image, _ in cases("hippocampus", 4):
        slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.array, 1, 0)[8:44]))
        moving, fixed = slices[:-3], slices[3:]
        warped = warp(moving[:, None], register(moving, fixed))[:, 0]
        scores = [
            [np.corrcoef(one.numpy().ravel(), two.numpy().ravel())[0, 1] for one, two in zip(first, fixed, strict=True)]
            for first in (moving, warped)
        ]
        better += sum(after > before for before, after in zip(*scores, strict=True))
        pairs += len(moving)
    assert better >= 0.9 * pairs


@pytest.mark.parametrize("name", ["hippocampus", "lgg_multisite", "acdc_scribbles"])
def test_confidence_is_the_share_of_voxels_that_are_right(name):
    sure, right = [], []
    for image, labels in cases(name, 6):
        annotations, _ = annotated(image, labels, 6)
        proxy = propagate(image, annotations, int(labels.array.max()) + 1)
        within = tuple(
            slice(low, high + 1) for low, high in zip(annotations.extent.lower, annotations.extent.upper, strict=True)
        )
        off = ~proxy.annotated[within]
        sure.append(proxy.confidence[within][off])
        right.append((proxy.labels == labels.array)[within][off])
    sure, right = np.concatenate(sure), np.concatenate(right)
    assert sure.mean() == pytest.approx(right.mean(), abs=0.06)
    # The quarter that is least sure holds most mistakes.
    order = np.argsort(sure)
    wrong = [np.count_nonzero(~part) for part in np.array_split(right[order], 4)]
    assert wrong[0] > sum(wrong[1:])


def test_strokes_on_real_slices_make_a_proxy():
    for image, labels in cases("hippocampus", 3):
        extent = annotated(image, labels, 1)[0].extent
        rng = np.random.default_rng(0)
        known = Annotations(extent=extent)
        for axis in range(3):
            index = (extent.lower[axis] + extent.upper[axis]) // 2
            true = np.take(labels.array, index, axis)
            strokes = np.where(rng.random(true.shape) < 0.15, true, UNLABELLED).astype(np.uint8)
            known = known.adding(ScribblePrompt(axis, index, strokes))
        proxy = propagate(image, known, int(labels.array.max()) + 1)
        one, other = proxy.labels > 0, labels.array > 0
        assert 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)) > 0.7

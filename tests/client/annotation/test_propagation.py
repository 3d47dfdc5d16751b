"""Propagation: true to the drawings, blind to everything else, and better than shape alone."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.annotation import votes
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.crop import boxes
from wardround.client.annotation.guidance import suggest
from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.annotation.propagation import (
    LIVE,
    PropagationCache,
    PropagationSettings,
    calibrated_confidence,
    propagate,
)
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

SHAPE = (28, 40, 26)
REQUESTS = (*(SliceRequest(1, index) for index in (8, 14, 20, 26, 32)), SliceRequest(0, 13))


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def scene(seed=0, shape=SHAPE, spacing=(1.0, 1.0, 1.0)):
    """A bent rod of two structures and an image that shows it."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij", sparse=True)
    radius = ((i - 0.3 * np.sin(3 * j)) / 0.4) ** 2 + (j / 0.85) ** 2 + ((k - 0.3 * j**2) / 0.35) ** 2
    labels = ((radius < 1) * (1 + (j > 0.1))).astype(np.uint8)
    image = 100 * (labels > 0) + 60 * (labels == 2) + 20 * ndimage.gaussian_filter(rng.normal(size=shape), 1)
    image = ndimage.gaussian_filter(image, 0.7).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    return Volume(image, affine), Volume(labels, affine)


def annotate(labels, requests=REQUESTS, extent=True):
    annotator = SimulatedAnnotator({"": Truth(labels)})
    drawn = tuple(annotator.draw("", request) for request in requests)
    return Annotations(drawn, annotator.extent("") if extent else None)


def identical(one, other):
    names = ("probabilities", "annotated", "confidence")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


class TestValue:
    @pytest.mark.parametrize("extent", [True, False])
    @pytest.mark.parametrize("requests", [REQUESTS, REQUESTS[:5], REQUESTS[:1], REQUESTS[5:]])
    def test_probabilities_sum_to_one_and_confidence_stays_in_range(self, requests, extent):
        image, labels = scene()
        proxy = propagate(image, annotate(labels, requests, extent), 3)
        assert proxy.probabilities.shape == (3, *SHAPE)
        assert proxy.probabilities.dtype == proxy.confidence.dtype == np.float32
        np.testing.assert_allclose(proxy.probabilities.sum(axis=0), 1, atol=1e-5)
        assert proxy.probabilities.min() >= 0
        assert 0 <= proxy.confidence.min() <= proxy.confidence.max() == 1
        assert proxy.labels.dtype == np.uint8

    def test_drawn_slices_hold_the_drawing(self):
        image, labels = scene()
        proxy = propagate(image, annotate(labels), 3)
        expected = np.zeros(SHAPE, dtype=bool)
        expected[:, [8, 14, 20, 26, 32]] = True
        expected[13] = True
        np.testing.assert_array_equal(proxy.annotated, expected)
        np.testing.assert_array_equal(proxy.labels[expected], labels.array[expected])
        assert set(np.unique(proxy.probabilities[:, expected])) == {0.0, 1.0}
        assert (proxy.confidence[expected] == 1).all()

    def test_it_is_soft_between_slices(self):
        image, labels = scene()
        proxy = propagate(image, annotate(labels), 3)
        assert ((proxy.probabilities > 0.05) & (proxy.probabilities < 0.95)).any()

    def test_outside_the_extent_is_background(self):
        image, labels = scene()
        annotations = annotate(labels)
        proxy = propagate(image, annotations, 3)
        outside = np.ones(SHAPE, dtype=bool)
        low, high = annotations.extent.lower, annotations.extent.upper
        outside[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1] = False
        assert (proxy.probabilities[0][outside] == 1).all()
        assert (proxy.confidence[outside] == 1).all()

    def test_confidence_falls_with_distance(self):
        image, labels = scene()
        confidence = propagate(image, annotate(labels, REQUESTS[:2]), 3).confidence
        low, high = annotate(labels).extent.lower, annotate(labels).extent.upper
        mean = confidence[low[0] : high[0], :, low[2] : high[2]].mean(axis=(0, 2))
        assert mean[14] == 1 > mean[15] > mean[17] > mean[21]

    def test_confidence_orders_mistakes(self):
        image, labels = scene()
        proxy = propagate(image, annotate(labels), 3)
        right = proxy.labels == labels.array
        inside = (proxy.confidence < 1) & ((proxy.labels > 0) | (labels.array > 0))
        assert proxy.confidence[inside & ~right].mean() < proxy.confidence[inside & right].mean() - 0.1

    def test_nothing_drawn_is_background_that_nobody_believes(self):
        image, labels = scene()
        for annotations in (Annotations(), Annotations(extent=annotate(labels).extent)):
            proxy = propagate(image, annotations, 3)
            assert (proxy.probabilities[0] == 1).all()
            assert not proxy.annotated.any()
            assert (proxy.confidence == 0).all()

    @pytest.mark.parametrize("extent", [None, ExtentPrompt((2, 2, 2), (9, 9, 9))])
    def test_empty_drawings_are_background(self, extent):
        image, _ = scene()
        empty = SlicePrompt(1, 5, np.zeros((SHAPE[0], SHAPE[2]), np.uint8))
        assert propagate(image, Annotations((empty,), extent), 3).labels.max() == 0


class TestBlindness:
    @pytest.mark.parametrize("extent", [True, False])
    def test_truth_off_the_drawn_slices_cannot_matter(self, extent):
        image, labels = scene()
        poisoned = np.full(SHAPE, np.nan)
        garbage = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.float64)
        for request in REQUESTS:
            where = (slice(None),) * request.axis + (request.index,)
            poisoned[where] = garbage[where] = labels.array[where]
        known = annotate(labels).extent if extent else None
        proxies = []
        for array in (labels.array, poisoned, garbage):
            annotator = SimulatedAnnotator({"": Truth(Volume(array, labels.affine))})
            drawn = tuple(annotator.draw("", request) for request in REQUESTS)
            proxies.append(propagate(image, Annotations(drawn, known), 3))
        assert identical(proxies[0], proxies[1])
        assert identical(proxies[0], proxies[2])

    def test_what_is_drawn_does_matter(self):
        image, labels = scene()
        annotations = annotate(labels)
        one = annotations.slices[1]
        changed = annotations.adding(replace(one, labels=np.zeros_like(one.labels)))
        assert not identical(propagate(image, annotations, 3), propagate(image, changed, 3))

    def test_inputs_stay_as_they_are(self):
        image, labels = scene()
        annotations = annotate(labels)
        before = [image.array.copy(), *(prompt.labels.copy() for prompt in annotations.slices)]
        propagate(image, annotations, 3)
        after = [image.array, *(prompt.labels for prompt in annotations.slices)]
        assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))

    def test_propagation_does_not_import_the_truth(self):
        code = (
            "import sys, wardround.client.annotation.guidance\n"
            "sys.exit(any(name.endswith('annotator') for name in sys.modules))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestCache:
    @pytest.mark.parametrize("extent", [True, False])
    def test_result_is_the_same_with_and_without(self, extent):
        image, labels = scene()
        cache, annotations = PropagationCache(), annotate(labels, (), extent)
        rng = np.random.default_rng(1)
        for _ in range(3):
            requests = suggest(annotations, SHAPE, (1, 2, 1), rule="random", residual=None, rng=rng)
            annotations = annotations.adding(*annotate(labels, requests).slices)
            assert identical(propagate(image, annotations, 3, cache=cache), propagate(image, annotations, 3))

    def test_only_new_pairs_are_registered(self, monkeypatch):
        registered = []
        inner = votes.register

        def counting(moving, fixed, *arguments, **options):
            registered.append(len(moving))
            return inner(moving, fixed, *arguments, **options)

        monkeypatch.setattr(votes, "register", counting)
        image, labels = scene()
        cache = PropagationCache()
        annotations = annotate(labels, REQUESTS[:4])
        propagate(image, annotations, 3, cache=cache)
        first = sum(registered)
        assert len(cache) == first > 0
        propagate(image, annotations, 3, cache=cache)
        assert sum(registered) == first
        # A slice between the last two: only the slices on both sides of it see a new neighbour, one each.
        more = annotations.adding(*annotate(labels, (SliceRequest(1, 23),)).slices)
        propagate(image, more, 3, cache=cache)
        assert sum(registered) - first == 5 - 1

    def test_another_crop_empties_it(self):
        image, labels = scene()
        cache = PropagationCache()
        propagate(image, annotate(labels), 3, cache=cache)
        annotations = replace(annotate(labels), extent=ExtentPrompt((1, 1, 1), (26, 38, 24)))
        assert identical(propagate(image, annotations, 3, cache=cache), propagate(image, annotations, 3))

    def test_twice_is_the_same(self):
        image, labels = scene()
        assert identical(propagate(image, annotate(labels), 3), propagate(image, annotate(labels), 3))


class TestQuality:
    @pytest.mark.parametrize("extent", [True, False])
    def test_the_rod_is_found(self, extent):
        image, labels = scene()
        found = propagate(image, annotate(labels, extent=extent), 3).labels
        assert dice(found > 0, labels.array > 0) > 0.93
        assert min(dice(found == label, labels.array == label) for label in (1, 2)) > 0.9

    def test_image_evidence_beats_shape_alone(self):
        image, labels = scene()
        annotations = annotate(labels, REQUESTS[:5:2])
        scores = []
        for name in ("demons", "none"):
            found = propagate(image, annotations, 3, settings=PropagationSettings(registration=name)).labels
            scores.append(dice(found > 0, labels.array > 0))
        assert scores[0] > scores[1] + 0.01

    def test_both_neighbours_count(self):
        # The object is cut off between two drawn slices: one-sided propagation would carry it on to the far end.
        image, labels = scene()
        annotations = annotate(labels, (SliceRequest(1, 14), SliceRequest(1, 26)))
        far = annotations.slices[1]
        ended = propagate(image, annotations.adding(replace(far, labels=np.zeros_like(far.labels))), 3)
        whole = propagate(image, annotations, 3)
        assert np.count_nonzero(ended.labels[:, 22:26]) < 0.5 * np.count_nonzero(whole.labels[:, 22:26])
        assert np.count_nonzero(ended.labels[:, 15:17]) > 0

    def test_shape_shrinks_towards_the_end_of_the_extent(self):
        image, labels = scene()
        annotations = annotate(labels, REQUESTS[1:4])
        settings = PropagationSettings(registration="none")
        area = np.count_nonzero(propagate(image, annotations, 3, settings=settings).labels, axis=(0, 2))
        end = annotations.extent.upper[1]
        assert area[26] > area[29] > area[end - 1]
        unbounded = propagate(image, replace(annotations, extent=None), 3, settings=settings)
        assert np.count_nonzero(unbounded.labels[:, end]) == area[26]

    def test_thick_slices_count_as_far_apart(self):
        # Two drawings that contradict each other, two voxels away each. Where the second plane is thick-sliced, it is
        # eight times as far away as the first and loses its say.
        claims = (
            SlicePrompt(0, 11, np.zeros(SHAPE[1:], np.uint8)),
            SlicePrompt(2, 11, np.ones(SHAPE[:2], np.uint8)),
        )
        share = [
            propagate(Volume(np.zeros(SHAPE, np.float32), np.diag([1.0, 1.0, thickness, 1.0])), Annotations(claims), 2)
            for thickness in (1, 4)
        ]
        assert share[0].probabilities[1, 13, 20, 13] == pytest.approx(0.5, abs=0.05)
        assert share[1].probabilities[1, 13, 20, 13] < 0.1

    def test_a_label_on_one_slice_only_stays_near_it(self):
        image, labels = scene()
        array = np.where(labels.array == 2, 1, labels.array)
        array[10:16, 20, 10:16] = 2
        found = propagate(image, annotate(Volume(array.astype(np.uint8), labels.affine)), 3).labels
        present = np.flatnonzero((found == 2).any(axis=(0, 2)))
        assert present.min() > 14
        assert present.max() < 26


class TestShapes:
    @pytest.mark.parametrize("shape", [(1, 12, 9), (12, 1, 9), (9, 12, 1), (2, 2, 2), (5, 5, 5)])
    def test_small_volumes(self, shape):
        rng = np.random.default_rng(0)
        image = Volume(rng.normal(size=shape).astype(np.float32), np.eye(4))
        labels = rng.integers(0, 2, shape).astype(np.uint8)
        labels[0, 0, 0] = 1
        requests = tuple(SliceRequest(axis, 0) for axis in range(3))
        proxy = propagate(image, annotate(Volume(labels, np.eye(4)), requests), 2)
        assert np.isfinite(proxy.probabilities).all()
        np.testing.assert_array_equal(proxy.labels[proxy.annotated], labels[proxy.annotated])

    def test_constant_image(self):
        _, labels = scene()
        flat = Volume(np.full(SHAPE, 7, np.float32), labels.affine)
        assert dice(propagate(flat, annotate(labels), 3).labels > 0, labels.array > 0) > 0.8

    def test_whole_number_intensities(self):
        image, labels = scene()
        whole = np.round(image.array).astype(np.int16)
        one = propagate(Volume(whole, image.affine), annotate(labels), 3)
        assert identical(one, propagate(Volume(whole.astype(np.float32), image.affine), annotate(labels), 3))

    def test_drawing_outside_the_extent_is_kept(self):
        image, labels = scene()
        annotations = replace(annotate(labels, REQUESTS[:3]), extent=ExtentPrompt((8, 16, 8), (20, 38, 20)))
        proxy = propagate(image, annotations, 3)
        np.testing.assert_array_equal(proxy.labels[:, 8], labels.array[:, 8])

    @pytest.mark.parametrize(
        "annotations",
        [
            Annotations((SlicePrompt(0, 28, np.zeros((40, 26), np.uint8)),)),
            Annotations((SlicePrompt(0, 3, np.zeros((26, 40), np.uint8)),)),
            Annotations((SlicePrompt(0, 3, np.full((40, 26), 3, np.uint8)),)),
            Annotations(extent=ExtentPrompt((0, 0, 0), (28, 39, 25))),
            Annotations(extent=ExtentPrompt((5, 9, 5), (9, 5, 9))),
        ],
    )
    def test_what_does_not_fit_is_refused(self, annotations):
        image, _ = scene()
        with pytest.raises(UsageError):
            propagate(image, annotations, 3)


class TestModel:
    def votes(self, labels, classes=3):
        return (labels.array == np.arange(classes)[:, None, None, None]).astype(np.float32)

    def test_weight_zero_is_silence(self):
        image, labels = scene()
        annotations = annotate(labels)
        plain = propagate(image, annotations, 3)
        assert identical(plain, propagate(image, annotations, 3, prediction=self.votes(labels), model_weight=0.0))
        assert identical(plain, propagate(image, annotations, 3, model_weight=1.0))

    def test_it_moves_the_proxy_off_the_drawings_only(self):
        image, labels = scene()
        annotations = annotate(labels, REQUESTS[:2])
        wrong = self.votes(Volume((2 - labels.array).astype(np.uint8), labels.affine))
        plain = propagate(image, annotations, 3)
        moved = propagate(image, annotations, 3, prediction=wrong, model_weight=1.0)
        drawn = plain.annotated
        np.testing.assert_array_equal(moved.probabilities[:, drawn], plain.probabilities[:, drawn])
        assert np.abs(moved.probabilities - plain.probabilities)[:, ~drawn].max() > 0.3
        np.testing.assert_allclose(moved.probabilities.sum(axis=0), 1, atol=1e-5)

    def test_a_good_model_helps_where_little_is_drawn(self):
        image, labels = scene()
        annotations = annotate(labels, REQUESTS[:1])
        scores = [
            dice(propagate(image, annotations, 3, prediction=self.votes(labels), model_weight=w).labels, labels.array)
            for w in (0.0, 0.3)
        ]
        assert scores[1] > scores[0] + 0.05

    def test_confidence_falls_where_it_contradicts_the_drawings(self):
        image, labels = scene()
        annotations = annotate(labels, REQUESTS[:2])
        alone = propagate(image, annotations, 3)
        agrees, contradicts = (
            propagate(image, annotations, 3, prediction=self.votes(seen), model_weight=0.3)
            for seen in (labels.with_array(alone.labels), labels.with_array((alone.labels + 1) % 3))
        )
        near = ndimage.binary_dilation(alone.labels > 0, iterations=2) & ~alone.annotated
        assert contradicts.confidence[near].mean() < agrees.confidence[near].mean() - 0.05

    def test_the_extent_bounds_it(self):
        image, labels = scene()
        annotations = replace(annotate(labels), extent=ExtentPrompt((10, 10, 10), (16, 30, 16)))
        everywhere = np.zeros((3, *SHAPE), np.float32)
        everywhere[1] = 1
        proxy = propagate(image, annotations, 3, prediction=everywhere, model_weight=5.0)
        assert (proxy.labels[:8][~proxy.annotated[:8]] == 0).all()

    @pytest.mark.parametrize("options", [{"prediction": np.zeros((2, *SHAPE), np.float32)}, {"model_weight": -1.0}])
    def test_what_does_not_fit_is_refused(self, options):
        image, labels = scene()
        with pytest.raises(UsageError):
            propagate(image, annotate(labels), 3, **options)


class TestStrokes:
    def points(self, labels, count=40, seed=0):
        rng = np.random.default_rng(seed)
        index = np.concatenate(
            [rng.permutation(np.argwhere(labels.array == label))[: count // 2] for label in range(3)]
        )
        return tuple(PointPrompt(tuple(at.tolist()), int(labels.array[tuple(at)])) for at in index)

    @pytest.mark.parametrize("extent", [True, False])
    def test_points_alone_make_a_proxy(self, extent):
        image, labels = scene()
        known = annotate(labels, (), extent).adding(*self.points(labels))
        proxy = propagate(image, known, 3)
        assert dice(proxy.labels > 0, labels.array > 0) > 0.6
        assert np.count_nonzero(proxy.annotated) == 60
        assert (proxy.confidence[proxy.annotated] == 1).all()
        np.testing.assert_array_equal(proxy.labels[proxy.annotated], labels.array[proxy.annotated])
        assert set(np.unique(proxy.probabilities[:, proxy.annotated])) == {0.0, 1.0}
        inside = ~proxy.annotated
        if extent:
            low, high = known.extent.lower, known.extent.upper
            bounds = zip(np.indices(SHAPE), low, high, strict=True)
            inside &= np.all([(at >= first) & (at <= last) for at, first, last in bounds], axis=0)
        assert proxy.confidence[inside].max() < 1
        np.testing.assert_allclose(proxy.probabilities.sum(axis=0), 1, atol=1e-5)

    def test_the_extent_bounds_strokes(self):
        image, _ = scene()
        extent = ExtentPrompt((10, 15, 8), (17, 25, 17))
        proxy = propagate(image, Annotations(extent=extent).adding(PointPrompt((13, 20, 13), 1)), 3)
        outside = np.ones(SHAPE, dtype=bool)
        outside[10:18, 15:26, 8:18] = False
        assert (proxy.labels[outside] == 0).all()
        assert (proxy.confidence[outside] == 1).all()
        assert proxy.labels.any()

    def test_only_stroked_pixels_count_as_drawn(self):
        image, labels = scene()
        strokes = np.full((SHAPE[0], SHAPE[2]), UNLABELLED, np.uint8)
        strokes[10:18, 13] = labels.array[10:18, 20, 13]
        proxy = propagate(image, annotate(labels).adding(ScribblePrompt(1, 17, strokes)), 3)
        np.testing.assert_array_equal(
            np.argwhere(proxy.annotated[:, 17]), np.argwhere((strokes != UNLABELLED) | (np.arange(28) == 13)[:, None])
        )

    def test_a_stroke_corrects_its_neighbourhood_and_nothing_far_away(self):
        image, labels = scene()
        known = annotate(labels)
        plain = propagate(image, known, 3).probabilities
        at = (12, 17, 13)
        label = (int(labels.array[at]) + 1) % 3
        corrected = propagate(image, known.adding(PointPrompt(at, label)), 3)
        assert corrected.labels[at] == label
        change = np.abs(corrected.probabilities - plain).max(axis=0)
        assert change[11:14, 16:19, 12:15].max() > 0.2
        assert change[:, 30:].max() < 0.02

    def test_later_words_hold(self):
        image, labels = scene()
        known = annotate(labels)
        at = (12, 14, 13)
        other = (int(labels.array[at]) + 1) % 3
        assert propagate(image, known.adding(PointPrompt(at, other)), 3).labels[at] == other

    def test_cache_does_not_matter(self):
        image, labels = scene()
        cache, known = PropagationCache(), annotate(labels, REQUESTS[:3])
        for point in self.points(labels, 4):
            known = known.adding(point)
            assert identical(propagate(image, known, 3, cache=cache), propagate(image, known, 3))


class TestConfidence:
    def test_it_follows_evidence_distance_and_dissent(self):
        def at(p=0.8, v=0.1, d=3.0):
            return float(calibrated_confidence(*(np.array([value], np.float32) for value in (p, v, d)))[0])

        assert at(p=0.9) > at() > at(p=0.6)
        assert at(d=1) > at() > at(d=9)
        assert at(v=0) > at() > at(v=0.5)

    def test_it_stays_in_range(self):
        values = np.array([0, 0.5, 1], np.float32)
        grid = np.meshgrid(values, values, np.array([0, 10, np.inf], np.float32))
        found = calibrated_confidence(*grid)
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() < 1

    def test_it_is_near_the_share_that_is_right(self):
        sure, right = [], []
        for seed in range(3):
            image, labels = scene(seed)
            proxy = propagate(image, annotate(labels), 3)
            off = ~proxy.annotated & (proxy.confidence < 1)
            sure.append(proxy.confidence[off])
            right.append((proxy.labels == labels.array)[off])
        assert np.concatenate(sure).mean() == pytest.approx(np.concatenate(right).mean(), abs=0.08)


class TestAnisotropy:
    def test_the_same_object_on_two_grids_gives_the_same_proxy(self):
        # Every second slice along k of a scene, as thick slices: what was drawn on axis 1 says the same of both.
        image, labels = scene(shape=(28, 40, 52))
        drawn = annotate(labels, REQUESTS[:5])
        fine = propagate(Volume(image.array, np.diag([2.0, 2.0, 1.0, 1.0])), drawn, 3)
        coarse_slices = tuple(SlicePrompt(p.axis, p.index, p.labels[:, ::2]) for p in drawn.slices)
        low, high = drawn.extent.lower, drawn.extent.upper
        extent = ExtentPrompt((low[0], low[1], low[2] // 2), (high[0], high[1], high[2] // 2))
        thick = Volume(np.ascontiguousarray(image.array[..., ::2]), np.diag([2.0, 2.0, 2.0, 1.0]))
        coarse = propagate(thick, Annotations(coarse_slices, extent), 3)
        assert dice(coarse.labels > 0, fine.labels[..., ::2] > 0) > 0.95

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_thick_slices_in_every_orientation(self, axis):
        image, labels = scene()
        thin = [slice(None)] * 3
        thin[axis] = slice(None, None, 4)
        spacing = np.ones(4)
        spacing[axis] = 4
        thick_image, thick_labels = (Volume(v.array[tuple(thin)], np.diag(spacing)) for v in (image, labels))
        count = thick_image.shape[axis]
        requests = tuple(SliceRequest(axis, index) for index in range(1, count, 2))
        requests += tuple(SliceRequest(other, 14) for other in range(3) if other != axis)
        found = propagate(thick_image, annotate(thick_labels, requests), 3).labels
        assert dice(found > 0, thick_labels.array > 0) > 0.85


class TestLive:
    """Settings for a person who waits: continued strokes and a crop in grains."""

    @staticmethod
    def stroke(labels, axis, index):
        cut = np.take(labels.array, index, axis)
        drawn = np.full(cut.shape, UNLABELLED, dtype=np.uint8)
        drawn[cut.shape[0] // 2] = cut[cut.shape[0] // 2]
        return ScribblePrompt(axis, index, drawn)

    def test_continued_strokes_say_what_fresh_ones_say(self):
        image, labels = scene()
        cache, known = PropagationCache(), annotate(labels, REQUESTS[:2])
        for prompt in (self.stroke(labels, 2, 13), self.stroke(labels, 1, 20), PointPrompt((14, 20, 13), 1)):
            known = known.adding(prompt)
            live = propagate(image, known, 3, settings=LIVE, cache=cache)
        fresh = propagate(image, known, 3, settings=replace(LIVE, continued=False))
        assert dice(live.labels > 0, fresh.labels > 0) > 0.99
        difference = np.abs(live.probabilities - fresh.probabilities)
        assert difference.max() < 0.15
        assert difference.mean() < 0.001

    def test_a_stroke_that_is_gone_has_no_say(self):
        image, labels = scene()
        cache, known = PropagationCache(), annotate(labels, REQUESTS[:2])
        wrong = self.stroke(Volume(2 - labels.array, labels.affine), 2, 13)
        before = propagate(image, known.adding(self.stroke(labels, 2, 6)), 3, settings=LIVE, cache=cache)
        assert not identical(before, propagate(image, known.adding(wrong), 3, settings=LIVE, cache=cache))
        again = propagate(image, known.adding(self.stroke(labels, 2, 6)), 3, settings=LIVE, cache=cache)
        assert identical(again, before)

    def test_a_drawing_that_shows_a_little_more_does_not_move_the_crop(self):
        _, labels = scene()
        known = annotate(labels, REQUESTS[:2], extent=False)
        crops = {
            grain: {
                str(boxes(SHAPE, annotate(labels, (*REQUESTS[:2], request), extent=False), None, 4, grain)[0])
                for request in (SliceRequest(0, 13), SliceRequest(0, 10), SliceRequest(2, 13))
            }
            for grain in (1, 16)
        }
        assert len(crops[16]) < len(crops[1])
        crop, inner = boxes(SHAPE, known, None, 4, 16)
        assert all(outer.start <= own.start and own.stop <= outer.stop for outer, own in zip(crop, inner, strict=True))
        assert all(side.start % 16 == 0 for side in crop)

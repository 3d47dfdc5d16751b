"""Guidance: budgets follow shape and spacing, and the residual decides where to look."""

import numpy as np
import pytest
from scipy import stats

from wardround.client.annotation.guidance import (
    RULES,
    next_slices,
    residual_map,
    suggest,
    suggestion_map,
)
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, SlicePrompt, SliceRequest
from wardround.client.annotation.propagation import ProxyMask
from wardround.errors import UsageError

SHAPE = (20, 30, 25)
EXTENT = ExtentPrompt((3, 5, 4), (15, 26, 20))


def generator(*seed):
    return np.random.default_rng(np.random.SeedSequence(seed or (0,)))


def proxy_of(probabilities):
    shape = probabilities.shape[1:]
    return ProxyMask(probabilities, np.zeros(shape, dtype=bool), np.ones(shape, dtype=np.float32))


def uniform(classes=2, shape=SHAPE):
    return np.full((classes, *shape), 1 / classes, dtype=np.float32)


def drawn(axis, *indices):
    shape = tuple(side for other, side in enumerate(SHAPE) if other != axis)
    return tuple(SlicePrompt(axis, index, np.zeros(shape, np.uint8)) for index in indices)


def residual_in(axis, *indices):
    residual = np.zeros(SHAPE, dtype=np.float32)
    for index in indices:
        residual[(slice(None),) * axis + (index,)] = 1
    return residual


def indices(requests, axis):
    return [request.index for request in requests if request.axis == axis]


class TestMaps:
    def test_residual_is_total_variation(self):
        proxy, prediction = uniform(3), uniform(3)
        proxy[:, 1, 2, 3] = [1, 0, 0]
        prediction[:, 1, 2, 3] = [0.25, 0.5, 0.25]
        residual = residual_map(proxy_of(proxy), prediction)
        assert residual.dtype == np.float32
        assert residual[1, 2, 3] == pytest.approx(0.75)
        assert np.count_nonzero(residual) == 1

    def test_opposite_certainties_have_residual_one(self):
        proxy = np.zeros((2, *SHAPE), dtype=np.float32)
        proxy[0] = 1
        np.testing.assert_allclose(residual_map(proxy_of(proxy), proxy[::-1]), 1)

    def test_suggestion_needs_doubt_and_disagreement(self):
        proxy, prediction = uniform(), uniform()
        proxy[:, 0] = np.array([1, 0])[:, None, None]
        prediction[:, 0] = np.array([0, 1])[:, None, None]
        prediction[:, 1] = np.array([0, 1])[:, None, None]
        suggestion = suggestion_map(proxy_of(proxy), prediction)
        assert suggestion[0].max() == 0
        np.testing.assert_allclose(suggestion[1], 0.25)
        assert suggestion[2:].max() == 0

    def test_the_models_own_doubt_counts_as_well(self):
        certain = np.zeros((2, *SHAPE), dtype=np.float32)
        certain[0] = 1
        unsure = np.zeros(SHAPE, dtype=np.float32)
        unsure[3] = 0.5
        suggestion = suggestion_map(proxy_of(certain), certain[::-1], unsure)
        np.testing.assert_allclose(suggestion[3], 0.5)
        assert np.delete(suggestion, 3, axis=0).max() == 0

    def test_maps_of_other_shape_are_refused(self):
        with pytest.raises(UsageError):
            residual_map(proxy_of(uniform(2)), uniform(3))


class TestSuggest:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("extent", [None, EXTENT])
    def test_never_twice_never_outside(self, rule, extent):
        annotations = Annotations(drawn(1, 6, 7, 20), extent)
        residual = generator(1).random(SHAPE).astype(np.float32)
        requests = suggest(annotations, SHAPE, (2, 40, 3), rule=rule, residual=residual, rng=generator())
        assert len(set(requests)) == len(requests)
        assert not set(requests) & {prompt.request for prompt in annotations.slices}
        expected = 22 - 3 if extent else 30 - 3
        assert [len(indices(requests, axis)) for axis in range(3)] == [2, expected, 3]
        if extent:
            assert all(extent.lower[r.axis] <= r.index <= extent.upper[r.axis] for r in requests)

    def test_even_slices_cut_the_extent_in_equal_parts(self):
        requests = suggest(Annotations(extent=EXTENT), SHAPE, (0, 4, 0), rule="even", residual=None, rng=generator())
        assert indices(requests, 1) == [7, 13, 18, 24]

    def test_even_fills_the_widest_gap(self):
        annotations = Annotations(drawn(1, 6, 12, 25), EXTENT)
        requests = suggest(annotations, SHAPE, (0, 1, 0), rule="even", residual=None, rng=generator())
        assert indices(requests, 1) == [18]

    def test_residual_in_one_slice_is_chosen(self):
        for rule in ("residual", "residual-sampled"):
            requests = suggest(Annotations(), SHAPE, (0, 1, 0), rule=rule, residual=residual_in(1, 17), rng=generator())
            assert requests == (SliceRequest(1, 17),)

    def test_swapped_residuals_swap_choices(self):
        first, second = residual_in(2, 3, 11), residual_in(2, 8, 22)
        for rule in ("residual", "residual-sampled"):
            chosen = [
                indices(suggest(Annotations(), SHAPE, (0, 0, 2), rule=rule, residual=map_, rng=generator()), 2)
                for map_ in (first, second)
            ]
            assert chosen == [[3, 11], [8, 22]]

    def test_neighbours_of_a_peak_give_way(self):
        residual = residual_in(1, 10, 11, 12) + 0.5 * residual_in(1, 24)
        requests = suggest(Annotations(), SHAPE, (0, 2, 0), rule="residual", residual=residual, rng=generator())
        assert indices(requests, 1)[1] == 24

    def test_residual_of_drawn_slices_is_ignored(self):
        residual = 9 * residual_in(1, 10) + residual_in(1, 20)
        requests = suggest(
            Annotations(drawn(1, 10)), SHAPE, (0, 1, 0), rule="residual", residual=residual, rng=generator()
        )
        assert indices(requests, 1) == [20]

    @pytest.mark.parametrize(("rule", "instead"), [("residual", "even"), ("residual-sampled", "random")])
    @pytest.mark.parametrize("residual", [None, np.zeros(SHAPE, np.float32)])
    def test_without_residual_it_is_even_or_uniform(self, rule, instead, residual):
        arguments = (Annotations(extent=EXTENT), SHAPE, (1, 5, 2))
        assert suggest(*arguments, rule=rule, residual=residual, rng=generator()) == suggest(
            *arguments, rule=instead, residual=None, rng=generator()
        )

    def test_sampling_follows_the_mass(self):
        residual = residual_in(1, 4) + 3 * residual_in(1, 9)
        chosen = [
            indices(
                suggest(
                    Annotations(), SHAPE, (0, 1, 0), rule="residual-sampled", residual=residual, rng=generator(5, n)
                ),
                1,
            )[0]
            for n in range(400)
        ]
        assert set(chosen) == {4, 9}
        assert stats.binomtest(chosen.count(9), 400, 0.75).pvalue > 0.01

    @pytest.mark.parametrize("rule", ["random", "residual-sampled"])
    def test_no_information_draws_uniformly(self, rule):
        # A flat residual (proxy and prediction disagree alike everywhere) must prefer nothing.
        flat = np.ones(SHAPE, dtype=np.float32)
        counts = np.zeros(30)
        for case in range(600):
            requests = suggest(Annotations(), SHAPE, (0, 2, 0), rule=rule, residual=flat, rng=generator(7, case))
            counts[indices(requests, 1)] += 1
        assert stats.chisquare(counts).pvalue > 0.01

    def test_same_generator_same_choice_and_other_rounds_differ(self):
        def choose(*seed):
            return suggest(Annotations(), SHAPE, (0, 5, 0), rule="random", residual=None, rng=generator(*seed))

        assert choose(1, 2) == choose(1, 2)
        assert len({choose(1, round_) for round_ in range(20)}) > 15

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(UsageError, match="clever"):
            suggest(Annotations(), SHAPE, (0, 1, 0), rule="clever", residual=None, rng=generator())
        with pytest.raises(UsageError):
            suggest(Annotations(), SHAPE, (0, 1, 0), rule="residual", residual=np.zeros((2, 2, 2)), rng=generator())


def test_where_no_residual_is_left_the_rest_is_spread_evenly() -> None:
    residual = np.zeros((4, 30, 4), dtype=np.float32)
    residual[:, 17] = 1
    asked = suggest(
        Annotations(), (4, 30, 4), (0, 5, 0), rule="residual", residual=residual, rng=np.random.default_rng(0)
    )
    indices = [request.index for request in asked]
    assert 17 in indices
    assert len(set(indices)) == 5
    assert max(np.diff([0, *sorted(indices), 29])) <= 12


def long_object(shape=SHAPE, axis=1):
    """Certain class probabilities of an ellipsoid that is long along `axis` and fills a part of the volume."""
    radii = [4.0, 4.0, 4.0]
    radii[axis] = 0.4 * shape[axis]
    grid = np.indices(shape)
    distance = sum(((g - side / 2) / r) ** 2 for g, side, r in zip(grid, shape, radii, strict=True))
    inside = 1 / (1 + np.exp(np.clip(8 * (distance - 1), -30, 30)))
    return np.stack([1 - inside, inside]).astype(np.float32)


def drawing(probabilities, *requests):
    """Drawn slices of the object that `probabilities` show."""
    labels = probabilities.argmax(axis=0).astype(np.uint8)
    return tuple(SlicePrompt(r.axis, r.index, np.take(labels, r.index, axis=r.axis)) for r in requests)


def proxy_with(probabilities, annotations):
    annotated = np.zeros(probabilities.shape[1:], dtype=bool)
    for prompt in annotations.slices:
        annotated[(slice(None),) * prompt.axis + (prompt.index,)] = True
    return ProxyMask(probabilities, annotated, np.ones(probabilities.shape[1:], dtype=np.float32))


NOTHING = Annotations()


def ask(annotations=NOTHING, rule="information", shape=SHAPE, spacing=(1.0, 1.0, 1.0), seed=(0,), **changes):
    arguments = {
        "total": 6,
        "allocation": None,
        "rounds": 1,
        "step": 0,
        "proxy": None,
        "prediction": uniform(shape=shape),
        "uncertainty": None,
    }
    return next_slices(annotations, shape, spacing, rule=rule, rng=generator(*seed), **(arguments | changes))


class TestNextSlices:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("extent", [None, EXTENT])
    def test_the_first_round_needs_no_proxy_and_no_model(self, rule, extent):
        requests = ask(Annotations(extent=extent), rule)
        assert len(set(requests)) == 6
        assert {request.axis for request in requests} == {1}

    @pytest.mark.parametrize("rule", RULES)
    def test_a_budget_is_spent_over_the_rounds_and_no_slice_twice(self, rule):
        truth = long_object()
        annotations, proxy = Annotations(), None
        for step in range(3):
            requests = ask(annotations, rule, total=8, rounds=3, step=step, proxy=proxy, prediction=truth)
            assert not set(requests) & {prompt.request for prompt in annotations.slices}
            annotations = annotations.adding(*drawing(truth, *requests))
            proxy = proxy_with(truth, annotations)
        assert len(annotations.slices) == 8

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("step", [2, 5])
    def test_whoever_draws_more_often_than_planned_is_asked_for_nothing_more(self, rule, step):
        truth = long_object()
        annotations = Annotations().adding(*drawing(truth, SliceRequest(1, 9), SliceRequest(1, 20)))
        disagreeing = proxy_with(truth[::-1].copy(), annotations)
        for known in ({"proxy": None, "prediction": uniform()}, {"proxy": disagreeing, "prediction": truth}):
            assert ask(annotations, rule, total=8, rounds=2, step=step, **known) == ()
            assert ask(annotations, rule, total=8, rounds=2, step=step, allocation=(3, 3, 3), **known) == ()

    def test_where_proxy_and_prediction_agree_sampling_is_uniform(self):
        truth = long_object()
        counts = np.zeros(SHAPE[1])
        for case in range(600):
            requests = ask(
                rule="residual-sampled",
                total=2,
                seed=(9, case),
                proxy=proxy_with(truth, Annotations()),
                prediction=truth,
            )
            counts[indices(requests, 1)] += 1
        assert stats.chisquare(counts).pvalue > 0.01

    @pytest.mark.parametrize("rule", ["residual", "residual-sampled"])
    def test_the_one_slice_on_which_they_disagree_is_chosen(self, rule):
        truth = uniform()
        prediction = truth.copy()
        prediction[:, :, 17] = np.array([0.9, 0.1])[:, None, None]
        requests = ask(rule=rule, total=1, proxy=proxy_with(truth, Annotations()), prediction=prediction)
        assert requests == (SliceRequest(1, 17),)

    def test_random_draws_over_fifty_volumes_cover_the_extent(self):
        counts = np.zeros(SHAPE[1])
        for volume in range(50):
            for round_ in range(4):
                requests = ask(Annotations(extent=EXTENT), "random", total=3, seed=(5, volume, round_))
                counts[indices(requests, 1)] += 1
        inside = counts[EXTENT.lower[1] : EXTENT.upper[1] + 1]
        assert inside.sum() == counts.sum() == 600
        assert inside.min() > 0
        assert stats.chisquare(inside).pvalue > 0.01

    def test_without_an_extent_every_slice_may_be_asked_for(self):
        asked = {index for volume in range(60) for index in indices(ask(rule="random", seed=(6, volume)), 1)}
        assert asked == set(range(SHAPE[1]))

    def test_an_unknown_rule_is_refused(self):
        with pytest.raises(UsageError, match="clever"):
            ask(rule="clever")


class TestInformation:
    def test_slices_are_closer_towards_the_ends(self):
        extent = ExtentPrompt((6, 3, 8), (14, 27, 17))
        for prediction in (uniform(), long_object()):
            chosen = indices(ask(Annotations(extent=extent), prediction=prediction), 1)
            assert max(chosen[0] - 3, 27 - chosen[-1]) <= 2
            assert max(chosen[1] - chosen[0], chosen[-1] - chosen[-2]) <= max(np.diff(chosen[1:-1]))

    def test_where_nothing_is_known_it_is_even(self):
        assert ask() == ask(rule="even")

    def test_without_an_extent_the_prediction_tells_where_the_object_is(self):
        chosen = indices(ask(prediction=long_object()), 1)
        # Radius 12 round 15: an empty slice beyond an end is useful, one further out is not.
        assert min(chosen) >= 1
        assert max(chosen) <= 29
        assert sum(4 <= index <= 26 for index in chosen) >= 4
        assert chosen != indices(ask(), 1)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_plane_follows_the_predicted_shape(self, axis):
        shape = (28, 30, 29)
        requests = ask(shape=shape, prediction=long_object(shape, axis))
        assert {request.axis for request in requests} == {axis}

    def test_thick_slices_are_drawn_across_the_thick_axis_alone(self):
        shape = (40, 40, 10)
        prediction = long_object(shape, 0)
        requests = ask(shape=shape, spacing=(1.0, 1.0, 8.0), prediction=prediction, total=12)
        assert {request.axis for request in requests} == {2}
        assert len(requests) == 4

    def test_a_plans_allocation_is_kept(self):
        requests = ask(prediction=long_object(), allocation=(2, 0, 3))
        assert [len(indices(requests, axis)) for axis in range(3)] == [2, 0, 3]

    def test_two_rounds_end_where_one_round_would_if_nothing_new_is_learnt(self):
        truth = long_object()
        first = ask(prediction=truth, total=7, rounds=2)
        annotations = Annotations().adding(*drawing(truth, *first))
        second = ask(annotations, total=7, rounds=2, step=1, prediction=truth, proxy=proxy_of(truth))
        assert (len(first), len(second)) == (4, 3)
        assert set(first) | set(second) == set(ask(prediction=truth, total=7))

    def test_swapped_predictions_swap_choices(self):
        low, high = (np.roll(long_object((30, 30, 30)), shift, axis=2) for shift in (-2, 2))
        first, second = (indices(ask(shape=(30, 30, 30), prediction=prediction), 1) for prediction in (low, high))
        assert first != second
        assert np.mean(second) - np.mean(first) == pytest.approx(4, abs=1)

    def test_empty_slices_bound_the_search_where_nothing_is_known_of_the_shape(self):
        nothing, something = np.zeros((20, 25), np.uint8), np.ones((20, 25), np.uint8)
        prompts = [SlicePrompt(1, index, nothing) for index in (2, 24)]
        prompts += [SlicePrompt(1, index, something) for index in (9, 16)]
        annotations = Annotations(tuple(prompts))
        chosen = indices(ask(annotations, total=8, rounds=2, step=1, proxy=proxy_of(uniform())), 1)
        assert len(chosen) == 4
        assert all(2 < index < 24 for index in chosen)

    def test_more_than_there_is_gives_what_there_is(self):
        for prediction in (uniform(), long_object()):
            extent = ExtentPrompt((6, 10, 8), (13, 13, 16))
            requests = ask(Annotations(extent=extent), prediction=prediction, allocation=(0, 40, 0))
            assert indices(requests, 1) == [10, 11, 12, 13]

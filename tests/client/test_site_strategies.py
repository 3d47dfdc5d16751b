"""A site under strategies that ask something of it: what it keeps, what it sends, what it evaluates and draws with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Reservoir, Sample
from wardround.client.learning.state import SiteState, Snapshots
from wardround.client.site import REFERENCE, Site
from wardround.models.catalogue import build
from wardround.models.weights import CONTROL, STEPS, load_arrays, weights_of
from wardround.server.app import initial_weights
from wardround.strategies.catalogue import plan_fields
from wardround.strategies.contract import Weights
from wardround.strategies.local_keys import HEAD, NORMALISATION, matches
from wardround.strategies.plan import RoundPlan

CASES = {f"case-{n}": draw_phantom(np.random.default_rng(n), shape=(16, 24, 16)) for n in range(3)}


def plan(round_: int = 1, strategy: str = "fedavg", **fields: object) -> RoundPlan:
    settings: dict[str, Any] = {
        "run": "test", "round": round_, "rounds": 2, "seed": 3, "model": "unet3d-small-affine", "labels": 3,
        "updates_per_case": 4, "slices_per_case": 4,
    }  # fmt: skip
    return RoundPlan.model_validate({**settings, **plan_fields(strategy), **fields})


Make = Callable[..., Site]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Open a site with one case in each of two rounds, and one to test on."""

    def open_site(name: str = "north") -> Site:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            with CaseStore(folder / "store") as store:
                for number, (case, (image, labels)) in enumerate(CASES.items()):
                    store.add_case(case, image, role="test" if number == 2 else "stream")
                    if number == 2:
                        store.save_label(case, labels, author=REFERENCE, round=0, effort=0)
            schedule = '[["case-0"], ["case-1"]]'
            (folder / "site.json").write_text(
                f'{{"name": "{name}", "author": "a", "store": "store", "schedule": {schedule}, "test": ["case-2"]}}'
            )
        annotator = SimulatedAnnotator({case: Truth(labels) for case, (_, labels) in CASES.items()})
        return Site.open(folder, annotator, device="cpu")

    return open_site


def kept(tmp_path: Path, round_: int, name: str = "north") -> Weights:
    return dict(load_arrays(tmp_path / name / "state" / f"round-{round_:05d}" / "local.safetensors"))


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.parametrize(("strategy", "patterns"), [("fedbn", NORMALISATION), ("fedper", HEAD)])
def test_local_keys_stay_at_the_site_and_are_learnt_there(
    make: Make, tmp_path: Path, strategy: str, patterns: tuple[str, ...]
) -> None:
    whole = weights_of(build("unet3d-small-affine", 3, 3))
    own = {name for name in whole if matches(name, patterns)}
    start = initial_weights(plan(strategy=strategy))
    assert start.keys() == whole.keys() - own
    site = make()
    update = site.train(plan(strategy=strategy), start)
    assert update.weights.keys() == start.keys()
    first = kept(tmp_path, 1)
    assert set(first) == {f"personal/{name}" for name in own}
    assert not any(np.array_equal(first[f"personal/{name}"], whole[name]) for name in own if "adn.N" in name)
    # The next round goes on from the site's own, wherever the federation went meanwhile; asked again it says the same.
    two = site.train(plan(2, strategy=strategy), start)
    site.close()
    assert same(make().train(plan(2, strategy=strategy), start).weights, two.weights)
    for name, array in kept(tmp_path, 2).items():
        assert not np.array_equal(array, first[name]) or "adn.A" in name


def test_the_first_round_is_that_of_fedavg_where_all_begin_alike(make: Make) -> None:
    """What stays at a site begins as the seed draws it, so that one round from the start is the same round."""
    usual = make("one").train(plan(), initial_weights(plan())).weights
    own = make("two").train(plan(strategy="fedper"), initial_weights(plan(strategy="fedper"))).weights
    # Two sites differ in their names, and so in what they draw at random.
    assert not same({name: usual[name] for name in own}, own)
    again = make("one")
    again.close()
    assert same({name: usual[name] for name in own}, _first(make, "one", "fedper"))


def _first(make: Make, name: str, strategy: str) -> Weights:
    site = make(name)
    return site.train(plan(strategy=strategy), initial_weights(plan(strategy=strategy))).weights


def test_a_site_evaluates_with_what_it_kept(make: Make, tmp_path: Path) -> None:
    asked = plan(strategy="fedper", updates_per_case=30)
    start = initial_weights(asked)
    site = make()
    before = site.evaluate(asked.model_copy(update={"round": 0}), start)
    site.train(asked, start)
    after = site.evaluate(asked, start)
    assert after["dice"] != before["dice"], "the same weights travelled, the head is another"
    # By hand: the whole network with the head of the snapshot.
    head = {name.removeprefix("personal/"): array for name, array in kept(tmp_path, 1).items()}
    everything = plan(updates_per_case=30)
    assert make("south").evaluate(everything, {**start, **head})["dice"] == after["dice"]


def test_ditto_and_apfl_leave_what_travels_as_it_is_and_are_evaluated_with(make: Make, tmp_path: Path) -> None:
    start = initial_weights(plan())
    usual = make("one").train(plan(updates_per_case=6), start).weights
    for kind in ("ditto", "apfl"):
        (tmp_path / kind).mkdir()
        asked = plan(strategy=kind, updates_per_case=6)
        site = make("one")
        found = site.train(asked, start)
        assert same(found.weights, usual), "the network that travels learns as if there were no other"
        own = kept(tmp_path, 1, "one")
        assert {name.partition("/")[0] for name in own} == {kind}
        network = {name: own[f"{kind}/network.{name}"] for name in start}
        assert not same(network, usual)
        score = site.evaluate(asked, found.weights)
        site.close()
        if kind == "ditto":
            # By hand: the site's own network, whatever was sent.
            assert make("one").evaluate(plan(), network)["dice"] == score["dice"]


def test_scaffold_sends_mean_gradients_and_uses_those_that_come(make: Make, tmp_path: Path) -> None:
    asked = plan(strategy="scaffold")
    start = initial_weights(asked)
    control = {name for name in start if name.startswith(CONTROL)}
    assert {name.removeprefix(CONTROL) for name in control} == start.keys() - control
    site = make()
    update = site.train(asked, start)
    assert update.weights.keys() == start.keys()
    # c = c_i = 0: the site sends its mean gradients, and learns as without.
    assert same({f"{CONTROL}{name.removeprefix('control/')}": a for name, a in kept(tmp_path, 1).items()}, {
        name: update.weights[name] for name in control
    })  # fmt: skip
    assert any(np.abs(update.weights[name]).max() > 0 for name in control)
    site.close()
    usual = make().train(plan(), {name: start[name] for name in start.keys() - control}).weights
    assert same({name: update.weights[name] for name in usual}, usual)
    far = {name: array + 1 if name in control else array for name, array in start.items()}
    assert not same({name: make().train(asked, far).weights[name] for name in usual}, usual)


def test_fednova_normalises_what_was_learnt_and_says_by_what(make: Make) -> None:
    asked = plan(strategy="fednova", normalised_steps=2)
    start = initial_weights(asked)
    found = make().train(asked, start).weights
    usual = make().train(plan(), {name: array for name, array in start.items() if name != STEPS}).weights
    # Four updates of one case, at the round's rate.
    assert found[STEPS].tolist() == [2.0]
    for name, array in usual.items():
        np.testing.assert_allclose(found[name], start[name] + (array - start[name]) / 2, atol=1e-6)


def test_moon_compares_with_the_sites_own_round_before(make: Make, tmp_path: Path) -> None:
    start = initial_weights(plan())
    site = make()
    one = site.train(plan(strategy="moon"), start).weights
    past = kept(tmp_path, 1)
    assert same({name.removeprefix("moon/"): array for name, array in past.items()}, one)
    two = site.train(plan(2, strategy="moon"), start).weights
    site.close()
    # The first round is that of fedavg, the second is not.
    usual = make()
    assert same(usual.train(plan(), start).weights, one)
    assert not same(usual.train(plan(2), start).weights, two)


def test_fedrep_moves_its_two_parts_by_turns(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(strategy="fedrep")
    moved: list[tuple[bool, bool]] = []
    step = OnlineLearner._step

    def watched(learner: OnlineLearner, *arguments: Any) -> float:
        before = learner.weights()
        loss = step(learner, *arguments)
        after = learner.weights()
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        moved.append((any(matches(n, HEAD) for n in changed), any(not matches(n, HEAD) for n in changed)))
        return loss

    monkeypatch.setattr(OnlineLearner, "_step", watched)
    make().train(asked, initial_weights(asked))
    head, body = (True, False), (False, True)
    assert set(moved) == {head, body}
    assert moved[-2:] == [head, body], "rehearsal: two updates, the head first"


@pytest.mark.parametrize("kind", ["ditto", "fedper"])
def test_people_draw_with_what_their_site_kept(make: Make, tmp_path: Path, kind: str) -> None:
    make().close()
    settings = json.loads((tmp_path / "north" / "site.json").read_text())
    live = {name: value for name, value in settings.items() if name not in ("schedule", "test")}
    (tmp_path / "north" / "site.json").write_text(json.dumps(live))
    asked = plan(strategy=kind)
    given = initial_weights(asked)
    whole = weights_of(build(asked.model, asked.labels, 9))
    prefix = "ditto/network." if kind == "ditto" else "personal/"
    own = {name: array for name, array in whole.items() if name not in given or kind == "ditto"}
    local: Any = {f"{prefix}{name}": array for name, array in own.items()}
    Snapshots(tmp_path / "north" / "runs" / "test" / "state").save(SiteState(1, Reservoir(4), local=local))
    make().evaluate(asked, given)
    found = LatestModel(tmp_path / "north" / "model").read()
    assert found is not None
    assert same(found[1], {**given, **own})


def test_a_checkpoint_holds_what_strategies_note(make: Make) -> None:
    """A case whose updates are taken back leaves nothing: neither in control variates, nor in a site's own network."""
    asked = plan(strategy="scaffold", normalised_steps=2, personal="apfl")
    learner = OnlineLearner(LearningSettings.of(asked), torch.device("cpu"))
    learner.load(initial_weights(asked))
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    target = np.stack([image > 1, image <= 1, image > 9]).astype(np.float16)
    sample = Sample("case", image, target, np.ones(image.shape, np.float16))

    def learn() -> None:
        learner.update(lambda: [sample], 1, 1e-2, np.random.default_rng(1))

    learn()
    checkpoint, before = learner.checkpoint(), (learner.leaving(), learner.local())
    learn()
    assert not any(same(one, other) for one, other in zip(before, (learner.leaving(), learner.local()), strict=True))
    learner.restore(checkpoint)
    assert all(same(one, other) for one, other in zip(before, (learner.leaving(), learner.local()), strict=True))


def test_a_network_of_the_sites_own_is_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: list[set[int]] = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda given, most: (clipped.append({id(p) for p in given}), clip(given, most)),
    )
    asked = plan(strategy="ditto")
    learner = OnlineLearner(LearningSettings.of(asked), torch.device("cpu"))
    learner.load(initial_weights(asked))
    image = np.zeros((8, 8, 8), np.float32)
    sample = Sample("c", image, np.stack([image + 1, image, image]).astype(np.float16), np.ones((8, 8, 8), np.float16))
    learner.update(lambda: [sample], 1, 1e-2, np.random.default_rng(1))
    (term,) = learner.terms
    shared, own = ({id(p) for p in module.parameters()} for module in (learner._network, term.own))
    assert clipped == [shared, own]

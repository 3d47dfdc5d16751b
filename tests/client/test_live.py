"""A live site: what its rounds learn from, and that runs do not touch each other."""

from pathlib import Path

import numpy as np
import pytest
from living import SHAPE, START, arrive, make_home, plan, same

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.live import open_live_site
from wardround.errors import DataError, LabelError
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.strategies.contract import Update
from wardround.strategies.plan import RoundPlan


def train(home: SiteHome, settings: RoundPlan) -> Update:
    with open_live_site(home) as site:
        return site.train(settings, START)


def quick(round_: int = 1, **fields: object) -> RoundPlan:
    return plan(round_, **({"updates_per_case": 1, "rounds": 3} | fields))


def test_a_round_learns_from_what_arrived_since_the_last_one(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    assert train(home, quick(1)).metrics["cases"] == 1
    arrive(home, 5, 6, 7)
    # Two a round; the third one waits.
    assert train(home, quick(2)).metrics["cases"] == 2
    third = train(home, quick(3))
    assert third.metrics["cases"] == 1
    assert third.metrics["num-examples"] == 4


def test_a_round_that_is_asked_for_again_does_not_see_what_came_later(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    first = train(home, quick(1))
    arrive(home, 5)
    again = train(home, quick(1))
    assert same(again.weights, first.weights)
    assert again.metrics["cases"] == 1


def test_a_case_without_a_label_waits_for_it(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=0)
    with CaseStore(home.site / STORE) as store:
        store.add_case("bare", draw_phantom(np.random.default_rng(9), shape=SHAPE)[0])
    with pytest.raises(DataError, match="nothing to learn from"):
        train(home, quick(1))
    arrive(home, 5)
    assert train(home, quick(2)).metrics["cases"] == 1


def mark(home: SiteHome, number: int, author: str = IMPORTED) -> None:
    """Import a phantom with a structure of one voxel that other phantoms do not have, in a corner that nobody draws."""
    image, labels = draw_phantom(np.random.default_rng(number), shape=SHAPE)
    labels.array[0, 0, 0] = 3
    with CaseStore(home.site / STORE) as store:
        store.add_case(f"case-{number}", image, "test" if author == REFERENCE else "stream")
        store.save_label(f"case-{number}", labels, author=author, round=0, effort=0.0)


def test_a_label_with_more_structures_than_the_plan_ends_the_round(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    mark(home, 7)
    with pytest.raises(LabelError, match="case-7 goes up to 3, and the plan knows 0 to 2") as refused:
        train(home, quick(1))
    assert "--labels 4" in refused.value.fix
    # Nothing was learnt, and nothing is lost: a run for this many structures learns from both cases.
    with open_live_site(home) as site:
        assert site.status()["seen"] == 0
        enough = weights_of(build("unet3d-small", labels=4, seed=0))
        assert site.train(quick(1, run="more", labels=4), enough).metrics["cases"] == 2


def test_a_reference_with_more_structures_than_the_plan_scores_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    mark(home, 107, REFERENCE)
    with open_live_site(home) as site, pytest.raises(LabelError, match="reference label of case case-107"):
        site.evaluate(quick(1), START)
    assert not list(home.site.rglob("evaluations/*.json"))


def test_cases_to_be_tested_on_are_never_learnt_from(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1, tests=2)
    assert train(home, quick(1)).metrics["num-examples"] == 1
    with open_live_site(home) as site:
        assert site.evaluate(quick(1), START)["num-examples"] == 2
    assert (home.site / "runs" / "test" / "evaluations" / "round-00001.json").exists()


def test_each_run_begins_anew_and_goes_on_where_it_was(tmp_path: Path) -> None:
    home, twin = make_home(tmp_path / "home", cases=1), make_home(tmp_path / "twin", cases=1)
    one = train(home, quick(1, run="one"))
    other = train(home, quick(1, run="two"))
    assert other.metrics["num-examples"] == 1
    assert same(one.weights, other.weights)
    arrive(home, 5)
    second = train(home, quick(2, run="one"))
    train(twin, quick(1, run="one"))
    arrive(twin, 5)
    assert same(second.weights, train(twin, quick(2, run="one")).weights)


def test_what_was_kept_for_old_runs_is_removed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=1)
    for run in ("one", "two", "three"):
        train(home, quick(1, run=run))
    assert sorted(path.name for path in (home.site / "runs").iterdir()) == ["three", "two"]
    with pytest.raises(DataError, match="over at this site"):
        train(home, quick(2, run="one"))


def test_status_counts_what_the_last_run_learnt(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=2, tests=1)
    with open_live_site(home) as site:
        assert site.status() == {"cases": 3, "seen": 0, "round": 0}
        site.train(quick(1), START)
        assert site.status() == {"cases": 3, "seen": 2, "round": 1}
    with open_live_site(home) as site:
        assert site.status() == {"cases": 3, "seen": 2, "round": 1}

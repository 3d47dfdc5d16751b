"""The parts that all pages are made of."""

from wardround.deploy.report import html
from wardround.deploy.report.results import ArmResult, Results


def test_a_heading_leaves_out_what_is_empty_and_escapes_what_is_not() -> None:
    found = html.heading("a <b>", ["3 sites", "", "seed 0"])
    assert found == "<header><h1>a &lt;b&gt;</h1><p class='lead'>3 sites · seed 0</p></header>"


def test_seeds_are_said_once_each() -> None:
    def made(*seeds: int) -> Results:
        return Results(arms=tuple(ArmResult(arm="federated", seed=seed) for seed in seeds))

    assert html.seeds_of(made(2, 0, 2)) == "seeds 0, 2"
    assert html.seeds_of(made(3)) == "seed 3"
    assert not html.seeds_of(made())

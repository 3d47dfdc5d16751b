"""A live site made of phantoms, for tests: its home, its twin in this process, and a real agent process."""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from deployment import eventually
from flwr.app import Array, ArrayRecord

from wardround.client import wire
from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.intake import STORE, make_live_site
from wardround.deploy.site.serving import serve
from wardround.errors import WardroundError
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.strategies.contract import Weights, weights_from_record, weights_to_record
from wardround.strategies.plan import RoundPlan

SHAPE = (16, 24, 16)
START: Weights = weights_of(build("unet3d-small", labels=3, seed=0))


def plan(round_: int = 1, **fields: object) -> RoundPlan:
    """A plan whose rounds take seconds."""
    settings: dict[str, object] = {
        "run": "test", "round": round_, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3,
        "updates_per_case": 4, "slices_per_case": 4,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


def make_home(path: Path, *, cases: int = 2, tests: int = 1, name: str = "north", most: int = 2) -> SiteHome:
    """The home of a live site with phantoms in its store; its rounds take two cases."""
    home = SiteHome(path)
    path.mkdir(mode=0o700, parents=True)
    text = SETTINGS_TEMPLATE.format(name=name, coordinator="https://localhost:1")
    text = text.replace('device = "auto"', 'device = "cpu"')
    home.settings_file.write_text(text.replace("cases-per-round = 20", f"cases-per-round = {most}"))
    home.policy.write_text(POLICY_TEMPLATE.replace("min-cases = 5", "min-cases = 1"))
    make_live_site(home, name)
    arrive(home, *range(cases))
    arrive(home, *range(100, 100 + tests), role="test")
    return home


def arrive(home: SiteHome, *numbers: int, role: Any = "stream") -> None:
    """Import the phantoms of these numbers, with their labels."""
    author = REFERENCE if role == "test" else IMPORTED
    with CaseStore(home.site / STORE) as store:
        for number in numbers:
            image, labels = draw_phantom(np.random.default_rng(number), shape=SHAPE)
            store.add_case(f"case-{number}", image, role)
            store.save_label(f"case-{number}", labels, author=author, round=0, effort=0.0)


def arrays_of(weights: Weights) -> dict[str, Array]:
    """Weights as they travel."""
    return dict(weights_to_record(weights))


def ask(home: SiteHome, kind: str, settings: RoundPlan, weights: Weights = START) -> tuple[dict[str, Any], Weights]:
    """Ask the agent of `home` for a round, as a courier does; its metrics and weights."""
    answer, found = wire.ask(
        home.socket, {"op": kind, "plan": dict(settings.to_record())}, arrays_of(weights), timeout=300
    )
    return answer["metrics"], weights_from_record(ArrayRecord(found))


def same(one: Weights, other: Weights) -> bool:
    """Equal to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def lasting(metrics: Mapping[str, object]) -> dict[str, object]:
    """All of a reply's scalars but the times, which no two rounds share."""
    return {name: value for name, value in metrics.items() if not name.startswith("seconds-")}


# Starting Python with torch takes seconds: one process does so once, and agents are forked off it.
AGENTS = multiprocessing.get_context("forkserver")
AGENTS.set_forkserver_preload(["wardround.deploy.site.serving", "wardround.client.live"])


def answers(home: SiteHome) -> bool:
    """Whether an agent listens."""
    with contextlib.suppress(WardroundError):
        wire.ask(home.socket, {"op": "info"})
        return True
    return False


def start_agent(home: SiteHome) -> BaseProcess:
    """An agent in a process of its own, without a SuperNode; returns when it answers."""
    process = AGENTS.Process(target=serve, args=(home,), kwargs={"connect": False})
    process.start()

    def is_there() -> bool:
        assert process.exitcode is None, f"the agent ended with {process.exitcode}"
        return answers(home)

    eventually(is_there, "the agent")
    return process


@contextlib.contextmanager
def agent_process(home: SiteHome) -> Iterator[BaseProcess]:
    """As :func:`start_agent`, and ended by SIGTERM."""
    process = start_agent(home)
    try:
        yield process
    finally:
        process.terminate()
        process.join(120)
        assert process.exitcode == 0

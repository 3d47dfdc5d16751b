"""One federation for all rows, as long as it gets over them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Ground
from federation import PATIENCE_S, Reference, simulate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are chaos; a run is given up before the test that waits for it."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(4 * PATIENCE_S))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What the federation learns if nothing happens to it."""
    return simulate(tmp_path_factory.mktemp("reference") / "out", sites=2, rounds=2)


class Standing:
    """The federation that stands, if one does."""

    def __init__(self, factory: pytest.TempPathFactory, reference: Reference) -> None:
        self._factory = factory
        self._reference = reference
        self._ground: Ground | None = None

    def ground(self) -> Ground:
        """It, or a new one."""
        if self._ground is None:
            self._ground = Ground.make(self._factory.mktemp("federation"), self._reference).__enter__()
        return self._ground

    def fall(self) -> None:
        """End it."""
        if self._ground is not None:
            self._ground.__exit__()
            self._ground = None


@pytest.fixture(scope="session")
def _standing(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory, reference)
    yield standing
    standing.fall()


@pytest.fixture(scope="module")
def _nothing_stands(_standing: Standing) -> None:
    """One federation at a time: these tests have one of their own."""
    _standing.fall()


@pytest.fixture
def ground(_standing: Standing) -> Iterator[Ground]:
    """A federation that is kept alive, and in which no run is under way."""
    ground = _standing.ground()
    yield ground
    if not ground.is_quiet():
        _standing.fall()

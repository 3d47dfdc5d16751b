"""What a site keeps between rounds, as one snapshot a round.

A snapshot is a folder that appears whole or not at all. The site trains round *r* from the latest snapshot before *r*,
so that a round that is asked for again, because the coordinator lost its answer or any process died, gives the same
answer.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wardround.client.learning.replay import Reservoir
from wardround.errors import StorageError
from wardround.files import new_folder, remove_folder, sweep
from wardround.models.weights import load_arrays, save_arrays

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class SiteState:
    """Everything that the next round depends on besides the plan and the global weights.

    Parameters
    ----------
    round
        The round after which this was taken; 0 before the first.
    reservoir
        Which cases are remembered.
    optimiser
        Moments of the optimiser.
    history
        One record per interaction step so far, for the site's own eyes and the report of a simulation.
    effort
        What was drawn so far, in pixels: ``contour`` and ``strict``.
    """

    round: int
    reservoir: Reservoir
    optimiser: Arrays = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    effort: dict[str, float] = field(default_factory=dict)


class Snapshots:
    """The snapshots of one site in one folder."""

    KEPT = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)

    def before(self, round_: int, capacity: int) -> SiteState:
        """The latest state before round `round_`; a fresh one where the site has none at all.

        Raises
        ------
        StorageError
            If the site has only later states: going back that far would silently begin it anew.
        """
        rounds = self._rounds()
        earlier = [number for number in rounds if number < round_]
        if rounds and not earlier and round_ > 1:
            raise StorageError(
                f"the site holds no state from before round {round_}",
                f"it keeps the last {self.KEPT} rounds, the oldest is round {min(rounds)}",
                "bring the site's state folder back from a copy of that time, or start a new run",
            )
        return self._read(max(earlier)) if earlier else SiteState(0, Reservoir(capacity))

    def latest(self) -> SiteState | None:
        """The newest state, or None before the first round."""
        rounds = self._rounds()
        return self._read(max(rounds)) if rounds else None

    def save(self, state: SiteState) -> None:
        """Store `state` as a whole, replace one of the same round, and drop what no resume can ask for."""
        for number in self._rounds():
            if number >= state.round:
                remove_folder(self._path(number))
        with new_folder(self._path(state.round)) as folder:
            save_arrays(folder / "optimiser.safetensors", state.optimiser)
            content = {
                "round": state.round,
                "capacity": state.reservoir.capacity,
                "seen": state.reservoir.seen,
                "kept": list(state.reservoir.kept),
                "history": list(state.history),
                "effort": state.effort,
            }
            (folder / "state.json").write_text(json.dumps(content))
        for number in sorted(self._rounds())[: -self.KEPT]:
            remove_folder(self._path(number))

    def _read(self, round_: int) -> SiteState:
        folder = self._path(round_)
        try:
            content = json.loads((folder / "state.json").read_text())
            reservoir = Reservoir(content["capacity"], content["seen"], tuple(content["kept"]))
            return SiteState(
                content["round"],
                reservoir,
                load_arrays(folder / "optimiser.safetensors"),
                tuple(content["history"]),
                content["effort"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"cannot read the site's state in {folder}",
                f"the snapshot is damaged ({type(error).__name__})",
                "bring that folder back from a copy, or start a new run",
            ) from error

    def _rounds(self) -> list[int]:
        return [int(path.name.removeprefix("round-")) for path in self._folder.glob("round-*")]

    def _path(self, round_: int) -> Path:
        return self._folder / f"round-{round_:05d}"

"""What a site keeps between rounds, as one snapshot a round.

A snapshot is a folder that appears whole or not at all. The site trains round *r* from the latest snapshot before *r*,
so that a round that is asked for again, because the coordinator lost its answer or any process died, gives the same
answer.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wardround.client.learning.replay import Reservoir
from wardround.errors import StorageError
from wardround.files import new_folder, remove_folder, sweep
from wardround.models.weights import load_arrays, save_arrays

Arrays = dict[str, npt.NDArray[np.generic]]

# Weight of the newest case in the averages of a standing: they follow the last five cases or so.
NEWEST = 0.2
# File of what is local, in snapshots that have any.
LOCAL = "local.safetensors"


@dataclass(frozen=True)
class Standing:
    """How far a site's model has agreed with its annotator so far. Immutable.

    Parameters
    ----------
    trust
        0 … 1: exponential average over the accepted cases of the Dice between what the model said before the case and
        what was drawn. It starts at 0, so that a model has to earn its say, and falls again where the model fails.
    disagreement
        0 … 1: exponential average of the cases' first residual round the object; None before the first case.
    refused
        How many cases were refused in a row, up to now, see :mod:`wardround.client.learning.safeguard`.
    """

    trust: float = 0.0
    disagreement: float | None = None
    refused: int = 0

    def accepting(self, agreement: float, disagreement: float) -> "Standing":
        """The standing after one more accepted case, which ends a run of refusals.

        An `agreement` of NaN (nothing to compare) leaves the trust.
        """
        trust = self.trust if math.isnan(agreement) else (1 - NEWEST) * self.trust + NEWEST * agreement
        usual = disagreement if self.disagreement is None else self.disagreement
        return Standing(trust, (1 - NEWEST) * usual + NEWEST * disagreement)

    def refusing(self) -> "Standing":
        """The standing after one more refused case: it counts, and is no reason for trust or doubt."""
        return replace(self, refused=self.refused + 1)

    def ratio(self, disagreement: float) -> float:
        """How much more than usual a case disagrees: 1 is as usual, and the answer where nothing is usual yet."""
        return disagreement / self.disagreement if self.disagreement else 1.0


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
    standing
        How far the model has agreed with the annotator; that of a new site where an older snapshot knows none.
    local
        What the learner has beside the network and never lets go: heads of its own, see
        :meth:`wardround.client.learning.learner.OnlineLearner.local`.
    """

    round: int
    reservoir: Reservoir
    optimiser: Arrays = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    effort: dict[str, float] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    local: Arrays = field(default_factory=dict)


class Snapshots:
    """The snapshots of one site in one folder."""

    KEPT = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)

    def before(self, round_: int, capacity: int) -> SiteState:
        """The latest state before round `round_`; a fresh one where the site had none at all by then.

        A site may have had nothing to learn from in the first rounds of a run. The one in which it began can be asked
        for again as any other.

        Raises
        ------
        StorageError
            If the site has only later states: going back that far would silently begin it anew.
        """
        rounds = self._rounds()
        earlier = [number for number in rounds if number < round_]
        if rounds and not earlier and round_ > 1 and not self._is_first(min(rounds)):
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
        first = not self._rounds()
        with new_folder(self._path(state.round)) as folder:
            save_arrays(folder / "optimiser.safetensors", state.optimiser)
            if state.local:
                save_arrays(folder / LOCAL, state.local)
            content = {
                "round": state.round,
                "first": first,
                **asdict(state.reservoir),
                "history": list(state.history),
                "effort": state.effort,
                "trust": state.standing.trust,
                "disagreement": state.standing.disagreement,
                "refused": state.standing.refused,
            }
            (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")
        for number in sorted(self._rounds())[: -self.KEPT]:
            remove_folder(self._path(number))

    def _is_first(self, round_: int) -> bool:
        """Whether a snapshot is the site's first; an older version did not write that down."""
        try:
            return json.loads((self._path(round_) / "state.json").read_text(encoding="utf-8")).get("first") is True
        except (OSError, ValueError, AttributeError):
            return False

    def _read(self, round_: int) -> SiteState:
        folder = self._path(round_)
        try:
            content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            names = [field.name for field in fields(Reservoir)]
            # Counts that an older snapshot does not have are those of a reservoir that needs none.
            parts = {name: _tuple(content[name]) for name in names if name in content}
            return SiteState(
                content["round"],
                Reservoir(**parts),
                load_arrays(folder / "optimiser.safetensors"),
                tuple(content["history"]),
                content["effort"],
                Standing(content.get("trust", 0.0), content.get("disagreement"), content.get("refused", 0)),
                load_arrays(folder / LOCAL) if (folder / LOCAL).exists() else {},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"cannot read the site's state in {folder}",
                f"the snapshot is damaged ({type(error).__name__})",
                "bring that folder back from a copy, or start a new run",
            ) from error

    def _rounds(self) -> list[int]:
        return [int(path.name.removeprefix("round-")) for path in self._folder.glob("round-*")]

    def _path(self, round_: int) -> Path:
        return self._folder / f"round-{round_:05d}"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

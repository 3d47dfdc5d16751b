"""The weights that sites which are still at work were given: an update is measured from them, however late it comes.

::

    bases/00007-<digest>.safetensors        what was given in round 7, for as long as somebody works on it
"""

import logging
from collections.abc import Container
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from wardround.files import new_file, sweep
from wardround.server.training import weights_digest
from wardround.strategies.contract import Weights

logger = logging.getLogger(__name__)

BASES = "bases"


class Bases:
    """The folder of them in a journal that somebody holds.

    Parameters
    ----------
    journal
        Folder of the journal.
    """

    def __init__(self, journal: Path) -> None:
        self._folder = journal / BASES
        if self._folder.is_dir():
            sweep(self._folder)

    def keep(self, round: int, weights: Weights) -> None:
        """Keep what was given in a round, durably.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        path = self._folder / f"{round:05d}-{_digest(weights)}.safetensors"
        if not path.exists():
            with new_file(path) as stream:
                stream.write(save(dict(weights)))

    def weights(self, round: int) -> Weights | None:
        """What was given in a round; None where it is not kept, or damaged."""
        for path in self._folder.glob(f"{round:05d}-*.safetensors"):
            try:
                weights: Weights = dict(load(path.read_bytes()))
            except (OSError, SafetensorError):
                weights = {}
            if weights and path.stem.partition("-")[2] == _digest(weights):
                return weights
            logger.warning("what sites were given in round %d is damaged; they are asked anew", round)
        return None

    def drop_all_but(self, rounds: Container[int]) -> None:
        """Remove what nobody works on any more."""
        for path in self._folder.glob("*.safetensors"):
            if int(path.name.partition("-")[0]) not in rounds:
                path.unlink(missing_ok=True)


def _digest(weights: Weights) -> str:
    """Of the arrays in the order of their names: a file has an order of its own."""
    return weights_digest(dict(sorted(weights.items())))

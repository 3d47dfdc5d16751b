"""How far a run is, as a value that travels from a worker to the process that shows it.

It has a module of its own, since whoever receives it imports that module: here, nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    phase
        ``train``, ``aggregate`` or ``evaluate``.
    round, rounds
        Which round, of how many.
    site
        Where, or the empty text.
    fraction
        Share of all streamed cases that were learnt from, 0 … 1.
    dice
        Mean Dice of the model's predictions on the case at hand; None where nothing was predicted.
    """

    phase: str
    round: int
    rounds: int
    site: str
    fraction: float
    dice: float | None = None

"""A site's privacy budget: every step that was taken under differential privacy, as one file on the site's disk.

Steps are charged before they are taken. A crash can therefore leave a charge for steps that nobody took, and never a
step that nobody paid for. What the charges come to is an accountant's to say, which is handed in: the gate knows no
more of it than that it turns charges into ε.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import StorageError
from wardround.files import write_text

BUDGET = "privacy.json"
"""File of the privacy budget in a site's home."""

Method = Literal["rdp", "prv"]
"""How ε is worked out: by Rényi divergences, or by the distribution of the privacy loss itself."""


class Charge(BaseModel):
    """Steps of one kind in one round, each a Gaussian mechanism on a Poisson sample of the site's cases.

    Parameters
    ----------
    run, round
        In which they are taken.
    noise_multiplier
        Standard deviation of the noise over the bound on a case's gradient; more than 0.
    sample_rate
        Probability with which each case takes part in a step; more than 0, at most 1.
    steps
        How many.
    seconds
        Since 1970, by the site's clock: when it was charged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    run: str
    round: Annotated[int, Field(ge=0)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1)]
    seconds: float = 0.0


Charges = tuple[Charge, ...]

Accountant = Callable[[Sequence[Charge], float, Method], float]
"""ε of charges at a δ, by a method; at least 0, and 0 of none."""


class Budget:
    """What the cases of one site have been charged, over all rounds and runs.

    Only one process may charge; any may read.

    Parameters
    ----------
    path
        ``privacy.json``.
    clock
        Seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def charges(self) -> tuple[Charge, ...]:
        """Every charge, the oldest first; none where there is no file.

        Raises
        ------
        StorageError
            If the file cannot be read. Nothing may be charged then: what was spent is not known.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return tuple(Charge.model_validate(each) for each in content["charges"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = "a charge is not one" if isinstance(error, ValidationError) else type(error).__name__
            raise StorageError(
                f"cannot read the privacy budget in {self.path}", cause, "bring that file back from a copy"
            ) from error

    def with_charge(self, run: str, round: int, noise_multiplier: float, sample_rate: float, steps: int) -> Charges:
        """What the charges would be with one more; nothing is written yet."""
        charge = Charge(
            run=run,
            round=round,
            noise_multiplier=noise_multiplier,
            sample_rate=sample_rate,
            steps=steps,
            seconds=self._clock(),
        )
        return (*self.charges(), charge)

    def write(self, charges: Charges) -> None:
        """Replace the file; when this returns, it is on the disk.

        Raises
        ------
        StorageError
            If it cannot be written. The old one is then still there.
        """
        lines = ",\n".join(charge.model_dump_json() for charge in charges)
        write_text(self.path, f'{{"charges": [\n{lines}\n]}}\n')

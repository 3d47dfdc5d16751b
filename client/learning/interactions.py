"""What an observer at a site sees of the loop: every step on every case. None of it leaves with an update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import Annotations
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.cases.volume import Volume


@dataclass(frozen=True, eq=False)
class Interaction:
    """One step of the loop on one case, for an observer at the site.

    Parameters
    ----------
    site, case_id, round
        Where and when.
    step
        0 before anything was drawn; then the number of annotation rounds done.
    annotations
        All that the annotator is charged for so far.
    proxy
        The proxy mask, None at step 0.
    prediction
        ``[C, I, J, K]``, float32, the model's probabilities after this step's updates.
    residual
        ``[I, J, K]``, 0 … 1, disagreement of proxy and prediction, None at step 0.
    image
        The case.
    """

    site: str
    case_id: str
    round: int
    step: int
    annotations: Annotations
    proxy: ProxyMask | None
    prediction: npt.NDArray[np.float32]
    residual: npt.NDArray[np.float32] | None
    image: Volume


class Observer(Protocol):
    """Sees every interaction; what it returns is kept in the site's own history and never leaves with an update."""

    def observe(self, interaction: Interaction) -> Mapping[str, Any]:
        """Score or record one step."""

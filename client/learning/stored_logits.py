"""Dark experience replay: remembered cases come with what the network answered when they were accepted.

DER++ (Buzzega et al. 2020, arXiv 2004.07211, equation 6). A label says what is right; the answer that was stored with
it says how sure the network was of what else it might have been, and is as old as the case. What a softmax does not
see, an offset that all classes share, is taken out of stored and new logits alike: it means nothing, and the mean of
predictions over windows, which is what is stored, has lost it.
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wardround.client.learning.terms import Pass, Term
from wardround.client.supervision.distillation import logit_loss


def centred_logits(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The logits ``[C, I, J, K]`` whose softmax `probabilities` are, and whose mean over the classes is 0."""
    logs = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.asarray(logs - logs.mean(axis=0), dtype=np.float16)


class StoredLogits(Term):
    """Keeps the answers on remembered cases what they were.

    Parameters
    ----------
    weight
        α of DER++. The other half of it, the labels of remembered cases, is what replay learns from anyway.
    """

    name = "stored-logits"

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def __call__(self, seen: Pass) -> Tensor | float:
        """The weighted mean squared difference over voxels with stored logits; 0 where nothing was stored."""
        batch = seen.batch
        if batch.logits is None or batch.known is None:
            return 0.0
        return self.weight * logit_loss(seen.logits - seen.logits.mean(dim=1, keepdim=True), batch.logits, batch.known)

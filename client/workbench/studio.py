"""The studio: every annotator's bench at a site, and the cases that lie on them.

Whoever serves people (the page, the MONAI Label protocol) talks to this module and to nothing below it. Every method
may be called from any thread.
"""

from collections.abc import Callable, Sequence

from wardround.client.annotation.prompts import ExtentPrompt, Prompt
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SiteHome
from wardround.client.workbench.layers import Layer
from wardround.client.workbench.views import (
    Answer,
    CaseView,
    Federation,
    Inference,
    Outcome,
    Progress,
    Source,
    Strategy,
    TrainView,
)

__all__ = [
    "Answer",
    "CaseView",
    "Inference",
    "Outcome",
    "Progress",
    "Studio",
    "TrainView",
]


class Studio:
    """All benches of a site.

    Parameters
    ----------
    home
        The site's folder; benches lie under ``site/benches``.
    store
        Cases, labels and drawings.
    device
        Who may compute; shared with the federation's rounds.
    torch_device
        ``auto``, ``cpu`` or ``cuda``.
    federation
        What the site does for the federation at this moment.
    """

    def __init__(
        self,
        home: SiteHome,
        store: CaseStore,
        device: Device,
        *,
        torch_device: str = "auto",
        federation: Callable[[], Federation] = lambda: "idle",
    ) -> None:
        raise NotImplementedError

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of labels 1, 2, …, as the plan counts them."""
        raise NotImplementedError

    def progress(self, user: str) -> Progress:
        """What the model behind `user`'s drawing is and does."""
        raise NotImplementedError

    def changes(self, user: str) -> int:
        """A number that rises whenever a layer, the progress or a state that `user` sees has changed."""
        raise NotImplementedError

    def wait_for_change(self, user: str, seen: int, timeout_s: float) -> int:
        """Wait until :meth:`changes` is above `seen`, at most `timeout_s` seconds, and return it."""
        raise NotImplementedError

    def cases(self, user: str) -> tuple[CaseView, ...]:
        """All cases, in the order in which they arrived."""
        raise NotImplementedError

    def case(self, case_id: str, user: str) -> CaseView:
        """One case.

        Raises
        ------
        DataError
            If there is no such case.
        """
        raise NotImplementedError

    def image(self, case_id: str) -> Volume:
        """Intensities of a case, float32; the last few are kept at hand."""
        raise NotImplementedError

    def next_case(self, user: str, strategy: Strategy = "disagreement") -> str | None:
        """A case that `user` has not closed yet, None where none is left."""
        raise NotImplementedError

    def open(self, case_id: str, user: str) -> Answer:
        """Lay a case on the user's bench; a draft is resumed, also after a restart. Another open case stays a draft."""
        raise NotImplementedError

    def draw(self, case_id: str, user: str, prompts: Sequence[Prompt], extent: ExtentPrompt | None = None) -> Answer:
        """Answer a drawing with the new proxy; the model learns behind.

        Raises
        ------
        UsageError
            If the case does not lie on the user's bench, or a prompt does not fit it.
        """
        raise NotImplementedError

    def undo(self, case_id: str, user: str) -> Answer:
        """Take the last step back."""
        raise NotImplementedError

    def redo(self, case_id: str, user: str) -> Answer:
        """Draw the step again that was taken back last."""
        raise NotImplementedError

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        """A layer of an open case; None if there is none, or none with a version above `newer_than`."""
        raise NotImplementedError

    def accept(self, case_id: str, user: str, source: Source = "proxy") -> Outcome:
        """Store what was drawn and the label durably, then learn from the case."""
        raise NotImplementedError

    def skip(self, case_id: str, user: str, reason: str) -> Outcome:
        """Put a case aside; what was drawn is kept, nothing is learnt."""
        raise NotImplementedError

    def close(self, case_id: str, user: str) -> None:
        """Take a case off the bench; what was drawn stays a draft."""
        raise NotImplementedError

    def save_label(self, case_id: str, user: str, labels: Volume) -> Outcome:
        """Accept a whole label that another viewer drew."""
        raise NotImplementedError

    def label(self, case_id: str, author: str) -> Volume | None:
        """What `author` has saved of a case."""
        raise NotImplementedError

    def infer(self, image: Volume | str, user: str, prompts: Sequence[Prompt] = ()) -> Inference:
        """Labels of an image, or of a case by its id, without a session."""
        raise NotImplementedError

    def train(self, user: str) -> str:
        """Rehearse from memory, behind; the id of the task."""
        raise NotImplementedError

    def stop_training(self, user: str) -> None:
        """End the user's rehearsal after its update; nothing happens where none runs."""
        raise NotImplementedError

    def training(self, user: str) -> TrainView | None:
        """The user's last rehearsal, None before the first."""
        raise NotImplementedError

    def wait(self, user: str, timeout_s: float) -> bool:
        """Wait until nothing is left to learn; False if it took longer."""
        raise NotImplementedError

    def close_all(self) -> None:
        """End all benches; drafts stay."""
        raise NotImplementedError

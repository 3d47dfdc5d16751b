"""A real workbench on a free port of this machine, with phantoms and three people, for tests.

::

    with workbench(tmp_path / "home") as bench:
        bench.client("ann").get("/api/v1/cases").json()

``ann`` draws, ``rev`` reviews, ``adm`` administers. The server is the one that a site runs, in this process; so is the
studio, unless the test gives another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import argon2
import httpx
import numpy as np
import numpy.typing as npt
from living import SHAPE, make_home

from wardround.client.annotation.prompts import UNLABELLED, Annotations, ExtentPrompt, Prompt, SliceRequest
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench import own
from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.layers import Layer, drawn_bytes, make_layer
from wardround.client.workbench.roster import Role
from wardround.client.workbench.server import STATIC, create_app, serving
from wardround.client.workbench.settings import endpoint
from wardround.client.workbench.views import (
    STATES,
    Answer,
    CaseView,
    Inference,
    Outcome,
    Progress,
    TrainView,
)
from wardround.errors import DataError, UsageError

PEOPLE: dict[str, Role] = {"ann": "annotator", "ben": "annotator", "rev": "reviewer", "adm": "admin"}
QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
"""Hashes that are worth nothing, and cost nothing."""


def password(user: str) -> str:
    """Of one of :data:`PEOPLE`."""
    return f"correct horse of {user}"


@dataclass
class Workbench:
    """A workbench that answers.

    Parameters
    ----------
    home, store, studio, accounts
        Of the site that it serves.
    url
        Without a slash at its end.
    app
        The application.
    """

    home: SiteHome
    store: CaseStore
    studio: Any
    accounts: Accounts
    url: str
    app: Any
    _clients: list[httpx.Client] = field(default_factory=list)

    def token(self, user: str) -> str:
        """A bearer token of one of :data:`PEOPLE`."""
        return str(self.app.state.access.token(user, password(user)))

    def client(self, user: str | None = None, **settings: Any) -> httpx.Client:
        """A client that shows the bearer token of `user`, or nobody's; it is closed with the workbench."""
        headers = {} if user is None else {"authorization": f"Bearer {self.token(user)}"}
        one = httpx.Client(**({"base_url": self.url, "headers": headers, "timeout": 120} | settings))
        self._clients.append(one)
        return one


@contextmanager
def workbench(
    path: Path,
    *,
    cases: int = 2,
    tests: int = 0,
    labels: tuple[str, ...] = ("anterior", "posterior"),
    review: bool = False,
    settings: str = "",
    studio: Callable[..., Any] | None = None,
    export: own.Export | None = None,
    prepare: Callable[[SiteHome], None] | None = None,
    static: Path = STATIC,
    port: int = 0,
) -> Iterator[Workbench]:
    """Serve a workbench as long as the block lasts.

    Parameters
    ----------
    path
        The site's home, made here: `cases` phantoms to learn from (``case-0``, …; 16 x 24 x 16 voxels) and `tests` to
        test on.
    labels, review
        As in site.toml.
    settings
        More lines of ``[workbench]``, and tables after it.
    studio
        Takes what :class:`~wardround.client.workbench.studio.Studio` takes; by default that.
    export
        As in :func:`~wardround.client.workbench.server.create_app`.
    prepare
        Does more to the home before it is served, such as importing cases.
    static
        Folder of the page.
    port
        Where it listens; by default, a free one.
    """
    home = make_home(path, cases=cases, tests=tests)
    site, _, _ = home.settings_file.read_text().partition("[workbench]")
    lines = [f"labels = {list(labels)}".replace("'", '"'), f"review = {str(review).lower()}", settings]
    home.settings_file.write_text(site + "\n".join(["[workbench]", *lines]))
    home = SiteHome(path)
    if prepare is not None:
        prepare(home)
    accounts = Accounts(home.accounts, hasher=QUICK)
    for name, role in PEOPLE.items():
        accounts.add(name, password(name), role)
    if studio is None:
        from wardround.client.workbench.studio import Studio

        studio = Studio
    with ExitStack() as stack:
        store = stack.enter_context(CaseStore(home.site / STORE))
        made = studio(home, store, Device(), torch_device="cpu")
        stack.callback(made.close_all)
        place = replace(endpoint(home), port=port)
        app = create_app(home, made, store, accounts, endpoint=place, export=export, static=static)
        server = stack.enter_context(serving(app, place))
        scheme = "https" if place.certificate else "http"
        bench = Workbench(home, store, made, accounts, f"{scheme}://127.0.0.1:{server.port}", app)
        try:
            yield bench
        finally:
            for client in bench._clients:
                client.close()


def home_to_serve(path: Path, *lines: str, cases: int = 2) -> SiteHome:
    """The home of a site whose workbench `wardround site serve` runs, with an account of ``ann``.

    Parameters
    ----------
    lines
        Of ``[workbench]``.
    """
    home = make_home(path, cases=cases, tests=0)
    text = home.settings_file.read_text().partition("[workbench]")[0]
    labels = 'labels = ["anterior", "posterior"]'
    home.settings_file.write_text("\n".join([text, "[workbench]", labels, *lines]))
    Accounts(home.accounts, hasher=QUICK).add("ann", password("ann"), PEOPLE["ann"])
    return SiteHome(path)


class FakeStudio:
    """A studio that computes nothing: it remembers what it was asked, and its proxy is what was drawn.

    It keeps to the signatures and the errors of the real one, which a test compares.
    """

    def __init__(self, home: SiteHome, store: CaseStore, device: Device, **_: Any) -> None:
        self._store = store
        self.labels = tuple(home.workbench.labels)
        self.asked: list[tuple[str, str, str]] = []
        self.drawn: dict[tuple[str, str], tuple[Prompt, ...]] = {}
        self.undone: dict[tuple[str, str], tuple[Prompt, ...]] = {}
        self.extents: dict[tuple[str, str], ExtentPrompt | None] = {}
        self.opened: dict[str, str] = {}
        self.version = 0
        self.trained: TrainView | None = None
        self._changed = threading.Condition()

    def progress(self, user: str) -> Progress:
        return Progress("0123456789ab", "run", 1, False, self.version, 0, "idle")

    def changes(self, user: str) -> int:
        return self.version

    def wait_for_change(self, user: str, seen: int, timeout_s: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self.version > seen, timeout_s)
            return self.version

    def cases(self, user: str) -> tuple[CaseView, ...]:
        return tuple(self.case(case_id, user) for case_id in self._store.cases("stream"))

    def case(self, case_id: str, user: str) -> CaseView:
        if case_id not in self._store.cases():
            raise DataError(f"there is no case {case_id}", "", "")
        found = {one.author: one for one in self._store.drawings(case_id)}
        mine = found[user].state if user in found else "new"
        furthest = max((one.state for one in found.values()), key=STATES.index, default="new")
        shape = self._store.image(case_id).shape
        return CaseView(case_id, shape, (1.0, 1.0, 1.0), furthest, mine, tuple(found), 0.0, "stream")

    def image(self, case_id: str) -> Volume:
        return self._store.image(case_id)

    def next_case(self, user: str, strategy: str = "disagreement") -> str | None:
        done = {one.case_id for one in self._store.drawings() if one.author == user and one.state != "open"}
        return next((case for case in self._store.cases("stream") if case not in done), None)

    def open(self, case_id: str, user: str) -> Answer:
        self.opened[user] = case_id
        return self._answer("open", case_id, user)

    def draw(self, case_id: str, user: str, prompts: Any, extent: ExtentPrompt | None = None) -> Answer:
        self._check(case_id, user)
        key = (case_id, user)
        self.drawn[key] = (*self.drawn.get(key, ()), *prompts)
        self.extents[key] = extent or self.extents.get(key)
        return self._answer("draw", case_id, user)

    def undo(self, case_id: str, user: str) -> Answer:
        self._check(case_id, user)
        key = (case_id, user)
        self.undone[key], self.drawn[key] = self.drawn.get(key, ())[-1:], self.drawn.get(key, ())[:-1]
        return self._answer("undo", case_id, user)

    def redo(self, case_id: str, user: str) -> Answer:
        self._check(case_id, user)
        key = (case_id, user)
        self.drawn[key] = (*self.drawn.get(key, ()), *self.undone.pop(key, ()))
        return self._answer("redo", case_id, user)

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        self._check(case_id, user)
        if name not in ("proxy", "drawn") or self.version <= newer_than or not self.drawn.get((case_id, user)):
            return None
        drawn = self._drawn(case_id, user)
        values = drawn_bytes(drawn) if name == "drawn" else self._proxy(case_id, user)
        return make_layer(name, self.version, values)  # type: ignore[arg-type]

    def accept(self, case_id: str, user: str, source: str = "proxy", shown: int | None = None) -> Outcome:
        self._check(case_id, user)
        labels = self._store.image(case_id).with_array(self._proxy(case_id, user))
        return self._save(case_id, user, labels, source)

    def skip(self, case_id: str, user: str, reason: str) -> Outcome:
        self._check(case_id, user)
        self._store.save_drawing(Drawing(case_id, user, state="skipped", reason=reason))
        return Outcome(case_id, "skipped", None, self.next_case(user))

    def close(self, case_id: str, user: str) -> None:
        self._check(case_id, user)
        del self.opened[user]

    def save_label(self, case_id: str, user: str, labels: Volume) -> Outcome:
        return self._save(case_id, user, labels, "whole")

    def label(self, case_id: str, author: str) -> Volume | None:
        return self._store.label(case_id, author)

    def infer(self, image: Volume | str, user: str, prompts: Any = (), **_: Any) -> Inference:
        volume = self.image(image) if isinstance(image, str) else image
        return Inference(np.zeros(volume.shape, dtype=np.uint8), {"total": 0.0}, self.progress(user))

    def train(self, user: str) -> str:
        self.trained = TrainView("00000000-0000-4000-8000-000000000000", "DONE", 1.0, 2.0, ("done",))
        return self.trained.id

    def stop_training(self, user: str) -> None:
        return None

    def training(self, user: str) -> TrainView | None:
        return self.trained

    def wait(self, user: str, timeout_s: float) -> bool:
        return True

    def close_all(self) -> None:
        return None

    def _check(self, case_id: str, user: str) -> None:
        if self.opened.get(user) != case_id:
            raise UsageError("the case is not open", "", "open it first")

    def _save(self, case_id: str, user: str, labels: Volume, source: Any) -> Outcome:
        steps = ((self.drawn[case_id, user]),) if (case_id, user) in self.drawn else ()
        self._store.save_drawing(Drawing(case_id, user, steps=steps, state="accepted", source=source), labels)
        return Outcome(case_id, "accepted", None, self.next_case(user))

    def _proxy(self, case_id: str, user: str) -> npt.NDArray[np.uint8]:
        drawn = self._drawn(case_id, user)
        return np.where(drawn == UNLABELLED, 0, drawn).astype(np.uint8)

    def _drawn(self, case_id: str, user: str) -> npt.NDArray[np.uint8]:
        labels = np.full(self._store.image(case_id).shape, UNLABELLED, dtype=np.uint8)
        known = Annotations().adding(*self.drawn.get((case_id, user), ()))
        for one in (*known.slices, *known.scribbles):
            at = (slice(None),) * one.axis + (one.index,)
            labels[at] = np.where(one.labels == UNLABELLED, labels[at], one.labels)
        for point in known.points:
            labels[point.index] = point.label
        return labels

    def _answer(self, what: str, case_id: str, user: str) -> Answer:
        self.asked.append((what, case_id, user))
        with self._changed:
            self.version += 1
            self._changed.notify_all()
        key = (case_id, user)
        annotations = replace(Annotations().adding(*self.drawn.get(key, ())), extent=self.extents.get(key))
        return Answer(
            case_id=case_id,
            step=len(self.drawn.get(key, ())),
            can_undo=bool(self.drawn.get(key)),
            can_redo=bool(self.undone.get(key)),
            suggestion=(SliceRequest(2, SHAPE[2] // 2),),
            effort_contour=1.0,
            effort_strict=1.0,
            effort_share=0.1,
            changed=0.0,
            versions={"proxy": self.version},
            latency_ms={"total": 1.0},
            progress=self.progress(user),
            annotations=annotations,
        )

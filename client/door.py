"""How the ClientApp finds its site, without importing anything heavy.

Whoever owns sites in this process (a simulation, a worker of Flower's engine) attaches them by name; a node says whose
messages it carries. At a live site nothing is attached: the node says where its agent listens, and every question goes
there.
"""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict

from wardround.client.wire import FrameRefused, ask
from wardround.errors import ConnectionFailed, UsageError
from wardround.strategies.codecs.record import read_down
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    Update,
    Weights,
    arrays_in,
    plan_in,
    record_digest,
)
from wardround.strategies.plan import RoundPlan

if TYPE_CHECKING:
    from wardround.client.secure import SecureSite

log = logging.getLogger(__name__)

Kind = Literal["train", "evaluate", "status", "shares", "masked", "confirm", "unmask"]
"""What is asked of a site; the last four are the exchanges of secure aggregation."""

PATIENCE_S = 120.0
"""For how long a courier waits for an agent that went away: whoever keeps it alive starts it again meanwhile."""
_PAUSE_S = 0.2


class SiteLike(Protocol):
    """What the ClientApp needs of a site."""

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        """Learn for one round."""

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        """Score weights on held-back cases."""

    def status(self) -> dict[str, float]:
        """Counts that a coordinator may know."""


class Door(Protocol):
    """Where a message goes in and its answer comes out."""

    def answer(self, kind: Kind, content: RecordDict) -> RecordDict:
        """What the site has to say to a message with `content`."""


class AttachedSite:
    """The door to a site in this very process."""

    def __init__(self, site: SiteLike) -> None:
        self._site = site

    def answer(self, kind: Kind, content: RecordDict) -> RecordDict:
        """Decode plan and weights, call the site, encode what it returns."""
        if kind == "status":
            return RecordDict({METRICS: MetricRecord(dict(self._site.status()))})
        plan = RoundPlan.from_record(plan_in(content))
        if kind not in ("train", "evaluate"):
            return _party(self._site).answer(kind, plan, arrays_in(content))[0]
        weights = read_down(arrays_in(content), plan.codec_down)
        if kind == "evaluate":
            return RecordDict({METRICS: MetricRecord(dict(self._site.evaluate(plan, weights)))})
        if plan.secure:
            return self._offer(plan, content, weights)
        update = self._site.train(plan, weights)
        return RecordDict({ARRAYS: update.record(), METRICS: MetricRecord(dict(update.metrics))})

    def _offer(self, plan: RoundPlan, content: RecordDict, weights: Weights) -> RecordDict:
        """Keys in place of an update, which waits until it is masked."""
        from wardround.client.secure import Terms

        question = f"{plan.digest()}/{record_digest(arrays_in(content))}"
        update = self._site.train(plan, weights)
        return _party(self._site).offer(question, plan, (update.weights, update.metrics), weights, 0, Terms())


class AgentSite:
    """The door to the agent of a live site.

    Arrays pass through as they are, undecoded in both directions: what leaves is byte for byte what the gate released.
    An agent that goes away is waited for and asked again, which is safe: asked for the same round it answers the same.

    Parameters
    ----------
    socket
        Where the agent listens.
    patience_s
        For how long it may be away.
    """

    def __init__(self, socket: Path, patience_s: float = PATIENCE_S) -> None:
        self._socket = socket
        self._patience_s = patience_s

    def answer(self, kind: Kind, content: RecordDict) -> RecordDict:
        """Ask the agent.

        Raises
        ------
        GateRefused
            If the agent answers with the name of an error, as ``code``.
        ConnectionFailed
            If it stays away.
        """
        is_exchange = kind not in ("train", "evaluate", "status")
        header: dict[str, object] = {"op": "secure", "exchange": kind} if is_exchange else {"op": kind}
        arrays = {}
        if kind != "status":
            header["plan"] = dict(plan_in(content))
            arrays = dict(arrays_in(content))
        away_since: float | None = None
        while True:
            try:
                answer, found = ask(self._socket, header, arrays, timeout=None)
            except FrameRefused:
                raise
            except ConnectionFailed as error:
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now - away_since > self._patience_s:
                    raise
                log.warning("%s", error)
                time.sleep(_PAUSE_S)
                continue
            # Where updates are only added up, a site gives no scalars of its own.
            metrics = {METRICS: MetricRecord(answer["metrics"])} if "metrics" in answer else {}
            arrays_too = {} if kind in ("evaluate", "status") else {ARRAYS: ArrayRecord(found)}
            return RecordDict({**arrays_too, **metrics})


_SITES: dict[str, SiteLike] = {}
_PARTIES: "dict[int, SecureSite]" = {}
"""What attached sites hold of secure aggregation, by the identity of the site."""


def attach(name: str, site: SiteLike) -> None:
    """Let messages for the node with ``node_config["site"] == name`` reach `site`, in this process."""
    _SITES[name] = site


def detach_all() -> None:
    """Forget every attached site."""
    _SITES.clear()
    _PARTIES.clear()


def _party(site: SiteLike) -> "SecureSite":
    """The part of an attached site in secure aggregation, with a key that lasts as long as it is attached."""
    # Imported here: a courier to an agent needs none of it.
    from wardround.client.secure import Book, SecureSite
    from wardround.strategies.secure.identity import new_identity

    if id(site) not in _PARTIES:
        identity = new_identity()
        name = next(name for name, attached in _SITES.items() if attached is site)
        _PARTIES[id(site)] = SecureSite(name, lambda: identity, Book())
    return _PARTIES[id(site)]


def open_site(context: Context) -> Door:
    """The door to the site that `context` speaks for.

    It is the one attached under ``node_config["site"]``, else the agent that listens on the socket
    ``node_config["agent"]``.

    Raises
    ------
    UsageError
        If the context names neither.
    """
    name = str(context.node_config.get("site", ""))
    if name in _SITES:
        return AttachedSite(_SITES[name])
    if agent := str(context.node_config.get("agent", "")):
        return AgentSite(Path(agent))
    raise UsageError(
        "this node has no site",
        "its configuration names none that is attached in this process, and no agent",
        "attach it first, or start the node with `wardround site serve`",
    )

"""A round of which the coordinator learns the sum and nothing else; see :mod:`wardround.strategies.secure`.

The sites learn, keep their updates and answer with keys. Four short exchanges follow: shares, masked updates, who is in
the sum, and what takes the masks of the sum away. A masked update is added to the others as it arrives and not kept.

Until the masks are taken away, a crash costs the exchanges and nothing else: sites that have learnt answer with new
keys. From then on the sites would not help with another sum of this round. What has been reached lies on the disk by
then, and a coordinator that is started again goes on there::

    open/00003/secure/state.json     who took part, and what they signed
                      sum.npy        the sum, masked
"""

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from wardround.errors import RoundError, StorageError
from wardround.files import new_folder, remove_folder
from wardround.server.desk import Desk, Refusal, payload, reasons, seeded
from wardround.server.exchange import TooFew, exchange
from wardround.server.grids import RosterGrid
from wardround.server.records import SiteReport, damaged, read_json
from wardround.strategies.catalogue import forget_arrays
from wardround.strategies.codecs.record import read_down, write_down
from wardround.strategies.contract import ARRAYS, NUM_EXAMPLES, PLAN, Metrics, Weights, arrays_in, digest, plan_in
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure import messages, tally
from wardround.strategies.secure.fixed_point import Scale, Sum, Words, decode, given_digest, length
from wardround.strategies.secure.masks import unpack
from wardround.strategies.secure.messages import CONFIRM, MASK, SHARES, UNMASK, Offer
from wardround.strategies.secure.party import threshold_of
from wardround.strategies.validation import RefusedReply, refuse_error

logger = logging.getLogger(__name__)

FOLDER = "secure"
"""In the folder of an open round."""
_STATE, _SUM = "state.json", "sum.npy"
_OFFLINE = "offline"

Take = Callable[[str, RecordDict], None]


@dataclass(frozen=True, eq=False)
class Summed:
    """A sum that has been made known, as one update.

    Parameters
    ----------
    weights
        The mean.
    examples
        Of all sites together.
    metrics
        Of each scalar its total and how many sites gave it; ``num-examples`` alone is one number.
    reports
        Of every site in the sum.
    refused, missing
        Who is not, and why.
    blamed
        Who could have helped it.
    """

    weights: Weights
    examples: float
    metrics: Metrics
    reports: Mapping[str, SiteReport]
    refused: Mapping[str, str]
    missing: Mapping[str, str]
    blamed: frozenset[str]

    @property
    def sites(self) -> int:
        """How many are in the sum."""
        return len(self.reports)

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Arrays of the mean, one after the other."""
        for name in names:
            yield name, self.weights[name]


@dataclass
class _Bill:
    """What the exchanges with a site came to."""

    down: int = 0
    up: int = 0
    seconds: float = 0.0
    digest: str = ""


@dataclass(frozen=True, eq=False)
class _Reached:
    """All that is needed to take the masks away."""

    reckoning: tally.Reckoning
    signatures: Mapping[str, bytes]
    total: Words
    plan: Mapping[str, Any]
    bills: Mapping[str, _Bill] = field(default_factory=dict)


class SecureRound:
    """One attempt at a round under secure aggregation.

    Parameters
    ----------
    desk, plan, weights
        Of the round.
    folder
        Of the open round.
    """

    def __init__(self, desk: Desk, plan: RoundPlan, weights: Weights, folder: Path) -> None:
        self._desk, self._plan, self._weights = desk, plan, weights
        self._number = plan.round
        self._vault = folder / FOLDER
        self._scale = Scale(plan.secure_bits, plan.secure_clip, plan.secure_examples)
        self._nodes: dict[str, int] = {}
        self._bills: dict[str, _Bill] = {}
        self._refused: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._blamed: set[str] = set()
        self._signed_plan: Mapping[str, Any] = {}

    def run(self, roster: Mapping[int, str]) -> Summed:
        """Ask the sites, as far as they are needed, and make the sum known.

        Parameters
        ----------
        roster
            Node ids to names of all who are there and not in quarantine.

        Raises
        ------
        TooFew
            If fewer sites than the quorum or the threshold stay to the end.
        RoundError
            If what they sent does not add up.
        """
        self._nodes = {site: node for node, site in roster.items()}
        reached = self._read()
        if reached is None:
            reached = self._collect(roster)
            self._write(reached)
        else:
            logger.info("round %d goes on where its masks are to be taken away", self._number)
            self._bills, self._signed_plan = dict(reached.bills), reached.plan
        return self._open(reached)

    def _collect(self, roster: Mapping[int, str]) -> _Reached:
        """Everything up to what the sites signed."""
        contents = self._questions(roster)
        (first, *_) = contents.values()
        self._signed_plan = dict(plan_in(first))
        plan = RoundPlan.from_record(self._signed_plan)
        # As sites read them, which a codec may have made coarser.
        context = messages.context_of(plan.digest(), given_digest(read_down(arrays_in(first), plan.codec_down)))
        offers: dict[str, Offer] = {}

        def take_keys(site: str, content: RecordDict) -> None:
            offers[site] = tally.read_offer(_message(content), site, context)

        self._ask("", contents, take_keys, self._desk.settings.deadline_s)
        self._enough("gave keys", len(offers), 1)
        keys = messages.write_roster(offers.values())
        session = messages.session_of(context, keys)
        threshold = threshold_of(len(offers), self._plan.secure_threshold)
        width = self._scale.width(len(offers))

        shares: dict[str, dict[str, bytes]] = {}

        def take_shares(site: str, content: RecordDict) -> None:
            shares[site] = tally.read_shares(_message(content), site, offers)

        self._ask(SHARES, dict.fromkeys(offers, keys), take_shares)
        self._enough("gave shares", len(shares), threshold)

        total = np.zeros(length(self._weights), np.uint64)
        survivors: list[str] = []

        def take_masked(site: str, content: RecordDict) -> None:
            _, data = messages.message_in(arrays_in(content), masked=True)
            if len(data) != width * len(total):
                raise ValueError("the masked update has another length")
            # Added and forgotten: what is kept is a sum.
            np.add(total, unpack(data, width), out=total)
            survivors.append(site)
            self._bills[site].digest = digest(content)

        self._ask(MASK, {site: tally.dealt(shares, site) for site in shares}, take_masked)
        self._enough("gave a masked update", len(survivors), threshold)
        survivors.sort()
        for site in survivors:
            self._desk.tell("reply", self._number, site)

        signatures: dict[str, bytes] = {}

        def take_signature(site: str, content: RecordDict) -> None:
            signatures[site] = tally.read_signature(_message(content), offers[site], session, survivors)

        self._ask(CONFIRM, dict.fromkeys(survivors, messages.write_names(survivors)), take_signature)
        self._enough("agreed on who is in the sum", len(signatures), threshold)
        reckoning = tally.Reckoning(keys, session, tuple(sorted(shares)), tuple(survivors), self._plan.secure_threshold)
        return _Reached(reckoning, signatures, total, self._signed_plan, self._bills)

    def _open(self, reached: _Reached) -> Summed:
        """Take the masks away."""
        reckoning = reached.reckoning
        revealed: dict[str, bytes] = {}

        def take_revealed(site: str, content: RecordDict) -> None:
            said = _message(content)
            tally.read_revealed(said, reckoning.survivors, reckoning.dropped)
            revealed[site] = said

        question = messages.write_table(CONFIRM, reached.signatures)
        refused_before = set(self._refused)
        self._ask(UNMASK, dict.fromkeys(reached.signatures, question), take_revealed)
        gone = (self._refused.keys() - refused_before) | {
            site for site, code in self._missing.items() if code == "secure-unknown"
        }
        if len(reached.signatures.keys() - gone) < reckoning.threshold:
            # Too many have forgotten: only a new attempt can help, over the same sites.
            remove_folder(self._vault)
        self._enough("revealed their shares", len(revealed), reckoning.threshold)
        width = self._scale.width(len(reckoning.offers))
        survivors = reckoning.survivors
        try:
            words = tally.unmask(reached.total, revealed, reckoning, width)
            found = decode(words, self._weights, self._scale, len(survivors), width)
        except ValueError as error:
            remove_folder(self._vault)
            raise RoundError(
                f"round {self._number} was not closed: the masked updates do not add up",
                str(error),
                "a site did not keep to the protocol; look into the sites' logs, then start the run again",
            ) from error
        return self._summed(found, survivors)

    def _summed(self, found: Sum, survivors: tuple[str, ...]) -> Summed:
        left_out = self._refused.keys() | self._missing.keys()
        reports = {}
        for site in survivors:
            bill = self._bills.get(site, _Bill())
            reports[site] = SiteReport({}, bill.down, bill.up, bill.seconds, bill.digest)
        return Summed(
            found.mean,
            float(found.examples),
            {NUM_EXAMPLES: float(found.examples)}
            | {name: [total, float(count)] for name, (total, count) in found.totals.items()},
            reports,
            {site: self._refused[site] for site in sorted(left_out & self._refused.keys()) if site not in reports},
            {site: self._missing[site] for site in sorted(left_out & self._missing.keys()) if site not in reports},
            frozenset(self._blamed - reports.keys()),
        )

    def _questions(self, roster: Mapping[int, str]) -> dict[str, RecordDict]:
        """What the strategy says to each site, with the weights."""
        desk, plan = self._desk, self._plan
        forget_arrays(desk.strategy)
        record = write_down(self._weights, plan.codec_down)
        with seeded(plan):
            chosen = desk.strategy.configure_train(
                self._number, record, plan.to_record(), RosterGrid(desk.grid, roster)
            )
            return {roster[message.metadata.dst_node_id]: message.content for message in chosen}

    def _ask(
        self, action: str, questions: Mapping[str, RecordDict | bytes], take: Take, patience_s: float | None = None
    ) -> None:
        """Ask these sites, again where an answer got lost, and take what they answer."""
        desk = self._desk
        patience = min(desk.settings.deadline_s, desk.settings.exchange_s) if patience_s is None else patience_s
        contents = {
            site: one if isinstance(one, RecordDict) else self._question(one) for site, one in questions.items()
        }
        sizes = {site: payload(content) for site, content in contents.items()}
        deadline, left = desk.pace.now() + patience, desk.settings.retries
        while contents:
            asked = {self._nodes[site]: site for site in contents if site in self._nodes}
            for site in contents.keys() - set(asked.values()):
                self._missing[site] = _OFFLINE
            sent = [desk.message(node, self._number, "train", contents[site], action) for node, site in asked.items()]
            lost = set[str]()
            started = desk.pace.now()
            for answer in exchange(desk.grid, sent, max(0.0, deadline - started), desk.pace, desk.stop):
                site = asked[answer.node]
                bill = self._bills.setdefault(site, _Bill())
                bill.down += sizes[site]
                bill.seconds += desk.pace.now() - started
                refusal = desk.judged(answer, site, self._number, _type(action), self._checking(site, take))
                if refusal is None and answer.reply is not None:
                    bill.up += payload(answer.reply.content)
                    self._refused.pop(site, None)
                    self._missing.pop(site, None)
                elif refusal is not None:
                    self._leave_out(site, refusal)
                    lost |= {site} if refusal.lost else set()
                del answer
            del sent
            contents = {site: contents[site] for site in contents if site in lost}
            if not left or desk.pace.now() >= deadline:
                break
            if contents:
                left -= 1
                desk.rest(min(desk.settings.retry_wait_s, max(0.0, deadline - desk.pace.now())))
                self._nodes |= {site: node for node, site in desk.roster(0, ()).items()}

    def _question(self, message: bytes) -> RecordDict:
        return RecordDict(
            {ARRAYS: messages.arrays_with(message), PLAN: RoundPlan.from_record(self._signed_plan).to_record()}
        )

    def _checking(self, site: str, take: Take) -> Callable[[Message], None]:
        def check(reply: Message) -> None:
            refuse_error(reply)
            try:
                take(site, reply.content)
            except (ValueError, KeyError) as error:
                raise RefusedReply(
                    "secure", "the reply does not keep the protocol of secure aggregation", str(error)
                ) from error

        return check

    def _leave_out(self, site: str, refusal: Refusal) -> None:
        self._refused.pop(site, None)
        self._missing.pop(site, None)
        (self._missing if refusal.absent else self._refused)[site] = refusal.code
        if not refusal.blameless:
            self._blamed.add(site)
        self._desk.tell("refused", self._number, site, reason=refusal.code)

    def _enough(self, what: str, found: int, needed: int) -> None:
        needed = max(needed, self._desk.settings.quorum)
        if found < needed:
            raise TooFew(
                f"round {self._number} was not closed: {found} sites {what}, {needed} are needed",
                reasons(dict(sorted(self._refused.items())), dict(sorted(self._missing.items()))),
                "look into the logs of these sites; then start the run again with the same folder",
            )

    @property
    def left_out(self) -> tuple[dict[str, str], dict[str, str]]:
        """Who was refused and who is missing, and why."""
        return dict(self._refused), dict(self._missing)

    def _write(self, reached: _Reached) -> None:
        reckoning = reached.reckoning
        state = {
            "roster": reckoning.roster.decode("ascii"),
            "session": reckoning.session.hex(),
            "sharers": reckoning.sharers,
            "survivors": reckoning.survivors,
            "signatures": {site: b64encode(one).decode("ascii") for site, one in reached.signatures.items()},
            "plan": dict(reached.plan),
            "bills": {site: vars(bill) for site, bill in reached.bills.items()},
        }
        with new_folder(self._vault) as temporary:
            (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
            np.save(temporary / _SUM, reached.total)

    def _read(self) -> _Reached | None:
        if not self._vault.exists():
            return None
        try:
            state = read_json(self._vault / _STATE)
            reckoning = tally.Reckoning(
                state["roster"].encode("ascii"),
                bytes.fromhex(state["session"]),
                tuple(state["sharers"]),
                tuple(state["survivors"]),
                self._plan.secure_threshold,
            )
            signatures = {site: b64decode(one) for site, one in state["signatures"].items()}
            total = np.load(self._vault / _SUM, allow_pickle=False)
            bills = {site: _Bill(**bill) for site, bill in state["bills"].items()}
            return _Reached(reckoning, signatures, total, state["plan"], bills)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(self._vault) from error
        except StorageError:
            raise damaged(self._vault) from None


def _type(action: str) -> str:
    return f"train.{action}" if action else "train"


def _message(content: RecordDict) -> bytes:
    return messages.message_in(arrays_in(content))[0]

"""One round of training: ask, keep on disk what is good, combine it, close the round."""

import hashlib
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Message, RecordDict

from wardround.server.desk import Desk, Refusal, payload, reasons, report, seeded
from wardround.server.exchange import STILL_OPEN, Answer, TooFew, exchange
from wardround.server.grids import RosterGrid
from wardround.server.journal import LateReport, RoundRecord, SiteReport, Standing
from wardround.server.spool import OpenRound
from wardround.server.standing import judge, quarantined
from wardround.server.summing import sum_up
from wardround.strategies.catalogue import forget_arrays, strategy_state
from wardround.strategies.central_privacy import central_epsilon
from wardround.strategies.codecs.record import PLAIN, Baseline, write_down
from wardround.strategies.contract import (
    ARRAYS,
    NUM_EXAMPLES,
    Weights,
    arrays_in,
    metrics_in,
    record_digest,
    weights_to_record,
)
from wardround.strategies.plan import RoundPlan
from wardround.strategies.streaming import combine_streaming
from wardround.strategies.weighting import Voice, weigh

logger = logging.getLogger(__name__)

BUSY = "busy"
_OFFLINE = "offline"


@dataclass(frozen=True)
class Asked:
    """A message to a site.

    Parameters
    ----------
    site, node
        To whom.
    round
        In which round.
    bytes_down
        Its payload.
    since
        When, on the clock of the run's pace.
    """

    site: str
    node: int
    round: int
    bytes_down: int
    since: float


@dataclass
class Memory:
    """What a run knows from one round to the next, besides the global weights.

    Parameters
    ----------
    standing
        Of every site that has to answer for something.
    seen
        Digests of the weights that sites sent in closed rounds.
    given
        Digest of the weights that this process gave the sites, by round.
    unanswered
        Messages that have no answer yet, by identity. A process that is started again cannot ask for these any more.
    baselines
        What answers are measured from, by round, where the plan has a codec.
    remembered
        What the rule of weighting carries on, by site.
    outstanding
        Site → the round that it was at work on when the last one closed, in buffered rounds.
    """

    standing: Mapping[str, Standing] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    given: dict[int, str] = field(default_factory=dict)
    unanswered: dict[str, Asked] = field(default_factory=dict)
    baselines: dict[int, Baseline] = field(default_factory=dict)
    remembered: Mapping[str, float] = field(default_factory=dict)
    outstanding: Mapping[str, int] = field(default_factory=dict)

    def learn(self, record: RoundRecord) -> None:
        """Take in a closed round."""
        self.standing, self.remembered = record.standing, record.remembered
        self.outstanding = record.outstanding
        reports = [*record.sites.values(), *(late.report for late in record.late.values() if late.report)]
        self.seen |= {one.weights_digest for one in reports if one.weights_digest}

    def forget_before(self, oldest: int) -> None:
        """Wait no more for answers to earlier rounds, and keep only what those to others are measured from."""
        self.unanswered = {name: asked for name, asked in self.unanswered.items() if asked.round >= oldest}
        open_rounds = {asked.round for asked in self.unanswered.values()}
        self.baselines = {round: one for round, one in self.baselines.items() if round in open_rounds}

    def busy(self) -> frozenset[str]:
        """Sites that have not answered yet."""
        return frozenset(asked.site for asked in self.unanswered.values())


def train(desk: Desk, number: int, weights: Weights, memory: Memory) -> tuple[RoundRecord, Weights]:
    """Close one round, or raise and leave everything as it was, but for the updates that were accepted.

    Raises
    ------
    TooFew
        If too few sites were there or answered, at every attempt.
    RoundError
        If what they sent cannot be combined.
    """
    plan = desk.plan(number)
    spool = desk.journal.open_round(number, start_of(plan, weights))
    memory.forget_before(number - (desk.settings.max_staleness if desk.settings.late == "use" else 0))

    def attempt() -> tuple[RoundRecord, Weights]:
        if plan.secure:
            return sum_up(desk, plan, weights, memory, spool)
        made = _Attempt(desk, plan, weights, memory, spool)
        made.run()
        return made.close()

    return desk.persist(number, attempt)


class _Attempt:
    """One try at a round. Updates outlive it in the spool, everything else is said again by the next."""

    def __init__(self, desk: Desk, plan: RoundPlan, weights: Weights, memory: Memory, spool: OpenRound) -> None:
        self._desk, self._plan, self._weights, self._memory, self._spool = desk, plan, weights, memory, spool
        self._number = plan.round
        self._sent: ArrayRecord | None = None
        if (plan.codec, plan.codec_down) != ("none", "none"):
            self._sent = write_down(weights, plan.codec_down)
            memory.baselines[plan.round] = Baseline.of(weights, self._sent, plan.codec, plan.codec_down)
        self._refused: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._blamed: set[str] = set()
        self._lost: set[str] = set()
        self._left = desk.settings.retries
        # When these are asked again though others are still at it, and how long that is after the time before.
        self._again_at, self._pause = 0.0, max(desk.settings.retry_wait_s, 1.0)
        self._late: dict[str, LateReport] = {}
        self._times = [desk.pace.now()]

    def run(self) -> None:
        """Ask everybody whose update is not there yet, and wait for their replies until the deadline.

        Raises
        ------
        TooFew
            If there are too few.
        """
        desk, memory, number = self._desk, self._memory, self._number
        older = {name: asked.node for name, asked in memory.unanswered.items() if asked.round != number}
        # Who has answered an earlier message in the meantime can be asked again.
        for answer in exchange(desk.grid, (), 0.0, desk.pace, desk.stop, earlier=older):
            self._take(answer, memory.unanswered.pop(answer.identity))
            del answer
        answered = self._answered()
        without = quarantined(memory.standing, number, desk.settings)
        roster = desk.roster(max(desk.settings.quorum - len(answered), 0), without, answered)
        desk.tell("round-start", number, metrics={"sites": float(len(answered | set(roster.values())))})
        self._times.append(desk.pace.now())
        deadline = desk.pace.now() + desk.settings.deadline_s
        messages, asked = self._messages(roster, answered)
        wanted = self._spool.asked or frozenset()
        answers = self._ask(messages, deadline)
        del messages
        self._take_all(answers, asked)
        while self._lost and self._left and desk.pace.now() < deadline:
            if not self._open() and len(self._answered()) < desk.settings.quorum:
                # Too few are left: the whole attempt is made anew.
                break
            logger.warning("round %d: what %s sent got lost; asking again", number, ", ".join(sorted(self._lost)))
            if self._open():
                self._pause *= 2
            else:
                # What was killed there is back in a moment.
                self._left -= 1
                desk.rest(min(desk.settings.retry_wait_s, deadline - desk.pace.now()))
            messages, asked = self._messages(desk.roster(0, without), self._answered(), self._lost)
            self._lost -= {one.site for one in asked.values()}
            self._again_at = desk.pace.now() + self._pause
            answers = self._ask(messages, deadline)
            del messages
            self._take_all(answers, asked)
        if self._open() - self._missing.keys():
            # The deadline came when they were to be waited for once more.
            self._take_all(self._ask((), deadline), {})
        self._times.append(desk.pace.now())
        found = len(self._answered())
        if found < desk.settings.quorum:
            self._spool.give_up_attempt(self._refused, self._missing)
            raise TooFew(
                f"round {number} was not closed: {found} of {len(wanted | answered)} replies can be used, "
                f"{desk.settings.quorum} are needed",
                reasons(dict(sorted(self._refused.items())), dict(sorted(self._missing.items()))),
                "look into the logs of these sites; then start the run again with the same folder",
            )

    def _ask(self, messages: Sequence[Message], deadline: float) -> Iterator[Answer]:
        """Answers to these messages, and to former ones; nothing is sent before the first of them is asked for."""
        desk, memory, number = self._desk, self._memory, self._number
        waiting = {name: one.node for name, one in memory.unanswered.items() if one.round == number}
        older = {name: one.node for name, one in memory.unanswered.items() if one.round != number}
        patience = max(0.0, deadline - desk.pace.now())
        # Nobody whose answer got lost waits for the slowest of the others before it is asked again.
        return exchange(
            desk.grid,
            messages,
            patience,
            desk.pace,
            desk.stop,
            waiting=waiting,
            earlier=older,
            until=lambda: bool(self._lost and self._left) and desk.pace.now() >= self._again_at,
        )

    def _open(self) -> set[str]:
        """Sites that were asked in this round and have not answered."""
        return {asked.site for asked in self._memory.unanswered.values() if asked.round == self._number}

    def _take_all(self, answers: Iterator[Answer], asked: Mapping[int, Asked]) -> None:
        memory = self._memory
        for answer in answers:
            earlier = answer.identity in memory.unanswered
            one = memory.unanswered.pop(answer.identity) if earlier else asked[answer.node]
            if answer.reason in ("late", STILL_OPEN):
                memory.unanswered[answer.identity] = one
            if answer.reason != STILL_OPEN:
                self._take(answer, one)
            # The next reply must not find this one still in memory.
            del answer

    def close(self) -> tuple[RoundRecord, Weights]:
        """Combine what was accepted and write it into the journal."""
        desk, memory, number = self._desk, self._memory, self._number
        counted = updates = self._spool.updates()
        shares: Mapping[str, float] = {}
        remembered: Mapping[str, float] = {}
        if not desk.weighting.plain:
            voices = [Voice(one.site, one.report.metrics, self._staleness(one.round)) for one in updates]
            weighed = weigh(desk.weighting, voices, memory.remembered)
            shares, remembered = weighed.by_site(voices), weighed.memory
            counted = [replace(one, examples=share) for one, share in zip(updates, weighed.shares, strict=True)]
        combined = combine_streaming(desk.strategy, number, counted, self._weights)
        for one in updates:
            if one.round != number:
                self._late[one.site] = LateReport(one.round, one.examples, "", one.report)
        sites = {one.site: one.report for one in updates if one.round == number}
        began, met, asked = self._times
        record = RoundRecord(
            round=number,
            plan=self._plan.digest(),
            sites=sites,
            refused=dict(sorted(self._refused.items())),
            missing=dict(sorted(self._missing.items())),
            seconds={"roster": met - began, "sites": asked - met, "aggregate": desk.pace.now() - asked},
            late=dict(sorted(self._late.items())),
            standing=judge(memory.standing, number, sites.keys(), self._blamed, desk.settings),
            attempts=self._spool.failed + 1,
            shares=shares,
            remembered=remembered,
            epsilon=central_epsilon(desk.strategy, number),
        )
        desk.journal.write(record, combined, strategy_state(desk.strategy))
        memory.learn(record)
        counts = {"sites": len(sites), "refused": len(record.refused), "missing": len(record.missing)}
        desk.tell("round-end", number, metrics={**counts, "seconds": desk.pace.now() - began})
        return record, combined

    def _staleness(self, round: int) -> float:
        """By how much an update counts less that was asked for in this round."""
        late = self._number - round
        return self._desk.settings.staleness_weight(late) if late else 1.0

    def _answered(self) -> set[str]:
        return {one.site for one in self._spool.updates() if one.round == self._number}

    def _messages(
        self, roster: Mapping[int, str], answered: set[str], only: Container[str] | None = None
    ) -> tuple[list[Message], dict[int, Asked]]:
        """Messages to those who are asked now; who that is, is on disk before anybody is asked."""
        desk, number = self._desk, self._number
        record = weights_to_record(self._weights)
        self._memory.given[number] = record_digest(record)
        # Who answered before a crash counts among those who are there, so that the same sites are chosen again.
        absent = sorted(answered - set(roster.values()))
        everybody = {**roster, **{-place - 1: site for place, site in enumerate(absent)}}
        everybody = dict(sorted(everybody.items(), key=lambda item: (item[1], item[0])))
        forget_arrays(desk.strategy)
        with seeded(self._plan):
            view = RosterGrid(desk.grid, everybody)
            chosen = {
                message.metadata.dst_node_id: message.content
                for message in desk.strategy.configure_train(number, record, self._plan.to_record(), view)
            }
        wanted = self._spool.asked
        if wanted is None:
            wanted = frozenset(everybody[node] for node in everybody if node in chosen)
            self._spool.begin_attempt(wanted)
        for site in wanted - set(everybody.values()) - self._refused.keys():
            self._missing.setdefault(site, _OFFLINE)
        waited_for = self._open()
        free = {node: site for node, site in roster.items() if site in wanted - answered - waited_for}
        if only is not None:
            free = {node: site for node, site in free.items() if site in only}
        busy = (self._memory.busy() - waited_for) & set(free.values())
        if len(answered) + len(waited_for) + len(free) - len(busy) >= desk.settings.quorum:
            self._missing |= dict.fromkeys(busy, BUSY)
            free = {node: site for node, site in free.items() if site not in busy}
        else:
            # Too few are left without them: they are asked for this round as well, and their older update is forgone.
            unanswered = self._memory.unanswered
            self._memory.unanswered = {name: one for name, one in unanswered.items() if one.site not in busy}
        # A strategy says the same to all whom it chooses; who was chosen before a crash is told that as well.
        usual = next(iter(chosen.values()), RecordDict())
        encoded = {id(one): self._encoded(one) for one in [*chosen.values(), usual]}
        contents = {node: encoded[id(chosen.get(node, usual))] for node in free}
        sizes = {id(content): payload(content) for content in contents.values()}
        now = desk.pace.now()
        asked = {node: Asked(site, node, number, sizes[id(contents[node])], now) for node, site in free.items()}
        return [desk.message(node, number, "train", content) for node, content in contents.items()], asked

    def _encoded(self, content: RecordDict) -> RecordDict:
        """A strategy's message with its weights as the plan's codec has them."""
        if self._sent is None or ARRAYS not in content:
            return content
        return RecordDict({name: self._sent if name == ARRAYS else other for name, other in content.items()})

    def _take(self, answer: Answer, asked: Asked) -> None:
        """Keep an answer, or say why not."""
        desk, number, site = self._desk, self._number, asked.site
        baseline = self._memory.baselines.get(asked.round) or Baseline(self._weights, self._weights, PLAIN)
        judged = judge_answer(desk, self._memory, number, answer, asked, baseline)
        if isinstance(judged, Accepted):
            rounds_late = number - asked.round
            weight = judged.examples * self._staleness(asked.round) if rounds_late else judged.examples
            arrays, about = judged.arrays, judged.about
            if self._spool.accept(site, asked.round, weight, arrays, self._weights, about, baseline.read):
                if not rounds_late:
                    self._refused.pop(site, None)
                    self._missing.pop(site, None)
                desk.tell("late" if rounds_late else "reply", number, site, about.metrics)
            return
        refusal = judged
        if asked.round == number:
            self._refused.pop(site, None)
            self._missing.pop(site, None)
            (self._missing if refusal.absent else self._refused)[site] = refusal.code
            if refusal.lost:
                if not self._lost:
                    self._again_at = desk.pace.now() + self._pause
                self._lost.add(site)
        elif not refusal.absent:
            self._late[site] = LateReport(asked.round, 0.0, refusal.code)
        if not refusal.blameless:
            self._blamed.add(site)
        desk.tell("refused", number, site, reason=refusal.code)


@dataclass(frozen=True, eq=False)
class Accepted:
    """An answer that is as it should be.

    Parameters
    ----------
    examples
        What it weighs in an average.
    arrays
        As they travelled.
    about
        For the journal.
    """

    examples: float
    arrays: ArrayRecord
    about: SiteReport


def judge_answer(  # noqa: PLR0917
    desk: Desk, memory: Memory, number: int, answer: Answer, asked: Asked, baseline: Baseline
) -> Accepted | Refusal:
    """Whether an answer keeps the contract of its round, and was not sent before; `number` is the open round."""
    seconds = desk.pace.now() - asked.since
    refusal = desk.refusal(answer, asked.site, asked.round, "train", baseline.given, baseline.allowed)
    if refusal is not None:
        return refusal
    assert answer.reply is not None
    content = answer.reply.content
    about, arrays = report(content, asked.bytes_down, seconds), arrays_in(content)
    if is_replayed(memory, asked.round, about.weights_digest, arrays, baseline):
        logger.warning("round %d: refused the reply of site %s: it was sent before", number, asked.site)
        return Refusal("replayed", absent=False, blameless=False)
    examples = metrics_in(content)[NUM_EXAMPLES]
    assert isinstance(examples, (int, float))
    return Accepted(examples, arrays, about)


def is_replayed(memory: Memory, round: int, digest: str, arrays: ArrayRecord, baseline: Baseline) -> bool:
    """Whether these arrays, with that digest, were sent before. Who has learnt nothing sends back what it was given."""
    if digest not in memory.seen or digest == memory.given[round]:
        return False
    # What did not change looks the same in every round, written as a change; so do weights given in half precision.
    return not baseline.is_unchanged(arrays)


def start_of(plan: RoundPlan, weights: Weights) -> str:
    """What an update of this round depends on. A deadline may differ where a run is resumed."""
    digest = hashlib.sha256(plan.model_dump_json(exclude={"deadline_s"}).encode())
    digest.update(weights_digest(weights).encode())
    return digest.hexdigest()


def weights_digest(weights: Weights) -> str:
    """SHA-256 of weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, array in weights.items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

"""Rounds that nobody waits for: they close as soon as so many updates are there, whichever round each was asked for.

Every site that is there works on what it was last given. Whoever answers is asked again, for the round that is then
open, once for each round. What is still worked on when a round closes is written down with it, and what these sites
were given is kept (:mod:`wardround.server.bases`): a run that is started again asks them for the same round from the
same weights, so that they answer the same, and an update is measured from where its site began. All checks of a reply,
quarantine, the spool and the journal are those of the synchronous loop.

A round also closes at its deadline, or when nobody is left to ask, if a quorum of updates is there.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace

from flwr.app import Message, RecordDict

from wardround.errors import PlanError, StorageError, UsageError
from wardround.server.bases import BASES, Bases
from wardround.server.desk import Desk, Refusal, payload, reasons
from wardround.server.exchange import STILL_OPEN, Answer, TooFew, exchange, push
from wardround.server.journal import LateReport, RoundRecord
from wardround.server.records import damaged
from wardround.server.settings import LoopSettings
from wardround.server.spool import OpenRound
from wardround.server.standing import judge, quarantined
from wardround.server.training import Asked, Memory, judge_answer, start_of
from wardround.strategies.buffered import Buffered, FedBuff, combine_buffered
from wardround.strategies.catalogue import strategy_state
from wardround.strategies.codecs.record import PLAIN, Baseline, write_down
from wardround.strategies.combine import conform
from wardround.strategies.contract import ARRAYS, PLAN, Weights, record_digest
from wardround.strategies.plan import RoundPlan
from wardround.strategies.weighting import Voice, weigh

logger = logging.getLogger(__name__)

# Why an answer is of no use: what its site was given is damaged here.
_NO_BASE = "base-damaged"

# Whoever comes online while others work is asked after so long at the latest.
_LOOK_AGAIN_S = 30.0


def settings_for(strategy: FedBuff, settings: LoopSettings) -> LoopSettings:
    """The settings of the loop, as far as the strategy decides them: late updates are used, and how.

    What somebody set elsewhere is for :func:`check_unopposed` to find.
    """
    return replace(
        settings,
        late="use",
        staleness_exponent=strategy.staleness_exponent,
        max_staleness=strategy.max_staleness,
    )


def check_unopposed(strategy: FedBuff, given: Mapping[str, object]) -> None:
    """Refuse settings of a run that the strategy decides itself, where they say otherwise.

    Parameters
    ----------
    strategy
        Of the run.
    given
        What somebody set, names with dashes; no default among it.

    Raises
    ------
    UsageError
        Naming the setting and what the strategy has.
    """
    decided = {
        "late": ("use", "updates of earlier rounds"),
        "staleness-exponent": (strategy.staleness_exponent, "the strategy's option staleness_exponent"),
        "max-staleness": (strategy.max_staleness, "the strategy's option max_staleness"),
    }
    for name, (value, source) in decided.items():
        if name in given and given[name] != value:
            raise UsageError(
                f"{name} contradicts fedbuff",
                f"it is set to {given[name]}, and fedbuff takes {source}: {value}",
                f"leave {name} out" if name == "late" else f"leave {name} out, or give both the same value",
            )


def train_buffered(desk: Desk, number: int, weights: Weights, memory: Memory) -> tuple[RoundRecord, Weights]:
    """Close one round, or raise and leave everything as it was, but for the updates that were accepted.

    Raises
    ------
    TooFew
        If too few sites were there or answered, at every attempt.
    RoundError
        If what they sent cannot be combined.
    PlanError
        If the plan asks for masked updates, of which only the sum of a whole round can be read.
    """
    plan = desk.plan(number)
    if plan.secure:
        raise PlanError(
            "secure aggregation cannot be asked for in buffered rounds",
            "masks cancel only in the sum of sites that answer the same round",
            "choose another strategy, or a plan without secure",
        )
    spool = desk.journal.open_round(number, start_of(plan, weights))
    memory.forget_before(number - desk.settings.max_staleness)

    def attempt() -> tuple[RoundRecord, Weights]:
        made = _Attempt(desk, plan, weights, memory, spool)
        made.run()
        return made.close()

    return desk.persist(number, attempt)


class _Attempt:
    """One try at a round. Updates outlive it in the spool, and work in the memory of the run."""

    def __init__(self, desk: Desk, plan: RoundPlan, weights: Weights, memory: Memory, spool: OpenRound) -> None:
        assert isinstance(desk.strategy, FedBuff)
        self._desk, self._plan, self._weights, self._memory, self._spool = desk, plan, weights, memory, spool
        self._strategy = desk.strategy
        self._number = plan.round
        self._bases = Bases(desk.journal.folder)
        self._without = quarantined(memory.standing, plan.round, desk.settings)
        self._refused: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._late: dict[str, LateReport] = {}
        self._blamed: set[str] = set()
        # When a site whose answer got lost is asked again, and how often it may be.
        self._again: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._began = desk.pace.now()
        self._waited = 0.0

    def run(self) -> None:
        """Keep sites at work until the buffer is full.

        Raises
        ------
        TooFew
            If there are too few updates at the deadline, or when nobody is left to ask.
        """
        desk, memory = self._desk, self._memory
        roster = desk.roster(0 if memory.unanswered or self._spool.updates() else 1, self._without)
        self._drop_baseless()
        desk.tell("round-start", self._number, metrics={"sites": float(len(roster))})
        deadline = desk.pace.now() + desk.settings.deadline_s
        self._take_up(roster)
        while not self._is_full(roster) and desk.pace.now() < deadline:
            self._ask_who_is_free(roster)
            if not memory.unanswered and not self._again:
                break
            self._await(deadline)
            roster = desk.roster(0, self._without)
        self._waited = desk.pace.now() - self._began
        self._missing |= dict.fromkeys(self._drop_baseless(), _NO_BASE)
        found = len(self._spool.updates())
        if found < desk.settings.quorum:
            self._spool.give_up_attempt(self._refused, self._missing)
            raise TooFew(
                f"round {self._number} was not closed: {found} updates can be used, {desk.settings.quorum} are needed",
                reasons(dict(sorted(self._refused.items())), dict(sorted(self._missing.items()))),
                "look into the logs of these sites; then start the run again with the same folder",
            )

    def close(self) -> tuple[RoundRecord, Weights]:
        """Combine the buffer and write the round into the journal, with what is still worked on."""
        desk, memory, number = self._desk, self._memory, self._number
        updates = self._spool.updates()
        voices = [Voice(one.site, one.report.metrics) for one in updates]
        weighed = weigh(desk.weighting, voices, memory.remembered)
        buffer = [
            Buffered(one, one.round, share, desk.settings.staleness_weight(number - one.round))
            for one, share in zip(updates, weighed.shares, strict=True)
        ]
        started = desk.pace.now()
        combined = combine_buffered(buffer, self._weights, self._given, self._strategy.server_learning_rate)
        for one in updates:
            if one.round != number:
                self._late[one.site] = LateReport(one.round, one.examples, "", one.report)
        open_now = sorted(memory.unanswered.values(), key=self._turn)
        outstanding = {asked.site: asked.round for asked in open_now}
        if number in outstanding.values():
            self._bases.keep(number, self._weights)
        record = RoundRecord(
            round=number,
            plan=self._plan.digest(),
            sites={one.site: one.report for one in updates if one.round == number},
            refused=dict(sorted(self._refused.items())),
            missing=dict(sorted(self._missing.items())),
            seconds={"sites": self._waited, "aggregate": desk.pace.now() - started},
            late=dict(sorted(self._late.items())),
            standing=judge(memory.standing, number, {one.site for one in updates}, self._blamed, desk.settings),
            attempts=self._spool.failed + 1,
            shares=weighed.by_site(voices),
            remembered=weighed.memory,
            outstanding=outstanding,
        )
        desk.journal.write(record, combined, strategy_state(desk.strategy))
        self._bases.drop_all_but(set(outstanding.values()))
        memory.learn(record)
        counts = {"sites": len(updates), "refused": len(record.refused), "missing": len(record.missing)}
        desk.tell("round-end", number, metrics={**counts, "seconds": desk.pace.now() - self._began})
        return record, combined

    def _drop_baseless(self) -> set[str]:
        """Forget updates of which nobody can tell any more from where they moved, and say whose they were."""
        rounds = {one.round for one in self._spool.updates()} - {self._number}
        lost = {round for round in rounds if self._bases.weights(round) is None}
        dropped = [one for one in self._spool.updates() if one.round in lost]
        for one in dropped:
            self._spool.discard(one)
        return {one.site for one in dropped}

    def _take_up(self, roster: Mapping[int, str]) -> None:
        """After a start: ask again, for the same round, whoever was at work when the run ended."""
        memory = self._memory
        nodes = {site: node for node, site in roster.items()}
        accepted = {(one.site, one.round) for one in self._spool.updates()}
        owed = {**memory.outstanding, **dict.fromkeys(self._spool.asked or (), self._number)}
        memory.outstanding = {}
        for site, round in sorted(owed.items(), key=lambda item: self._turn_of(*item)):
            is_recent = self._number - round <= self._desk.settings.max_staleness
            if site in nodes and site not in memory.busy() and (site, round) not in accepted and is_recent:
                self._send(site, nodes[site], round)

    def _ask_who_is_free(self, roster: Mapping[int, str]) -> None:
        desk, memory = self._desk, self._memory
        now = desk.pace.now()
        answered = {one.site for one in self._spool.updates() if one.round == self._number}
        busy, room = memory.busy(), self._strategy.concurrency or len(roster)
        free = {
            site: node
            for node, site in roster.items()
            if site not in busy | answered
            and (site not in self._refused.keys() | self._missing.keys() or self._again.get(site, now + 1) <= now)
        }
        for site in sorted(free, key=lambda site: self._turn_of(site, self._number))[: max(0, room - len(busy))]:
            self._again.pop(site, None)
            # On disk before anybody is asked.
            self._spool.begin_attempt((self._spool.asked or frozenset()) | {site})
            self._send(site, free[site], self._number)

    def _send(self, site: str, node: int, round: int) -> None:
        """Ask a site for its update of a round; where what was given in it is not kept any more, nothing is sent."""
        desk, memory = self._desk, self._memory
        weights = self._weights if round == self._number else self._bases.weights(round)
        if weights is None:
            return
        plan = desk.plan(round)
        arrays = write_down(conform(weights, self._weights), plan.codec_down)
        memory.given[round] = record_digest(arrays)
        content = RecordDict({ARRAYS: arrays, PLAN: plan.to_record()})
        message: Message = desk.message(node, round, "train", content)
        asked = Asked(site, node, round, payload(content), desk.pace.now())
        sent = push(desk.grid, [message])
        memory.unanswered |= dict.fromkeys(sent, asked)
        if not sent:
            self._miss(asked, Refusal("not-delivered", absent=True, blameless=True, lost=True))

    def _await(self, deadline: float) -> None:
        """Take the next answer that is there, in an order that a run which is started again has as well."""
        desk, memory = self._desk, self._memory
        now = desk.pace.now()
        until = min([deadline, now + _LOOK_AGAIN_S, *(at for at in self._again.values() if at > now)])
        if not memory.unanswered:
            desk.rest(max(0.0, until - now))
            return
        waiting = {
            name: one.node for name, one in sorted(memory.unanswered.items(), key=lambda item: self._turn(item[1]))
        }
        answers = exchange(desk.grid, (), max(0.0, until - now), desk.pace, desk.stop, waiting=waiting)
        for answer in answers:
            if answer.reason not in ("late", STILL_OPEN):
                self._take(answer, memory.unanswered.pop(answer.identity))
                break

    def _take(self, answer: Answer, asked: Asked) -> None:
        """Keep an answer, or say why not."""
        desk, number, site = self._desk, self._number, asked.site
        reply = answer.reply
        try:
            baseline = self._baseline(asked.round)
        except StorageError:
            if reply is not None and not reply.has_error():
                # No fault of the site, and no end of the run: it is asked anew, from weights that are there.
                self._miss(asked, Refusal(_NO_BASE, absent=True, blameless=True, lost=True))
                return
            baseline = self._baseline(number)  # Nothing of it is needed to read an error.
        judged = judge_answer(desk, self._memory, number, answer, asked, baseline)
        if isinstance(judged, Refusal):
            self._miss(asked, judged)
            return
        weight = judged.examples * desk.settings.staleness_weight(number - asked.round)
        arrays, about = judged.arrays, judged.about
        if self._spool.accept(site, asked.round, weight, arrays, self._weights, about, baseline.read):
            self._refused.pop(site, None)
            self._missing.pop(site, None)
            desk.tell("late" if asked.round != number else "reply", number, site, about.metrics)

    def _miss(self, asked: Asked, refusal: Refusal) -> None:
        """Note why an answer is of no use, and when its site is asked again."""
        desk, site = self._desk, asked.site
        self._refused.pop(site, None)
        self._missing.pop(site, None)
        (self._missing if refusal.absent else self._refused)[site] = refusal.code
        if refusal.lost and self._tries.setdefault(site, desk.settings.retries):
            self._tries[site] -= 1
            self._again[site] = desk.pace.now() + desk.settings.retry_wait_s
        if not refusal.blameless:
            self._blamed.add(site)
        desk.tell("refused", self._number, site, reason=refusal.code)

    def _baseline(self, round: int) -> Baseline:
        """What answers to a round are measured from; where the plan has a codec, weights are written by it once."""
        plan, known = self._plan, self._memory.baselines
        if (plan.codec, plan.codec_down) == ("none", "none"):
            given = self._given(round)
            return Baseline(given, given, PLAIN)
        if round not in known:
            given = self._given(round)
            known[round] = Baseline.of(given, write_down(given, plan.codec_down), plan.codec, plan.codec_down)
        return known[round]

    def _given(self, round: int) -> Weights:
        """What sites were given in a round, as the coordinator has it."""
        found = self._weights if round == self._number else self._bases.weights(round)
        if found is None:
            raise damaged(self._desk.journal.folder / BASES)
        return conform(found, self._weights)

    def _is_full(self, roster: Mapping[int, str]) -> bool:
        size = self._strategy.size(len({*roster.values(), *self._memory.busy()}))
        return len(self._spool.updates()) >= max(size, self._desk.settings.quorum)

    def _turn(self, asked: Asked) -> tuple[int, str]:
        return self._turn_of(asked.site, asked.round)

    def _turn_of(self, site: str, round: int) -> tuple[int, str]:
        """Older rounds come first; within one, an order that is drawn anew for each, so that nobody always waits."""
        return round, hashlib.sha256(f"{self._plan.seed}/{round}/{site}".encode()).hexdigest()

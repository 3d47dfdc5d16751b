"""The gate of a site: every message passes here, both ways, and leaves its line in the ledger.

Deny by default: what cannot be read, checked or written down is refused. The gate belongs to the process that owns the
site; what a coordinator submits runs elsewhere and cannot reach it but through the questions below.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, RecordDict

from wardround.client.gate import codes
from wardround.client.gate.approvals import Approvals
from wardround.client.gate.budget import BUDGET, Accountant, Budget
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.lines import Line, Lines, line_kind, refused
from wardround.client.gate.policy import Policy, check_plan, check_usable, load_policy
from wardround.client.gate.releases import Releases
from wardround.client.gate.spending import Spending
from wardround.client.gate.update import (
    Reference,
    check_incoming,
    check_outgoing,
    check_status,
    size_of,
    without_withheld,
)
from wardround.errors import StorageError, WardroundError
from wardround.strategies.codecs.record import down_formats, up_formats
from wardround.strategies.contract import ARRAYS, Weights, digest
from wardround.strategies.plan import RoundPlan
from wardround.strategies.record_privacy import PRIVATE_METRICS

log = logging.getLogger(__name__)

MessageKind = Literal["train", "evaluate", "query"]

_LONGEST_MESSAGE = 2**24
"""Bytes of a message of secure aggregation: keys and shares of many sites."""


class Gate:
    """The one door of a site.

    Parameters
    ----------
    home
        The site's home, with ``policy.toml`` in it. A site without a policy lets nothing in or out.
    clock
        Seconds since 1970.
    accountant
        Turns charges into ε; without one, plans that keep cases private are refused.

    Attributes
    ----------
    budget
        What the site's cases have spent of their privacy.
    ledger
        Every line. Besides this object only who decides on a bundle writes there, by the command line.
    approvals
        Bundles that somebody approved.
    """

    def __init__(
        self, home: Path, clock: Callable[[], float] = time.time, accountant: Accountant | None = None
    ) -> None:
        self.budget = Budget(home / BUDGET, clock)
        self.ledger = Ledger(home / "ledger.jsonl", clock)
        self._lines = Lines(self.ledger)
        self._releases = Releases(self.ledger, self._lines, clock)
        self._spending = Spending(self.budget, self.ledger, accountant)
        self.approvals = Approvals(home, clock, self.ledger)
        self._clock = clock
        self._policy_file = home / "policy.toml"
        self._policy: tuple[tuple[int, int, int], Policy] | None = None
        try:
            self.ledger.heal()
        except StorageError as error:
            log.error("%s", error)  # Nothing passes as long as this is so; but the site can say what is wrong.

    @property
    def policy(self) -> Policy:
        """What the site allows; a change of the file counts from the next message on.

        Raises
        ------
        UsageError
            If it cannot be read.
        """
        try:
            status = self._policy_file.stat()
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            mark = (0, 0, 0)  # Reading it says what is wrong.
        known = self._policy
        if known is None or known[0] != mark:
            policy = load_policy(self._policy_file)
            check_usable(policy, self._policy_file)
            known = self._policy = (mark, policy)
        return known[1]

    def admit_app(self, sha256: str, fab: bytes | None) -> None:
        """Let a bundle run, or keep it for somebody to look at.

        Parameters
        ----------
        sha256
            By which the coordinator names the bundle.
        fab
            The bundle itself, where it is at hand.

        Raises
        ------
        GateRefused
            ``bundle-not-approved``, ``bundle-expired`` or ``bundle-revoked``; ``bundle-hash`` if it is another one than
            was named; any other code of a bundle if it is not a plain one.
        """
        is_digest = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        line = Line("in", "app", bytes=len(fab or b""), sha256=sha256 if is_digest else None)
        with self._lines.judging(line):
            if not is_digest or (fab is not None and hashlib.sha256(fab).hexdigest() != sha256):
                raise refused("bundle-hash")
            try:
                known = self.approvals.get(sha256)
                if known is None or not known.is_valid(self._clock()):
                    if fab is not None:
                        self.approvals.keep(fab)
                    state = "pending" if known is None else known.state
                    raise refused(
                        {"revoked": "bundle-revoked", "approved": "bundle-expired"}.get(state, "bundle-not-approved")
                    )
            except StorageError as error:
                log.error("%s", error)
                raise refused("approvals-unreadable") from None
            self._lines.write(line, "allowed", codes.ADMITTED)

    def admit(
        self,
        kind: MessageKind,
        plan: RoundPlan | None,
        arrays: ArrayRecord | None,
        *,
        reference: Reference | Callable[[RoundPlan], Reference | None] | None = None,
    ) -> None:
        """Let a coordinator's message in.

        Parameters
        ----------
        kind
            ``train`` and ``evaluate`` need a plan and arrays; ``query`` has neither.
        plan
            Of the round.
        arrays
            The weights as they came.
        reference
            Shape and dtype by name of the network that the site would build for this plan, or a function that says
            so, asked only for a plan within the policy; None if nobody can say.

        Raises
        ------
        GateRefused
            With the code of the first check that failed; nothing may then be done with the message.
        """
        content = RecordDict() if arrays is None else RecordDict({ARRAYS: arrays})
        line = Line("in", line_kind(kind), plan, size_of(content))
        with self._lines.judging(line):
            self._check_kind(kind)
            if kind == "query":
                if plan is not None or arrays is not None:
                    raise refused("extra-record")
            else:
                if plan is None or arrays is None:
                    raise refused("missing-record")
                policy = self._policy_now()
                check_plan(plan, policy)
                if kind == "train" and plan.privacy == "record":
                    self._spending.afford(policy, plan, 1)
                looks = reference(plan) if callable(reference) else reference
                check_incoming(arrays, policy, looks, down_formats(plan.codec_down))
                line.sha256 = digest(content)
            self._lines.write(line, "allowed", codes.ADMITTED)

    def release(
        self,
        kind: MessageKind,
        plan: RoundPlan | None,
        content: RecordDict,
        *,
        given: Weights | None = None,
        cases: int = 0,
        epsilon: float | None = None,
        sealed: RecordDict | None = None,
    ) -> str:
        """Let an answer leave, once. What leaves must be this very content: :meth:`released` asks for its digest.

        Parameters
        ----------
        kind, plan
            Of the message that is answered.
        content
            The answer: records ``arrays`` and ``metrics`` for ``train``, ``metrics`` alone otherwise.
        given
            The weights that came in with the message; an answer to a query has none.
        cases
            How many cases stand behind the answer: those that an update was learnt from, or a score worked out on.
            The answer's ``num-examples`` may not be larger.
        epsilon
            ε spent by it; None where no differential privacy was used.
        sealed
            What leaves in its place under secure aggregation: `content` is what is judged, and stays.

        Returns
        -------
        str
            The digest of what leaves.

        Raises
        ------
        GateRefused
            With the code of the first check that failed; the answer must then not leave.
        """
        line = Line("out", line_kind(kind), plan)
        with self._lines.judging(line):
            if type(cases) is not int or cases < 0 or not (epsilon is None or 0 <= epsilon < math.inf):
                raise refused("malformed")
            line.cases, line.epsilon = (None if kind == "query" else cases), epsilon
            self._check_kind(kind)
            policy = self._policy_now()
            if kind == "query":
                check_status(content, policy)
            elif plan is None:
                raise refused("missing-record")
            else:
                check_plan(plan, policy)
                if kind == "train" and plan.privacy == "record":
                    # Whatever else a site tells of its training was worked out without noise.
                    policy = policy.model_copy(update={"train_metrics": policy.train_metrics & PRIVATE_METRICS})
                    line.epsilon = self._spending.epsilon_of(policy, plan)
                check_outgoing(kind, content, policy, given or {}, cases, up_formats(plan.codec))
            return self._let_out(line, content if sealed is None else sealed)

    def admit_message(self, plan: RoundPlan, arrays: ArrayRecord) -> None:
        """Let a message of secure aggregation in. What it says is for the site's party in it to judge.

        Raises
        ------
        GateRefused
            With the code of the first check that failed.
        """
        content = RecordDict({ARRAYS: arrays})
        line = Line("in", "train", plan, size_of(content))
        with self._lines.judging(line):
            self._check_kind("train")
            check_plan(plan, self._policy_now())
            if line.bytes > _LONGEST_MESSAGE:
                raise refused("too-large")
            line.sha256 = digest(content)
            self._lines.write(line, "allowed", codes.ADMITTED)

    def release_message(self, plan: RoundPlan, content: RecordDict, cases: int) -> str:
        """Let a message of secure aggregation leave, once: made by the site itself, of an update that was judged.

        Returns
        -------
        str
            The digest of `content`.

        Raises
        ------
        GateRefused
            With the code of the first check that failed.
        """
        line = Line("out", "train", plan, cases=cases)
        with self._lines.judging(line):
            self._check_kind("train")
            check_plan(plan, self._policy_now())
            return self._let_out(line, content)

    def _let_out(self, line: Line, content: RecordDict) -> str:
        line.bytes, line.sha256 = size_of(content), digest(content)
        self._releases.add(line)
        return line.sha256

    def charge(self, plan: RoundPlan, steps: int) -> float:
        """Charge a round's steps to the privacy budget, before the first of them is taken.

        Parameters
        ----------
        plan
            Of the round, with ``privacy record``.
        steps
            Exactly as many will be taken, or fewer.

        Returns
        -------
        float
            ε spent by then, at the policy's δ. It is on the disk.

        Raises
        ------
        GateRefused
            ``budget-spent`` if it would be more than the policy allows, ``budget-unreadable`` if nobody can say; then
            nothing was charged.
        """
        line = Line("none", "train", plan)
        with self._lines.judging(line):
            charges, epsilon = self._spending.afford(self._policy_now(), plan, steps)
            line.epsilon = epsilon
            self._spending.pay(charges, lambda: self._lines.write(line, "allowed", codes.CHARGED))
            return epsilon

    def spent(self) -> float:
        """ε that the site's cases have spent, at the policy's δ.

        Raises
        ------
        GateRefused
            If it is not known.
        """
        return self._spending.epsilon(self._policy_now(), self._spending.charges())

    def withhold(self, kind: Literal["train", "evaluate"], content: RecordDict) -> RecordDict:
        """`content` without the agreed scalars that the site's policy has taken out. What leaves is for :meth:`release`
        to judge, also where the policy cannot be read."""
        try:
            return without_withheld(kind, content, self.policy)
        except WardroundError:
            return content

    def released(
        self, digest: str, *, kind: str | None = None, run: str | None = None, round: int | None = None
    ) -> bool:
        """Whether a content may be sent now. Each release is good for one sending, also over a restart.

        Parameters
        ----------
        digest
            Of the content that is about to be sent.
        kind, run, round
            Of the message that it answers, where the sender knows them: the release must have been for the same.

        Raises
        ------
        GateRefused
            If the ledger cannot be read or written; nothing may then be sent.
        """
        return self._releases.send(digest, kind, run, round)

    def note_secure(self) -> None:
        """Write down that the book of secure aggregation was changed; see :class:`wardround.client.secure.Book`.

        Raises
        ------
        GateRefused
            If the ledger cannot be written.
        """
        self._lines.write(Line("none", "train"), "allowed", codes.NOTED)

    def note_error(self, kind: str | None, plan: RoundPlan | None, code: str) -> None:
        """Write down that a message was answered with an error: only the code leaves, in place of an answer.

        Refusals of the gate itself are written down already.

        Raises
        ------
        GateRefused
            If the ledger cannot be written.
        """
        self._lines.write(Line("out", line_kind(kind), plan), "refused", codes.safe_code(code))

    def _check_kind(self, kind: str) -> None:
        policy = self._policy_now()
        allowed = {"train": True, "evaluate": policy.allow_evaluate, "query": policy.allow_status}
        if not allowed.get(kind, False):
            raise refused("kind-not-allowed")

    def _policy_now(self) -> Policy:
        try:
            return self.policy
        except WardroundError as error:
            log.error("%s", error)
            raise refused("policy-unreadable") from None

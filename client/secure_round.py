"""What secure aggregation adds to a live site's round: keys leave in place of the update, which is masked later."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, RecordDict

from wardround.client.gate import codes
from wardround.client.gate.gate import Gate
from wardround.client.home import SiteHome
from wardround.client.secure import SecureSite, Terms, open_book, read_identity
from wardround.errors import GateRefused, StorageError
from wardround.strategies.contract import Weights, arrays_in, metrics_in, weights_from_record
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure.party import refused

log = logging.getLogger(__name__)


class SecureRound:
    """A live site's part in sums, under its policy; what it refuses stands in its ledger.

    Parameters
    ----------
    name
        Of the site.
    home
        Holds its key and its book of sums.
    gate
        Holds its policy and its ledger.
    """

    def __init__(self, name: str, home: SiteHome, gate: Gate) -> None:
        self._name = name
        self._home = home
        self._gate = gate
        self._site: SecureSite | None = None

    def check(self, plan: RoundPlan) -> None:
        """Learn nothing where the site has forgotten which sums were made known.

        Raises
        ------
        GateRefused
            ``secure-forgotten``.
        """
        with self._noting(plan):
            _ = self._part

    def offer(self, plan: RoundPlan, question: str, content: RecordDict, given: Weights, cases: int) -> RecordDict:
        """Keys in place of an update, which stays here until it is masked.

        Parameters
        ----------
        plan
            Of the round.
        question
            What the update answers.
        content
            The update: arrays and metrics.
        given
            The weights before the round.
        cases
            How many stand behind it.

        Raises
        ------
        GateRefused
            As :meth:`wardround.client.secure.SecureSite.offer`.
        """
        scalars = {name: value for name, value in metrics_in(content).items() if not isinstance(value, list)}
        update = weights_from_record(arrays_in(content)), scalars
        policy = self._gate.policy
        terms = Terms(policy.min_secure_sites, policy.secure_peers)
        with self._noting(plan):
            return self._part.offer(question, plan, update, given, cases, terms)

    def answer(self, exchange: str, plan: RoundPlan, record: ArrayRecord) -> tuple[RecordDict, int]:
        """What the site says in one of the later exchanges, and how many cases stand behind it.

        Raises
        ------
        GateRefused
            As :meth:`wardround.client.secure.SecureSite.answer`.
        """
        with self._noting(plan):
            return self._part.answer(exchange, plan, record)

    @contextmanager
    def _noting(self, plan: RoundPlan) -> Iterator[None]:
        try:
            yield
        except GateRefused as error:
            self._gate.note_error("train", plan, error.code)
            raise

    @property
    def _part(self) -> SecureSite:
        if self._site is None:
            try:
                book = open_book(self._home.secure, self._gate.ledger, self._gate.note_secure)
            except StorageError as error:
                log.error("%s", error)
                raise refused("secure-forgotten", codes.describe("secure-forgotten")) from error
            self._site = SecureSite(self._name, lambda: read_identity(self._home.node_key), book)
        return self._site

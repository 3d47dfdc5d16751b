"""What a site holds of secure aggregation between two messages: its update, its secrets, and whom it trusts.

Secrets are in memory only. On the disk is what must outlive a restart: who the others are, and which sums were made
known, since two sums over sites that differ by one would tell that one's update.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ArrayRecord, RecordDict

from wardround.client.gate.codes import NOTED
from wardround.client.gate.ledger import Ledger
from wardround.errors import GateRefused, StorageError
from wardround.files import write_text
from wardround.strategies.contract import ARRAYS, Metrics, Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure.fixed_point import Scale, Words, encode, given_digest
from wardround.strategies.secure.identity import Identity, fingerprint, identity_of
from wardround.strategies.secure.messages import (
    CONFIRM,
    MASK,
    SHARES,
    UNMASK,
    arrays_with,
    context_of,
    message_in,
)
from wardround.strategies.secure.party import Party, Rules, refused

log = logging.getLogger(__name__)

_MOST = 2
"""Runs of which a site holds an update at once: each is a model in memory."""


class Book:
    """Who the others are, and which sums were made known.

    Parameters
    ----------
    path
        A JSON file, or None to keep it in memory only.
    noted
        Changes of the file that the site's ledger knows of.
    note
        Called after every change of the file, to be written into the ledger.

    Raises
    ------
    StorageError
        If the file is damaged, is missing though it was there, or is an older copy.
    """

    def __init__(self, path: Path | None = None, noted: int = 0, note: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._note = note
        self._content: dict[str, dict[str, Any]] = {"sites": {}, "revealed": {}, "questions": {}}
        self._noted, self._told = 0, noted
        if path is not None and path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                # A part may be missing, as in books of an earlier version.
                self._content = {name: dict(found.get(name, {})) for name in self._content}
                self._noted = int(found.get("noted", 0))
            except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise StorageError(
                    f"cannot read {path}",
                    "it is damaged: it holds the other sites' keys, and which sums were made known",
                    "restore it from your backup",
                ) from error
        if self._noted < noted:
            raise StorageError(
                f"{path} knows of {self._noted} changes to it, and the ledger of {noted}",
                "it was removed, or an older copy put back: which sums were made known is forgotten",
                "bring the newest copy of that file back; where there is none, see docs/gate.md",
            )

    @property
    def known(self) -> int:
        """How many other sites are known by their keys."""
        return len(self._content["sites"])

    def trust(self, identities: Mapping[str, str], pinned: Mapping[str, str]) -> None:
        """Take the others for who they say they are: as the policy names them, or else as they were the first time.

        Parameters
        ----------
        identities
            Fingerprints by site.
        pinned
            Those of the policy; where there is one, nobody else is trusted.

        Raises
        ------
        GateRefused
            ``secure-peer`` if one is unknown where it must be known, or has another key than it had.
        """
        known = pinned or self._content["sites"]
        for site, found in identities.items():
            if site in known and known[site] != found:
                raise refused("secure-peer", "a site has another key than it is known by")
            if pinned and site not in pinned:
                raise refused("secure-peer", "a site is not among secure-peers of the policy")
        new = {} if pinned else {site: found for site, found in identities.items() if site not in known}
        if new:
            for site, found in new.items() if self._path else ():  # What is in memory ends with the simulation.
                log.warning("site %s takes part for the first time; its key is %s", site, found)
            self._write(sites={**known, **new})

    def allow(self, plan: RoundPlan, given: bytes, survivors: tuple[str, ...]) -> None:
        """Refuse a sum over other sites than one of the same round that was made known, or of the same question.

        What a site learns follows from the weights that it is given and from the plan, whatever the run is called. Of
        the plan, seed and number of the round are looked at: with these, the same numbers are drawn at random, and any
        other field could be changed by so little that answers stay the same.

        Parameters
        ----------
        plan
            Of the round.
        given
            Digest of the weights before it; see :func:`wardround.strategies.secure.fixed_point.given_digest`.
        survivors
            Sites in the sum.

        Raises
        ------
        GateRefused
            ``secure-set``.
        """
        known = self._content["revealed"].get(plan.run, {}).get(str(plan.round))
        if known not in (None, _digest(survivors)):
            raise refused("secure-set", "the sum over other sites was made known in this round")
        if self._content["questions"].get(_question(plan, given)) not in (None, _digest(survivors)):
            raise refused("secure-set", "the sum over other sites was made known for the same weights and seed")

    def reveal(self, plan: RoundPlan, given: bytes, survivors: tuple[str, ...]) -> None:
        """Write down which sum is about to be made known."""
        revealed = self._content["revealed"]
        rounds = {**revealed.get(plan.run, {}), str(plan.round): _digest(survivors)}
        questions = {**self._content["questions"], _question(plan, given): _digest(survivors)}
        self._write(revealed={**revealed, plan.run: rounds}, questions=questions)

    def _write(self, **changed: dict[str, Any]) -> None:
        content = {**self._content, **changed}
        if self._path is not None:
            write_text(self._path, json.dumps({**content, "noted": self._noted + 1}, indent=1) + "\n")
            self._noted += 1
        self._content = content
        if self._path is not None:
            self._tell()  # After the file: whatever ends this in between leaves a book that knows more than the ledger.

    def catch_up(self) -> None:
        """Tell the ledger of changes that a kill kept from it; a book of an earlier version becomes its first.

        Raises
        ------
        GateRefused
            If the ledger cannot be written.
        """
        if not self._noted and any(self._content.values()):
            self._write()
        self._tell()

    def _tell(self) -> None:
        while self._told < self._noted:
            self._note()
            self._told += 1


def open_book(path: Path, ledger: Ledger, note: Callable[[], None] | None = None) -> Book:
    """The book of a live site, held against what its ledger knows of it; see :class:`Book`.

    Without `note` it is looked at only, and nothing is written.

    Raises
    ------
    StorageError
        Also if the ledger is not whole.
    GateRefused
        If the ledger lacks a change, and cannot be written.
    """
    book = Book(path, ledger.count(NOTED), note or (lambda: None))
    if note is not None:
        book.catch_up()
    return book


@dataclass(frozen=True)
class Terms:
    """What a site's policy says of secure aggregation.

    Parameters
    ----------
    least
        So many sites must be in a sum.
    peers
        Fingerprints of the sites that are trusted; empty for whoever comes first under a name.
    """

    least: int = 2
    peers: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class _Held:
    """One update, in one attempt to add it up."""

    question: str
    plan: RoundPlan
    party: Party
    words: Words
    scale: Scale
    cases: int


class SecureSite:
    """One site's part in secure aggregation.

    Parameters
    ----------
    name
        Of the site.
    identity
        Gives its key when it is first needed.
    book
        See :class:`Book`.
    """

    def __init__(self, name: str, identity: Callable[[], Identity], book: Book) -> None:
        self._name = name
        self._identity = identity
        self._book = book
        self._held: dict[str, _Held] = {}

    def offer(  # noqa: PLR0917
        self, question: str, plan: RoundPlan, update: tuple[Weights, Metrics], given: Weights, cases: int, terms: Terms
    ) -> RecordDict:
        """Keep an update, and answer with keys in its place.

        Parameters
        ----------
        question
            What the update answers. Asked the same again before anything else, the site gives the same keys.
        plan
            Of the round.
        update
            Weights and metrics.
        given
            Weights before the round, as the site was given them.
        cases
            How many stand behind the update.
        terms
            Of the policy.

        Raises
        ------
        GateRefused
            ``secure-range`` if the update does not fit into the numbers of the plan.
        """
        held = self._held.get(plan.run)
        if held is None or held.question != question or held.party.has_begun:
            scale = Scale(plan.secure_bits, plan.secure_clip, plan.secure_examples)
            weights, metrics = update
            words = encode(weights, given, metrics, scale)
            begun = given_digest(given)
            rules = Rules(
                plan.secure_threshold,
                terms.least,
                trusted=lambda found: self._book.trust(_fingerprints(found), terms.peers or {}),
                allowed=lambda survivors: self._book.allow(plan, begun, survivors),
                revealing=lambda survivors: self._book.reveal(plan, begun, survivors),
            )
            party = Party(self._name, self._identity(), context_of(plan.digest(), begun), rules)
            self._held.pop(plan.run, None)
            while len(self._held) >= _MOST:
                self._held.pop(next(iter(self._held)))
            held = self._held[plan.run] = _Held(question, plan, party, words, scale, cases)
        return RecordDict({ARRAYS: arrays_with(held.party.offer)})

    def answer(self, exchange: str, plan: RoundPlan, arrays: ArrayRecord) -> tuple[RecordDict, int]:
        """What the site says in one of the later exchanges, and how many cases stand behind it.

        Raises
        ------
        GateRefused
            ``secure-unknown`` if it holds no update for this round, as after a restart; else as :class:`Party`.
        """
        held = self._held.get(plan.run)
        if held is None or held.plan.digest() != plan.digest():
            raise refused("secure-unknown", "it holds no update for this round: it was started again, or asked anew")
        try:
            message, _ = message_in(arrays)
        except ValueError as error:
            raise refused("malformed", str(error)) from error
        party = held.party
        if exchange == MASK:
            masked = party.mask(message, lambda sites: (held.words, held.scale.width(sites)))
            return RecordDict({ARRAYS: arrays_with(b"", masked)}), held.cases
        say = {SHARES: party.share, CONFIRM: party.confirm, UNMASK: party.unmask}
        if exchange not in say:
            raise refused("malformed", "there is no such exchange")
        return RecordDict({ARRAYS: arrays_with(say[exchange](message))}), held.cases


def read_identity(path: Path) -> Identity:
    """The identity of a live site: the key with which its SuperNode proves who it is.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot read {path}", type(error).__name__, "run `wardround site doctor`, or take it from a copy"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"cannot use {path}", "it is no key on a NIST curve", "make a site's key anew")
    return identity_of(key)


def _fingerprints(identities: Mapping[str, bytes]) -> dict[str, str]:
    try:
        return {site: fingerprint(public) for site, public in identities.items()}
    except ValueError as error:
        raise GateRefused("a site's key is none", str(error), "", code="secure-peer") from error


def _question(plan: RoundPlan, given: bytes) -> str:
    """What a site's answer hangs on, in whatever run it is asked."""
    return hashlib.sha256(json.dumps([given.hex(), plan.seed, plan.round]).encode()).hexdigest()[:32]


def _digest(survivors: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(survivors).encode()).hexdigest()[:32]

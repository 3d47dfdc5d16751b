"""One site's side of secure aggregation: what it says in each exchange, and what it refuses to say.

A party takes part in one attempt at one round. It answers every exchange once: asked the same again, it says the same;
asked something else, it refuses. That alone keeps a coordinator from getting both kinds of share of one site out of it,
or two sums that differ by one update. Its secrets are in memory only: a site that was started again has dropped out.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wardround.errors import GateRefused
from wardround.strategies.secure import messages
from wardround.strategies.secure.fixed_point import Words
from wardround.strategies.secure.identity import Identity, signed
from wardround.strategies.secure.masks import Pair, add_masks, agree, derive, pack
from wardround.strategies.secure.messages import CONFIRM, MASK, SHARES, UNMASK, Offer
from wardround.strategies.secure.shamir import SHARE_BYTES, split

LEAST_SHARE = 2 / 3
"""With *t* of *n* needed, *c* sites that work with the coordinator get both kinds of share of another one unless
2t > n + c. More than two thirds keeps that for every *c* below a third (Bonawitz et al. 2017, section 6.2)."""
PURPOSE_SEAL = "seal"
PURPOSE_PAIR = "pair mask"
PURPOSE_SELF = "self mask"

_Read = TypeVar("_Read")

_NONCE = bytes(12)
"""A key seals one message only: it is of one pair, one direction and one session."""


def threshold_of(sites: int, share: float) -> int:
    """How many of `sites` are needed: more than `share` of them, all of them at most."""
    return min(sites, int(share * sites) + 1)


@dataclass(frozen=True)
class Rules:
    """What a site asks of every sum that it takes part in.

    Parameters
    ----------
    share
        Of the sites that gave keys, more than this must stay to the end; from :data:`LEAST_SHARE` up.
    least
        So many sites must be in the sum.
    trusted
        Raises `GateRefused` where names and identities of the others are not those that this site knows.
    allowed
        Raises `GateRefused` where the sum over these sites must not be made known, as where another one was.
    revealing
        Told which sum is about to be made known, before it is; whatever it raises keeps it from that.
    """

    share: float
    least: int
    trusted: Callable[[Mapping[str, bytes]], None] = lambda identities: None
    allowed: Callable[[tuple[str, ...]], None] = lambda survivors: None
    revealing: Callable[[tuple[str, ...]], None] = lambda survivors: None

    def __post_init__(self) -> None:
        if not LEAST_SHARE <= self.share <= 1:
            raise ValueError("share must be between 2/3 and 1")


class Party:
    """One site in one attempt.

    Parameters
    ----------
    site
        Its name.
    identity
        Its long-lived key.
    context
        See :func:`wardround.strategies.secure.messages.context_of`.
    rules
        See :class:`Rules`.
    """

    def __init__(self, site: str, identity: Identity, context: bytes, rules: Rules) -> None:
        self._site = site
        self._identity = identity
        self._context = context
        self._rules = rules
        self._sealing, self._masking = Pair.fresh(), Pair.fresh()
        self._seed = secrets.token_bytes(32)
        self._offer = Offer.make(site, identity, (self._sealing, self._masking), self._seed, context)
        self._session = b""
        self._roster: dict[str, Offer] = {}
        self._threshold = 0
        self._own: tuple[bytes, bytes] = (b"", b"")
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._survivors: tuple[str, ...] = ()
        self._answered: dict[str, tuple[bytes, bytes]] = {}

    @property
    def offer(self) -> bytes:
        """The first thing that it says: its keys."""
        return self._offer.to_bytes()

    @property
    def has_begun(self) -> bool:
        """Whether it was asked for anything but its keys."""
        return bool(self._answered)

    @property
    def sites(self) -> int:
        """How many gave keys; 0 before it was told."""
        return len(self._roster)

    def share(self, roster: bytes) -> bytes:
        """Look at everybody's keys, and give everybody else a share of this site's secrets.

        Raises
        ------
        GateRefused
            ``secure-keys``, ``secure-session`` or ``secure-too-few``.
        """
        return self._once(SHARES, roster, lambda: self._share(roster))

    def mask(self, sealed: bytes, encode: Callable[[int], tuple[Words, int]]) -> bytes:
        """Open the shares of others, and give the update under masks.

        Parameters
        ----------
        sealed
            The shares that the others gave for this site.
        encode
            Gives, for a number of sites, the update as numbers of the ring and their width.

        Raises
        ------
        GateRefused
            ``secure-keys``, ``secure-too-few``, ``secure-again``; whatever `encode` raises.
        """
        return self._once(MASK, sealed, lambda: self._mask(sealed, encode), after=SHARES)

    def confirm(self, survivors: bytes) -> bytes:
        """Sign who is in the sum.

        Raises
        ------
        GateRefused
            ``secure-too-few``, ``secure-keys`` where somebody is named who gave no shares, ``secure-again``; whatever
            the rules raise.
        """
        return self._once(CONFIRM, survivors, lambda: self._confirm(survivors), after=MASK)

    def unmask(self, signatures: bytes) -> bytes:
        """Give one share of each other site: of the seed of those in the sum, of the key of the others.

        Raises
        ------
        GateRefused
            ``secure-signatures`` where not enough others signed what this site signed; ``secure-again``.
        """
        return self._once(UNMASK, signatures, lambda: self._unmask(signatures), after=CONFIRM)

    def _once(self, exchange: str, question: bytes, answer: Callable[[], bytes], after: str = "") -> bytes:
        if after and after not in self._answered:
            raise refused("secure-session", "an exchange before this one was left out")
        if exchange in self._answered:
            known, said = self._answered[exchange]
            if known != question:
                raise refused("secure-again", "it was asked something else before")
            return said
        said = answer()
        self._answered[exchange] = (question, said)
        return said

    def _share(self, roster: bytes) -> bytes:
        offers = {each.site: each for each in _read(messages.read_roster, roster)}
        if offers.get(self._site) != self._offer:
            raise refused("secure-session", "this site's own keys are not among the others'")
        self._check_count(len(offers))
        if not all(each.is_genuine(self._context) for each in offers.values()):
            raise refused("secure-keys", "keys are not signed by their site for this round")
        self._rules.trusted({each.site: each.identity for each in offers.values()})
        session = messages.session_of(self._context, roster)
        threshold = threshold_of(len(offers), self._rules.share)
        seeds = split(self._seed, len(offers), threshold)
        keys = split(self._masking.private, len(offers), threshold)
        sealed, own = {}, (b"", b"")
        for point, (site, offer) in enumerate(offers.items(), start=1):
            if site == self._site:
                own = (seeds[point], keys[point])
                continue
            key = self._sealing_key(offer, session, self._site, site)
            sealed[site] = ChaCha20Poly1305(key).encrypt(_NONCE, seeds[point] + keys[point], None)
        self._roster, self._session, self._threshold, self._own = offers, session, threshold, own
        return messages.write_table(SHARES, sealed)

    def _mask(self, sealed: bytes, encode: Callable[[int], tuple[Words, int]]) -> bytes:
        table = _read(lambda data: messages.read_table(SHARES, data), sealed)
        if not table.keys() <= self._roster.keys() - {self._site}:
            raise refused("secure-keys", "shares came from somebody who gave no keys")
        self._check_count(len(table) + 1)
        held = {self._site: self._own}
        pairs = []
        for site, box in table.items():
            offer = self._roster[site]
            try:
                key = self._sealing_key(offer, self._session, site, self._site)
                shares = ChaCha20Poly1305(key).decrypt(_NONCE, box, None)
            except InvalidTag:
                raise refused("secure-keys", "shares were not sealed by the site that they are said to be of") from None
            if len(shares) != 2 * SHARE_BYTES:
                raise refused("malformed", "shares have another length")
            held[site] = (shares[:SHARE_BYTES], shares[SHARE_BYTES:])
            pairs.append((pair_key(self._masking.private, offer.masking, self._session), sign(self._site, site)))
        words, width = encode(len(self._roster))
        words = words.copy()
        add_masks(words, [*pairs, (self_key(self._seed, self._session), 1)], width)
        self._held = held
        return pack(words, width)

    def _confirm(self, survivors: bytes) -> bytes:
        sites = _read(messages.read_names, survivors)
        if self._site not in sites or not set(sites) <= self._held.keys():
            raise refused("secure-keys", "the sum is said to be of others than those who gave shares")
        self._check_count(len(sites))
        self._rules.allowed(sites)
        signature = self._identity.sign(messages.survivors_message(self._session, sites))
        self._survivors = sites
        return messages.write_table(CONFIRM, {self._site: signature})

    def _unmask(self, signatures: bytes) -> bytes:
        table = _read(lambda data: messages.read_table(CONFIRM, data), signatures)
        message = messages.survivors_message(self._session, self._survivors)
        agreed = [
            site
            for site, signature in table.items()
            if site in self._survivors and signed(self._roster[site].identity, signature, message)
        ]
        if len(agreed) != len(table) or len(agreed) < max(self._threshold, self._rules.least):
            raise refused("secure-signatures", f"{len(agreed)} others signed the same, {self._threshold} are needed")
        self._rules.revealing(self._survivors)
        seeds = {site: self._held[site][0] for site in self._survivors}
        keys = {site: self._held[site][1] for site in self._held if site not in self._survivors}
        return messages.write_revealed(seeds, keys)

    def _check_count(self, count: int) -> None:
        needed = max(self._rules.least, threshold_of(len(self._roster), self._rules.share) if self._roster else 0)
        if count < needed:
            raise refused("secure-too-few", f"{count} sites, {needed} are needed")

    def _sealing_key(self, other: Offer, session: bytes, sender: str, receiver: str) -> bytes:
        try:
            return agree(self._sealing.private, other.sealing, session, f"{PURPOSE_SEAL} {sender} {receiver}")
        except ValueError:
            raise refused("secure-keys", "a key is none") from None


def pair_key(private: bytes, public: bytes, session: bytes) -> bytes:
    """The key of the mask of two sites, from either side.

    Raises
    ------
    GateRefused
        If the public key is none.
    """
    try:
        return agree(private, public, session, PURPOSE_PAIR)
    except ValueError:
        raise refused("secure-keys", "a key is none") from None


def self_key(seed: bytes, session: bytes) -> bytes:
    """The key of a site's own mask."""
    return derive(seed, session, PURPOSE_SELF)


def sign(site: str, other: str) -> int:
    """Whether a site adds the mask that it has with another, or takes it away."""
    return 1 if site < other else -1


def refused(code: str, cause: str) -> GateRefused:
    """The error by which a site refuses."""
    return GateRefused("the site does not go on with this secure aggregation", cause, "see its ledger", code=code)


def _read(read: Callable[[bytes], _Read], data: bytes) -> _Read:
    try:
        return read(data)
    except ValueError as error:
        raise refused("malformed", str(error)) from error

"""A whole sum of some sites in memory, with a hook between any two steps."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.strategies.contract import Weights
from wardround.strategies.secure import messages, tally
from wardround.strategies.secure.fixed_point import Scale, Sum, decode, encode, given_digest, length
from wardround.strategies.secure.identity import Identity, identity_of
from wardround.strategies.secure.masks import unpack
from wardround.strategies.secure.party import Party, Rules

SCALE = Scale(bits=20, clip=8.0, examples=65536)
IDENTITIES: dict[str, Identity] = {}


def identity(site: str) -> Identity:
    """One for each name; on a curve that is fast."""
    if site not in IDENTITIES:
        IDENTITIES[site] = identity_of(ec.generate_private_key(ec.SECP256R1()))
    return IDENTITIES[site]


@dataclass
class Table:
    """Some sites round one coordinator.

    Parameters
    ----------
    given
        Weights before the round.
    updates
        Of each site its weights after it, and its ``num-examples``.
    plan
        Stands for the digest of the round's plan.
    """

    given: Weights
    updates: Mapping[str, tuple[Weights, int]]
    plan: str = "plan of round 1"
    share: float = 2 / 3
    least: int = 2
    parties: dict[str, Party] = field(default_factory=dict)
    roster: bytes = b""
    given_shares: dict[str, dict[str, bytes]] = field(default_factory=dict)
    masked: dict[str, bytes] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    revealed: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = messages.context_of(self.plan, given_digest(self.given))
        rules = Rules(self.share, self.least)
        self.parties = {site: Party(site, identity(site), self.context, rules) for site in self.updates}

    @property
    def offers(self) -> dict[str, messages.Offer]:
        return {site: tally.read_offer(one.offer, site, self.context) for site, one in self.parties.items()}

    @property
    def session(self) -> bytes:
        return messages.session_of(self.context, self.roster)

    @property
    def width(self) -> int:
        return SCALE.width(len(messages.read_roster(self.roster)))

    @property
    def reckoning(self) -> tally.Reckoning:
        sharers, survivors = tuple(sorted(self.given_shares)), tuple(sorted(self.masked))
        return tally.Reckoning(self.roster, self.session, sharers, survivors, self.share)

    def keys(self, without: Collection[str] = ()) -> "Table":
        self.roster = messages.write_roster(o for site, o in self.offers.items() if site not in without)
        return self

    def shares(self, without: Collection[str] = ()) -> "Table":
        names = [each.site for each in messages.read_roster(self.roster)]
        for site in names:
            if site not in without:
                self.given_shares[site] = tally.read_shares(self.parties[site].share(self.roster), site, names)
        return self

    def encoder(self, site: str) -> Callable[[int], tuple[np.ndarray, int]]:
        weights, examples = self.updates[site]
        words = encode(weights, self.given, {"num-examples": float(examples), "loss": 0.5}, SCALE)
        return lambda sites: (words, SCALE.width(sites))

    def mask(self, without: Collection[str] = ()) -> "Table":
        for site in self.given_shares:
            if site not in without:
                sealed = tally.dealt(self.given_shares, site)
                self.masked[site] = self.parties[site].mask(sealed, self.encoder(site))
        return self

    def confirm(self, without: Collection[str] = ()) -> "Table":
        names = messages.write_names(self.masked)
        for site in self.masked:
            if site not in without:
                said = self.parties[site].confirm(names)
                offer = self.offers[site]
                self.signatures[site] = tally.read_signature(said, offer, self.session, sorted(self.masked))
        return self

    def unmask(self, without: Collection[str] = ()) -> "Table":
        question = messages.write_table(messages.CONFIRM, self.signatures)
        for site in self.signatures:
            if site not in without:
                self.revealed[site] = self.parties[site].unmask(question)
        return self

    @property
    def total(self) -> np.ndarray:
        total = np.zeros(length(self.given), np.uint64)
        for data in self.masked.values():
            total += unpack(data, self.width)
        return total

    def sum(self) -> Sum:
        words = tally.unmask(self.total, self.revealed, self.reckoning, self.width)
        return decode(words, self.given, SCALE, len(self.masked), self.width)

    def plain_mean(self) -> Weights:
        """What the sum must say, worked out in the open."""
        examples = {site: self.updates[site][1] for site in self.masked}
        whole = sum(examples.values())
        return {
            name: sum(self.updates[site][0][name].astype(np.float64) * n / whole for site, n in examples.items())
            for name in self.given
        }


@pytest.fixture
def table() -> type[Table]:
    return Table


@pytest.fixture
def some() -> Callable[..., Table]:
    """A table of `count` sites with small random updates."""

    def make(count: int, seed: int = 0, **fields: object) -> Table:
        rng = np.random.default_rng(seed)
        given: Weights = {
            "conv.weight": rng.normal(size=(4, 3, 2)).astype(np.float32),
            "conv.bias": np.float32(rng.normal(size=5)),
            "norm.count": np.array(7, np.int64),
        }
        updates = {}
        for number in range(count):
            moved = {
                name: (array + rng.normal(scale=0.5, size=array.shape)).astype(np.float32)
                for name, array in given.items()
                if array.dtype.kind == "f"
            }
            updates[f"site-{number:02d}"] = ({**moved, "norm.count": np.array(7 + number)}, 1 + 13 * number)
        return Table(given, updates, **fields)  # type: ignore[arg-type]

    return make

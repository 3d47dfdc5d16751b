"""The coordinator's side of secure aggregation: add up what is masked, and take away the masks of the sum.

It verifies what it can, so that one site that does not keep the protocol is left out and does not stop the others; what
protects the sites is what they verify themselves (:mod:`wardround.strategies.secure.party`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np

from wardround.strategies.secure import messages
from wardround.strategies.secure.fixed_point import Words
from wardround.strategies.secure.identity import signed
from wardround.strategies.secure.masks import Pair, add_masks
from wardround.strategies.secure.messages import CONFIRM, SHARES, Offer, commitment_of
from wardround.strategies.secure.party import pair_key, self_key, sign, threshold_of
from wardround.strategies.secure.shamir import join

_TRIES = 200
"""So many choices of shares are tried before a secret is given up."""


def read_offer(data: bytes, site: str, context: bytes) -> Offer:
    """The keys that a site gave.

    Raises
    ------
    ValueError
        If they are not its own, made for this round.
    """
    offer = Offer.from_bytes(data)
    if offer.site != site or not offer.is_genuine(context):
        raise ValueError("the keys are not signed by the site for this round")
    return offer


def read_shares(data: bytes, site: str, roster: Iterable[str]) -> dict[str, bytes]:
    """The sealed shares that a site gave for each of the others.

    Raises
    ------
    ValueError
        If somebody is left out, or there is one too many.
    """
    table = messages.read_table(SHARES, data)
    if table.keys() != set(roster) - {site}:
        raise ValueError("the shares are not for those who gave keys")
    return table


def dealt(given: Mapping[str, Mapping[str, bytes]], site: str) -> bytes:
    """What the others gave for one site; `given` holds, by site, what it gave."""
    return messages.write_table(SHARES, {giver: table[site] for giver, table in given.items() if giver != site})


def read_signature(data: bytes, offer: Offer, session: bytes, survivors: Sequence[str]) -> bytes:
    """The signature of a site under who is in the sum.

    Raises
    ------
    ValueError
        If it is none.
    """
    table = messages.read_table(CONFIRM, data)
    message = messages.survivors_message(session, survivors)
    if table.keys() != {offer.site} or not signed(offer.identity, table[offer.site], message):
        raise ValueError("it did not sign who is in the sum")
    return table[offer.site]


def read_revealed(
    data: bytes, survivors: Iterable[str], dropped: Iterable[str]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The shares that a site revealed: of seeds, and of keys.

    Raises
    ------
    ValueError
        If they are of others than was agreed.
    """
    seeds, keys = messages.read_revealed(data)
    if seeds.keys() != set(survivors) or keys.keys() != set(dropped):
        raise ValueError("the shares are not of those who were agreed on")
    return seeds, keys


@dataclass(frozen=True)
class Reckoning:
    """Who took part, as everybody agreed.

    Parameters
    ----------
    roster
        Everybody's keys as they were sent.
    session
        See :func:`wardround.strategies.secure.messages.session_of`.
    sharers
        Sites that gave shares.
    survivors
        Those of them whose masked update is in the sum.
    share
        As the plan says it; see :func:`wardround.strategies.secure.party.threshold_of`.
    """

    roster: bytes
    session: bytes
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    share: float

    @property
    def offers(self) -> dict[str, Offer]:
        """Everybody's keys."""
        return {each.site: each for each in messages.read_roster(self.roster)}

    @property
    def threshold(self) -> int:
        """How many must reveal their shares."""
        return threshold_of(len(self.offers), self.share)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Sites that gave shares and are not in the sum."""
        return tuple(site for site in self.sharers if site not in self.survivors)


def unmask(total: Words, revealed: Mapping[str, bytes], reckoning: Reckoning, width: int) -> Words:
    """The sum without its masks.

    Parameters
    ----------
    total
        The sum of the masked updates of all survivors.
    revealed
        By site, what it revealed; see :func:`read_revealed`.
    reckoning
        Who took part.
    width
        Bytes of a number.

    Raises
    ------
    ValueError
        If there are fewer than the threshold, or their shares do not fit together.
    """
    if len(revealed) < reckoning.threshold:
        raise ValueError(f"{len(revealed)} sites revealed their shares, {reckoning.threshold} are needed")
    offers = reckoning.offers
    points = {site: point for point, site in enumerate(offers, start=1)}
    read = {
        points[site]: read_revealed(data, reckoning.survivors, reckoning.dropped)
        for site, data in sorted(revealed.items())
    }
    masks: list[tuple[bytes, int]] = []
    for site in reckoning.survivors:
        commitment = offers[site].commitment
        shares = {point: seeds[site] for point, (seeds, _) in read.items()}
        seed = _joined(shares, reckoning, commitment_of, commitment)
        masks.append((self_key(seed, reckoning.session), -1))
    for site in reckoning.dropped:
        masking = offers[site].masking
        shares = {point: keys[site] for point, (_, keys) in read.items()}
        key = _joined(shares, reckoning, lambda key: Pair.of(key).public, masking)
        for other in reckoning.survivors:
            masks.append((pair_key(key, offers[other].masking, reckoning.session), -sign(other, site)))
    words: Words = np.array(total)
    add_masks(words, masks, width)
    return words


def _joined(shares: Mapping[int, bytes], reckoning: Reckoning, mark: Callable[[bytes], bytes], known: bytes) -> bytes:
    """The secret behind shares of which a few may be false; its mark is known."""
    rng = np.random.default_rng(list(reckoning.session))
    for chosen in islice(_choices(sorted(shares), reckoning.threshold, rng), _TRIES):
        try:
            secret = join({point: shares[point] for point in chosen})
        except ValueError:
            continue
        if mark(secret) == known:
            return secret
    raise ValueError("shares that were revealed do not fit together")


def _choices(points: Sequence[int], threshold: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Choices of shares: without each one in turn, then all if they are few, else at random."""
    if len(points) > threshold:
        for place in range(len(points)):
            yield (*points[place + 1 :], *points[:place])[:threshold]
    if comb(len(points), threshold) <= _TRIES - len(points):
        yield from combinations(points, threshold)
        return
    while True:
        yield tuple(int(point) for point in rng.choice(points, threshold, replace=False))

"""What travels in secure aggregation besides weights: small JSON objects, written in one way only, in one array.

The masked update travels as an array of its own, as bytes.
"""

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from wardround.strategies.contract import decode
from wardround.strategies.secure.identity import Identity, signed
from wardround.strategies.secure.masks import KEY_BYTES, Pair

MESSAGE = "secure"
"""Name of the array with the message."""
MASKED = "masked"
"""Name of the array with the masked update."""

SHARES = "shares"
MASK = "masked"
CONFIRM = "confirm"
UNMASK = "unmask"
EXCHANGES = (SHARES, MASK, CONFIRM, UNMASK)
"""What a site is asked after it has learnt, in this order; in Flower's words ``train.shares`` and so on."""

_VERSION = 1
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,127}")


@dataclass(frozen=True)
class Offer:
    """The public keys with which a site takes part in one attempt at one round.

    Parameters
    ----------
    site
        Its name.
    identity
        See :class:`wardround.strategies.secure.identity.Identity`.
    sealing
        Others seal for it what they send it by the coordinator.
    masking
        Others agree with it on masks.
    commitment
        Of the seed of its own mask: whoever puts the seed together from shares knows by it whether it is the seed.
    signature
        By the identity, over all of it and the context.
    """

    site: str
    identity: bytes
    sealing: bytes
    masking: bytes
    commitment: bytes
    signature: bytes

    @classmethod
    def make(cls, site: str, identity: Identity, pairs: tuple[Pair, Pair], seed: bytes, context: bytes) -> "Offer":
        """Sign an offer of a pair to seal with and one to mask with."""
        sealing, masking = pairs
        parts = (identity.public, sealing.public, masking.public, commitment_of(seed))
        return cls(site, *parts, identity.sign(_offered(site, parts, context)))

    def is_genuine(self, context: bytes) -> bool:
        """Whether its site made it for this very round."""
        parts = (self.identity, self.sealing, self.masking, self.commitment)
        return signed(self.identity, self.signature, _offered(self.site, parts, context))

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _dump("offer", self._body())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Offer":
        """Read one.

        Raises
        ------
        ValueError
            If it is none.
        """
        return cls._read(_load("offer", data))

    def _body(self) -> dict[str, str]:
        return {"site": self.site, **{name: _text(getattr(self, name)) for name in _OFFER}}

    @classmethod
    def _read(cls, body: object) -> "Offer":
        if not isinstance(body, dict) or body.keys() != {"site", *_OFFER}:
            raise ValueError("an offer has other fields")
        offer = cls(_site(body["site"]), **{name: _bytes(body[name]) for name in _OFFER})
        if any(len(key) != KEY_BYTES for key in (offer.sealing, offer.masking, offer.commitment)):
            raise ValueError("a key has another length")
        return offer


_OFFER = ("identity", "sealing", "masking", "commitment", "signature")


def commitment_of(seed: bytes) -> bytes:
    """What a site says of its seed before it deals shares of it."""
    return sha256(b"wardround secure seed\n" + seed).digest()


def context_of(plan: str, given: bytes) -> bytes:
    """What keys are made for: the digest of a round's plan, run and number included, and of the weights it begins with.

    See :func:`wardround.strategies.secure.fixed_point.given_digest`.
    """
    return sha256(json.dumps([_VERSION, plan, given.hex()]).encode()).digest()


def write_roster(offers: Iterable[Offer]) -> bytes:
    """Everybody's keys, in the order of the sites' names."""
    return _dump("roster", {"offers": [each._body() for each in sorted(offers, key=lambda each: each.site)]})


def read_roster(data: bytes) -> tuple[Offer, ...]:
    """Everybody's keys.

    Raises
    ------
    ValueError
        If they are not in the order of the names, or two have a name, an identity or a key in common.
    """
    body = _load("roster", data)
    if body.keys() != {"offers"} or not isinstance(body["offers"], list):
        raise ValueError("a roster has other fields")
    offers = tuple(Offer._read(each) for each in body["offers"])
    names = [each.site for each in offers]
    keys = [key for each in offers for key in (each.sealing, each.masking)]
    if names != sorted(names) or any(
        len(set(values)) != len(values) for values in (names, keys, [each.identity for each in offers])
    ):
        raise ValueError("two sites of the roster are one")
    return offers


def session_of(context: bytes, roster: bytes) -> bytes:
    """What everything that follows is bound to: the round and everybody's keys."""
    return sha256(b"wardround secure session\n" + context + roster).digest()


def write_table(kind: str, table: Mapping[str, bytes]) -> bytes:
    """Bytes for each of some sites."""
    return _dump(kind, {site: _text(value) for site, value in sorted(table.items())})


def read_table(kind: str, data: bytes) -> dict[str, bytes]:
    """Bytes for each of some sites.

    Raises
    ------
    ValueError
        If it is no such table.
    """
    return {_site(site): _bytes(value) for site, value in _load(kind, data).items()}


def write_names(sites: Iterable[str]) -> bytes:
    """Some sites."""
    return _dump("survivors", {"sites": sorted(sites)})


def read_names(data: bytes) -> tuple[str, ...]:
    """Some sites, in order.

    Raises
    ------
    ValueError
        If it is no such list.
    """
    body = _load("survivors", data)
    if body.keys() != {"sites"} or not isinstance(body["sites"], list):
        raise ValueError("a list of sites has other fields")
    names = tuple(_site(each) for each in body["sites"])
    if list(names) != sorted(set(names)):
        raise ValueError("a list of sites is not in order")
    return names


def write_revealed(seeds: Mapping[str, bytes], keys: Mapping[str, bytes]) -> bytes:
    """Shares of the seeds of those in the sum, and of the keys of those who dropped out."""
    tables = {"seeds": seeds, "keys": keys}
    return _dump(
        "revealed", {name: {site: _text(v) for site, v in sorted(table.items())} for name, table in tables.items()}
    )


def read_revealed(data: bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Shares of seeds and shares of keys.

    Raises
    ------
    ValueError
        If it is no such pair.
    """
    body = _load("revealed", data)
    if body.keys() != {"seeds", "keys"} or not all(isinstance(table, dict) for table in body.values()):
        raise ValueError("what is revealed has other fields")
    seeds, keys = ({_site(s): _bytes(v) for s, v in body[name].items()} for name in ("seeds", "keys"))
    return seeds, keys


def survivors_message(session: bytes, sites: Iterable[str]) -> bytes:
    """What a site signs who agrees on who is in the sum."""
    return b"wardround secure survivors\n" + session + write_names(sites)


def arrays_with(message: bytes, masked: bytes | None = None) -> ArrayRecord:
    """The record of arrays that carries a message, and a masked update."""
    parts = {MESSAGE: message} | ({} if masked is None else {MASKED: masked})
    return ArrayRecord({name: Array(np.frombuffer(part, np.uint8)) for name, part in parts.items()})


def message_in(arrays: ArrayRecord, *, masked: bool = False) -> tuple[bytes, bytes]:
    """Message and masked update in a record; the latter is empty unless it is asked for.

    Raises
    ------
    ValueError
        If anything else is in the record, or something is missing.
    """
    names = [MESSAGE, MASKED] if masked else [MESSAGE]
    if list(arrays) != names:
        raise ValueError("it holds other arrays")
    parts = [decode(arrays[name]) for name in names]
    if any(part.dtype != np.uint8 or part.ndim != 1 for part in parts):
        raise ValueError("it holds no bytes")
    return parts[0].tobytes(), parts[1].tobytes() if masked else b""


def _offered(site: str, parts: Iterable[bytes], context: bytes) -> bytes:
    body = json.dumps([site, *(part.hex() for part in parts)])
    return b"wardround secure keys\n" + context + body.encode()


def _dump(kind: str, body: Mapping[str, Any]) -> bytes:
    return json.dumps({"kind": kind, "version": _VERSION, "body": body}, separators=(",", ":")).encode("ascii")


def _load(kind: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
        body = content["body"]
        if content["kind"] != kind or not isinstance(body, dict) or _dump(kind, body) != data:
            raise ValueError("it is another message, or written in another way")
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no message") from error
    return body


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("it is no text")
    try:
        return b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is no base64") from error


def _site(name: object) -> str:
    if not isinstance(name, str) or not _SITE.fullmatch(name):
        raise ValueError("it is no name of a site")
    return name

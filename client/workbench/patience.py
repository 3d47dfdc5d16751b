"""How many wrong passwords are borne, and what the next one costs.

A few wrong tries are free. After those each one doubles the time until the next is looked at. Tries are counted three
times: of one name from one address, where few are free; from one address, whatever the names; and of one name, whatever
the addresses, where many are, so that nobody is easily locked out by somebody else. What is counted lives in memory.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wardround.errors import AuthRefused

FREE = {"name at address": 5, "address": 30, "name": 100}
LONGEST_S = 900.0
FORGOTTEN_AFTER_S = 3600.0
_MOST = 20_000
"""Counters that are kept; the oldest is forgotten first."""


class TooManyTries(AuthRefused):
    """Too many passwords were wrong.

    Parameters
    ----------
    seconds
        Until the next one is looked at.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(
            "too many tries were wrong", f"the next one is looked at in {seconds} s", "wait, or ask your administrator"
        )
        self.seconds = seconds


@dataclass
class _Count:
    wrong: int = 0
    until: float = 0.0
    last: float = 0.0


class Try:
    """One try that is being looked at. It counts as wrong until it is known to be right."""

    def __init__(self) -> None:
        self.right = False

    def succeeded(self) -> None:
        """It was right."""
        self.right = True


class Patience:
    """Counts wrong tries.

    Parameters
    ----------
    clock
        Seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def trying(self, name: str, address: str) -> Iterator[Try]:
        """Look at one try.

        Raises
        ------
        TooManyTries
            If it has to wait.
        """
        address = network(address)
        keys = {
            "name at address": ("name at address", f"{address} {name}"),
            "address": ("address", address),
            "name": ("name", name),
        }
        with self._lock:
            now = self._clock()
            wait = max(self._counts[key].until if key in self._counts else 0.0 for key in keys.values()) - now
            if wait > 0:
                raise TooManyTries(int(wait) + 1)  # And nothing new is counted, that others would be forgotten for.
            counts = {kind: self._count(key, now) for kind, key in keys.items()}
            # Counted before it is looked at: tries that come at once are none for free.
            for kind, count in counts.items():
                count.wrong += 1
                count.last = now
                over = count.wrong - FREE[kind]
                if over >= 0:
                    count.until = now + min(2.0 ** min(over, 20), LONGEST_S)
        one = Try()
        try:
            yield one
        finally:
            if one.right:
                self._forgive(counts)

    def _forgive(self, counts: dict[str, _Count]) -> None:
        with self._lock:
            for kind, count in counts.items():
                # Who has an account does not get tries at others for it.
                count.wrong = max(count.wrong - 1, 0) if kind == "address" else 0
                if count.wrong < FREE[kind]:
                    count.until = 0.0

    def _count(self, key: tuple[str, str], now: float) -> _Count:
        count = self._counts.get(key)
        if count is None or now - max(count.last, count.until) > FORGOTTEN_AFTER_S:
            count = self._counts[key] = _Count()
        self._counts.move_to_end(key)
        while len(self._counts) > _MOST:
            self._counts.popitem(last=False)
        return count


def network(address: str) -> str:
    """What is counted as one address: of IPv6 the network, as whoever is in it may take any number of addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), 64), strict=False))

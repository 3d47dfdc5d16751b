"""Processes that write a ledger and die: run as a script by ``test_ledger.py``, one JSON line on stdout as the result.

Every process that dies is a real one (forked from this script before it touches a ledger) and dies by SIGKILL.
"""

import itertools
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dying import die_at_line, forked

from wardround import files
from wardround.client.gate import chain
from wardround.client.gate import ledger as ledger_module
from wardround.client.gate.ledger import Ledger


def append(ledger: Ledger, number: int) -> str:
    """Add a line whose `bytes` say which it is; its hash."""
    entry = ledger.append(direction="in", kind="train", verdict="allowed", code="admitted", run="demo", bytes=number)
    return entry.hash


def write_and_die(number: int, path: Path, journal: Path) -> None:
    """Write two lines to a new ledger, set it aside, write one more; die before the given line of code that does it."""
    handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def acknowledge(done: str) -> None:
        os.write(handle, f"{done}\n".encode())

    die_at_line(number, (ledger_module, chain, files))
    ledger = Ledger(path)
    acknowledge(append(ledger, 1))
    acknowledge(append(ledger, 2))
    ledger.set_aside()
    acknowledge("aside")
    acknowledge(append(ledger, 3))


def every_line(place: Path, step: int) -> dict[str, Any]:
    """Kill a process at every `step`-th line of code in turn, each in a folder of its own, until one ends by itself."""
    for number in itertools.count(0, step):
        folder = place / f"{number:05d}"
        folder.mkdir()
        status = forked(partial(write_and_die, number, folder / "ledger.jsonl", folder / "journal"))
        if not os.WIFSIGNALED(status):
            return {"lines": number, "status": status}
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("unreachable")


def keep_writing(path: Path, acknowledge: int) -> None:
    ledger = Ledger(path)
    for number in itertools.count():
        os.write(acknowledge, f"{append(ledger, number)}\n".encode())


def storm(path: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill a process that writes without pause, at any moment of it; after each kill, what the next writer finds."""
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    acknowledged: list[str] = []
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            keep_writing(path, write)
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as stream:
            for _ in range(int(rng.integers(1, 6))):
                acknowledged.append(stream.readline().decode().strip())
            for _ in range(int(rng.integers(0, 60_000))):  # burns an unpredictable part of one writing
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            acknowledged += stream.read().decode().split()
        ledger = Ledger(path)
        dropped = ledger.heal()
        kept = [entry.hash for entry in ledger.entries() if entry.kind == "train"]
        lost = [digest for digest in acknowledged if digest not in set(kept)]
        found.append({"dropped": dropped, "lost": len(lost), "unasked": len(kept) - len(acknowledged)})
        assert ledger.verify().ok, ledger.verify()
        acknowledged = kept
    return found


def writers(path: Path, processes: int, lines: int) -> list[int]:
    """Several processes that write to one ledger at once; their wait statuses."""

    def write(first: int) -> None:
        ledger = Ledger(path)
        for number in range(lines):
            append(ledger, first + number)

    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            os._exit(forked(partial(write, number * lines)) != 0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


if __name__ == "__main__":
    mode, place, *numbers = sys.argv[1:]
    result: Any
    if mode == "every-line":
        result = every_line(Path(place), int(numbers[0]))
    elif mode == "storm":
        result = storm(Path(place), int(numbers[0]), int(numbers[1]))
    else:
        result = writers(Path(place), int(numbers[0]), int(numbers[1]))
    sys.stdout.write(json.dumps(result) + "\n")

"""Processes that use a case store and die: run as a script by ``test_store.py``, one JSON line on stdout as the result.

Every process that dies is a real one (forked from this script before it touches a store) and dies by SIGKILL.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dying import die_at_line, forked

from wardround import files
from wardround.client.annotation.prompts import SlicePrompt
from wardround.client.cases import database, rows, volume_files, volume_store
from wardround.client.cases import store as store_module
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume

Work = Callable[[Path, Callable[[str], object]], None]

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (6, 5, 4)


def image(value: float) -> Volume:
    return Volume(np.full(SHAPE, value, np.float32), AFFINE)


def labels(value: int) -> Volume:
    return Volume(np.full(SHAPE, value, np.uint8), AFFINE)


def make(folder: Path, acknowledge: Callable[[str], object]) -> None:
    """Open a store; where there is none, this makes it."""
    with CaseStore(folder):
        acknowledge("opened")


def change(folder: Path, acknowledge: Callable[[str], object]) -> None:
    """The changes during which the process is killed: a new case, a first label, a label in place of another."""
    with CaseStore(folder) as store:
        acknowledge("opened")
        store.add_case("new", image(2))
        acknowledge("added")
        store.save_label("new", labels(3), "first", 3, 0.3)
        acknowledge("labelled")
        store.save_label("old", labels(2), "ann", 2, 0.2)
        acknowledge("replaced")
    acknowledge("closed")


def draw(folder: Path, acknowledge: Callable[[str], object]) -> None:
    """The changes of a drawing: a draft, accepted, drawn on, accepted again, approved. Each is acknowledged."""
    mask = np.zeros(SHAPE[1:], np.uint8)
    drawing = Drawing("old", "ann", ((SlicePrompt(0, 2, mask),),), round=1)
    with CaseStore(folder) as store:
        store.save_drawing(drawing)
        acknowledge("drawn")
        store.save_drawing(replace(drawing, state="accepted", round=2), labels(2))
        acknowledge("accepted")
        store.save_drawing(replace(drawing, steps=drawing.steps * 2, round=3))
        acknowledge("drawn-on")
        store.save_drawing(replace(drawing, state="accepted", round=4), labels(4))
        acknowledge("accepted-again")
        store.review("old", "ann", by="rev", verdict="approved")
        acknowledge("approved")


def remove(folder: Path, acknowledge: Callable[[str], object]) -> None:
    """Remove the case ``old`` with its label and its drawing."""
    with CaseStore(folder) as store:
        acknowledge("opened")
        assert store.remove("old")
        acknowledge("removed")


def work_and_die(number: int, work: Work, folder: Path, journal: Path) -> None:
    """Do `work` and die before the given line that the store or the atomic files execute."""
    handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    die_at_line(number, (store_module, volume_store, database, volume_files, rows, files))
    work(folder, lambda done: os.write(handle, f"{done}\n".encode()))


def every_line(work: Work, start: Path, place: Path, step: int) -> dict[str, Any]:
    """Kill a process at every `step`-th line in turn, each on its own copy of `start`, until one ends by itself.

    Returns the names of the copies, and the wait status of the process that ended.
    """
    with tempfile.TemporaryDirectory() as warm:  # fills the caches that every fork then inherits
        work(Path(shutil.copytree(start, Path(warm) / "store")), lambda _: None)
    for number in itertools.count(0, step):
        folder = place / f"{number:05d}"
        shutil.copytree(start, folder)
        status = forked(partial(work_and_die, number, work, folder, folder.with_suffix(".journal")))
        if not os.WIFSIGNALED(status):
            return {"lines": number, "copies": [f"{n:05d}" for n in range(0, number + 1, step)], "status": status}
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("unreachable")


def keep_saving(folder: Path, author: str, first: int, acknowledge: int) -> None:
    with CaseStore(folder) as store:
        number = first
        while True:
            store.save_label("old", labels(number % 250), author, number, 0.0)
            os.write(acknowledge, b"%d\n" % number)
            number += 1


def storm(folder: Path, kills: int, seed: int) -> list[dict[str, int]]:
    """Kill a process that saves without pause, at any moment of it; after each kill, what the next opening finds."""
    rng = np.random.default_rng(seed)
    found = []
    first = 10
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            keep_saving(folder, "ann", first, write)
        os.close(write)
        acknowledged = 0
        with os.fdopen(read, "rb", buffering=0) as stream:
            for _ in range(int(rng.integers(1, 5))):
                acknowledged = int(stream.readline())
            for _ in range(int(rng.integers(0, 60_000))):  # burns an unpredictable part of one change
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            rest = [int(line) for line in stream.read().split()]
        acknowledged = rest[-1] if rest else acknowledged
        with CaseStore(folder) as store:
            (record,) = store.labels("old")
            stored = store.label("old", "ann")
            assert stored is not None
            found.append(
                {
                    "acknowledged": acknowledged,
                    "round": record.round,
                    "value": int(stored.array[0, 0, 0]),
                    "files": len(list((folder / "volumes").iterdir())),
                }
            )
            first = record.round + 1
    return found


def arm(folder: Path, author: str, cases: int, rounds: int) -> None:
    """One experiment's arm: adds the shared cases, saves and reads its own labels and reads everybody's."""
    with CaseStore(folder) as store:
        for number in range(cases):
            store.add_case(f"case-{number}", image(number))
        for turn in range(1, rounds + 1):
            for number in range(cases):
                store.save_label(f"case-{number}", labels(turn), author, turn, 0.1 * turn)
                mine = store.label(f"case-{number}", author)
                assert mine is not None
                assert (mine.array == turn).all()
                for record in store.labels(f"case-{number}"):
                    other = store.label(record.case_id, record.author)
                    assert other is not None
                    assert len(np.unique(other.array)) == 1
                assert (store.image(f"case-{number}").array == number).all()


def parallel(folder: Path, arms: int, cases: int, rounds: int) -> list[int]:
    """Several arms on one store at once; their wait statuses."""
    children = []
    for number in range(arms):
        child = os.fork()
        if child == 0:
            os._exit(forked(partial(arm, folder, f"arm-{number}", cases, rounds)) != 0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


if __name__ == "__main__":
    mode, folder, *numbers = sys.argv[1:]
    result: Any
    if mode in ("make", "change", "draw", "remove"):
        work = {"make": make, "change": change, "draw": draw, "remove": remove}[mode]
        result = every_line(work, Path(folder), Path(numbers[0]), int(numbers[1]))
    elif mode == "storm":
        result = storm(Path(folder), int(numbers[0]), int(numbers[1]))
    else:
        result = parallel(Path(folder), *map(int, numbers))
    sys.stdout.write(json.dumps(result) + "\n")

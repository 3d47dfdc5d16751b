"""Runs of a benchmark: each in a process of its own with one thread, each result whole or not there at all."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Run = tuple[str, int]
"""An arm and a seed."""


def run_all(waiting: Iterable[Run], command: Callable[[str, int], list[str]], folder: Path, jobs: int) -> list[Run]:
    """Start what waits, `jobs` at a time; returns what failed. Output lies in ``ARM-SEED.log``.

    Parameters
    ----------
    waiting
        What to run, in this order.
    command
        Of an arm and a seed.
    folder
        For the logs.
    jobs
        At a time.
    """
    left = list(waiting)
    running: dict[Run, subprocess.Popen[bytes]] = {}
    failed = []
    while left or running:
        while left and len(running) < jobs:
            arm, seed = left.pop(0)
            log = (folder / f"{arm}-{seed}.log").open("wb")
            # One thread each: more make one run little faster, and the others slower.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[arm, seed] = subprocess.Popen(
                command(arm, seed), env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        time.sleep(0.2)
        for key, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[key]
                failed += [key] if code else []
                print(f"  {key[0]}, seed {key[1]}: {'failed' if code else 'finished'}", flush=True)
    for arm, seed in failed:
        print(f"failed: {arm}, seed {seed}; see {folder / f'{arm}-{seed}.log'}", file=sys.stderr)
    return failed


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """As JSON; the file appears as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.replace(path)


def result_of(folder: Path, arm: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return folder / f"{arm}-{seed}.json"


def fields_of(entries: Iterable[str]) -> dict[str, Any]:
    """What ``FIELD=VALUE`` says: numbers, true and false as such, anything else as text."""
    found = {}
    for entry in entries:
        field, _, value = entry.partition("=")
        plain = value in ("true", "false") or value[:1].isdigit()
        found[field] = json.loads(value) if plain else value
    return found

"""Faults for a whole federation, at moments that are recognised by what lies on disk, and what must hold after them.

The two commands that serve are kept alive as systemd would keep them: whatever is killed comes back by itself. A moment
is found by watching the journal, the ledgers and the agents; where it is over in milliseconds, the ServerApp is halted
while the blow falls. A moment that was over before it was seen is noted as missed, and looked for again.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from deployment import eventually, free_ports
from faulty_line import FaultyLine
from federation import PATIENCE_S, Federation, Reference

from wardround.client import wire
from wardround.client.gate.ledger import Ledger
from wardround.client.home import SiteHome
from wardround.deploy.coordinator import runs
from wardround.errors import WardroundError
from wardround.processes import Backoff, Keeper
from wardround.server.journal import RoundRecord

log = logging.getLogger(__name__)

Part = Literal["serverapp", "superlink", "superexec", "supernode", "clientapp", "agent"]
Moment = Literal["before training", "mid-training", "mid-upload", "aggregation", "journal write", "closed"]

_LOOK_S = 0.03
_FAST_S = 0.001
_SELDOM_S = 0.5


class Missed(Exception):
    """A moment was over before it could be used."""


class Ground:
    """A federation that is kept alive, and can be hurt.

    Parameters
    ----------
    federation
        Whose members have joined; nothing runs yet.
    line
        Between the sites and the coordinator, where the sites dial a line that can be hurt.
    places
        What stands before the commands of whom, if anything does.
    """

    def __init__(
        self,
        federation: Federation,
        line: FaultyLine | None = None,
        places: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.federation = federation
        self._line = line
        self.home = federation.home
        self.victim = federation.sites[federation.reference.sites[0]]
        commands = {"coordinator": ("coordinator", self.home.path)}
        commands |= {name: ("site", site.path) for name, site in federation.sites.items()}
        self.keepers = {
            name: Keeper(
                name,
                [
                    *(places or {}).get(name, ()),
                    sys.executable,
                    "-m",
                    "wardround.deploy.cli",
                    side,
                    "serve",
                    "--home",
                    str(path),
                ],
                log_file=federation.folder / f"{name}.log",
                grace=60.0,
                backoff=Backoff(first=0.5, most=5.0),
            )
            for name, (side, path) in commands.items()
        }

    @classmethod
    def make(cls, folder: Path, reference: Reference, places: Mapping[str, Sequence[str]] | None = None) -> "Ground":
        """A new federation on this machine."""
        public, runtime, dialled = free_ports(3)
        options = ["--name", "localhost", "--host", "127.0.0.1", "--url", f"https://localhost:{dialled}"]
        options += ["--port", str(public), "--runtime-port", str(runtime)]
        return cls(Federation(folder, reference, options), FaultyLine(dialled, public), places)

    @property
    def line(self) -> FaultyLine:
        """The line between the sites and the coordinator."""
        assert self._line is not None
        return self._line

    def __enter__(self) -> "Ground":
        for keeper in self.keepers.values():
            keeper.start()
        eventually(lambda: "serving sites" in self.federation.log("coordinator"), "a coordinator", PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        # Side by side: each may take a while.
        stopping = [threading.Thread(target=keeper.stop) for keeper in self.keepers.values()]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        if self._line is not None:
            self._line.close()

    def start(self, name: str, *, deadline: float = PATIENCE_S, **settings: object) -> "Course":
        """Ask for a run of the reference's plan."""
        words = ["--detach", "--deadline", str(deadline)]
        for key, value in {"retry-wait-s": 2.0, **settings}.items():
            words += ["--setting", f"{key}={value}"]
        self.federation.run(name, *words)
        return Course(self, name)

    def runs(self) -> list[str]:
        """Names of all runs so far."""
        return [run.name for run in runs.all_runs(self.home)]

    def is_quiet(self) -> bool:
        """Whether no run is under way."""
        return all(run.phase in runs.OVER for run in runs.all_runs(self.home))

    # Who is who.

    def pid(self, part: Part) -> int | None:
        """The process that plays a part now; of those at a site, that of the first one."""
        match part:
            case "superlink" | "superexec":
                return _read_pid(self.home.run / f"{part}.pid")
            case "supernode":
                return _read_pid(self.victim.run / "supernode.pid")
            case "agent":
                return self.keepers[self.victim.path.name].status.pid
            case "serverapp":
                return _child(_read_pid(self.home.run / "superexec.pid"), "flwr-serverapp")
            case "clientapp":
                return _child(_read_pid(self.victim.run / "superexec.pid"), "flwr-clientapp")

    def strike(self, part: Part, number: int = signal.SIGKILL) -> int | None:
        """Send a signal to the process that plays a part; returns its number, None where there is none."""
        pid = self.pid(part)
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return None
        return pid

    @contextmanager
    def halted(self, pid: int | None) -> Iterator[None]:
        """Stop a process, and let it go on afterwards, if it is still there."""
        if pid is None:
            raise Missed
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            raise Missed from None
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # Faults that last.

    @contextmanager
    def without_superlink(self) -> Iterator[None]:
        """No SuperLink for as long as the block lasts: whoever would start it again is halted meanwhile."""
        keeper = self.keepers["coordinator"].status.pid
        with self.halted(keeper):
            assert self.strike("superlink") is not None
            yield

    @contextmanager
    def locked_database(self) -> Iterator[None]:
        """Somebody holds the SuperLink's database, as a careless copy of it does."""
        connection = sqlite3.connect(self.home.database, timeout=60, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()


@dataclass
class Course:
    """One run on its way.

    Parameters
    ----------
    ground
        Where it runs.
    name
        Of the run.
    seen
        Updates that were seen in an open round, by round and site: their digests.
    back
        When what was hurt last was there again.
    """

    ground: Ground
    name: str
    seen: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    back: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return self.ground.home.run_folder(self.name)

    def is_closed(self, number: int) -> bool:
        return (self.folder / "rounds" / f"{number:05d}").exists()

    def is_open(self, number: int) -> bool:
        """Whether somebody is about to be asked, or was."""
        return any((self.folder / "open" / f"{number:05d}").glob("attempt-*.json"))

    def updates(self, number: int) -> list[Path]:
        """Files of accepted updates."""
        return [path for path in self._open(number).glob("*.npz") if not path.name.startswith(".")]

    def accepted(self, number: int) -> set[str]:
        """Sites whose update lies in the open round; their digests are remembered."""
        found = set()
        for path in self.updates(number):
            with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
                about = json.loads(file.read("update.json"))
                self.seen.setdefault((about["round"], about["site"]), set()).add(about["report"]["digest"])
                found.add(about["site"])
        return found

    def look(self) -> str:
        """The phase of the run, which must be a good one; updates that are there are remembered."""
        for path in (self.folder / "open").glob("[0-9]*"):
            self.accepted(int(path.name))
        run = runs.find(self.ground.home, self.name)
        assert run.phase in ("queued", "running", "finished"), f"{self.name} is {run.phase}: {run.state.reason}"
        return run.phase

    def left(self, number: int, site: SiteHome, code: str) -> set[str]:
        """Digests of what left a site, or was released, for the training of a round."""
        return {
            str(entry.sha256)
            for entry in Ledger(site.ledger).entries()
            if (entry.run, entry.round, entry.kind, entry.direction, entry.code)
            == (self.name, number, "train", "out", code)
        }

    def works(self, number: int) -> bool:
        """Whether the first site learns for that round now."""
        with contextlib.suppress(WardroundError):
            info, _ = wire.ask(self.ground.victim.socket, {"op": "info"})
            running = info["running"] or {}
            return (running.get("kind"), running.get("run"), running.get("round")) == ("train", self.name, number)
        return False

    # Moments.

    def reach(self, number: int, moment: Moment, part: Part | None = None) -> None:
        """Wait until a round has come to a moment.

        Raises
        ------
        Missed
            If it came and went.
        """
        victim = self.ground.victim.path.name
        match moment:
            case "before training":
                self._until(lambda: self.is_open(number), number)
                if part == "clientapp":
                    self._until(lambda: self.ground.pid("clientapp") is not None, number)
                if self.works(number) or self.left(number, self.ground.victim, "released"):
                    raise Missed
            case "mid-training":
                self._until(lambda: self.works(number), number)
            case "mid-upload":
                code = "released" if part in ("clientapp", "agent") else "sent"
                self._until(lambda: bool(self.left(number, self.ground.victim, code)), number)
                if victim in self.accepted(number):
                    raise Missed
            case "aggregation" | "journal write":
                whole = len(self.ground.federation.sites)
                self._until(lambda: self.is_open(number), number)
                self._until(lambda: len(self.updates(number)) == whole, number, _FAST_S)
            case "closed":
                self._until(lambda: self.is_closed(number), None)

    def kill(self, number: int, moment: Moment, part: Part) -> None:
        """Kill a process at a moment of a round, and wait until it is back.

        Raises
        ------
        Missed
            If the moment had gone by.
        """
        ground = self.ground
        self.reach(number, moment, part)
        log.info(
            "%s: %s of round %d, %.1f s after the start or the last blow", self.name, moment, number, self._since_blow()
        )
        if moment in ("aggregation", "journal write"):
            app = ground.pid("serverapp")
            with ground.halted(app):
                self.accepted(number)
                if moment == "journal write" and app is not None:
                    self._step(app, self._is_written, number)
                if self.is_closed(number):
                    raise Missed
                killed = ground.strike(part)
        else:
            killed = ground.strike(part)
        if killed is None:
            raise Missed
        began = time.monotonic()
        if part != "clientapp":  # The next one comes with the next message.
            self._until(lambda: ground.pid(part) not in (None, killed), None)
        self.back = time.monotonic()
        log.info("%s: %s killed, %s; back after %.1f s", self.name, part, moment, self.back - began)

    def finish(self, patience: float = PATIENCE_S) -> None:
        """Wait for the end of the run, which must be a good one."""
        deadline = time.monotonic() + patience
        last = self.ground.federation.reference.plan["rounds"]
        closed = False
        while self.look() != "finished":
            if not closed and self.is_closed(last):
                closed = True
                log.info("%s: its last round was closed %.1f s after the last blow", self.name, self._since_blow())
            assert time.monotonic() < deadline, f"{self.name} did not end"
            time.sleep(_SELDOM_S)
        log.info("%s: ended %.1f s after the last blow", self.name, self._since_blow())

    # What must hold.

    def check(self) -> None:
        """The run ended as the uninterrupted one did; what was accepted counts once, and is what left the sites."""
        federation = self.ground.federation
        reference = federation.reference
        records = federation.rounds(self.name)
        assert [record.round for record in records] == list(range(1, reference.plan["rounds"] + 1))
        for ours, theirs in zip(records, reference.rounds(), strict=True):
            assert (ours.refused, ours.missing, ours.late) == ({}, {}, {})
            assert list(ours.sites) == reference.sites
            assert _numbers(ours) == _numbers(theirs)
            assert federation.weights(self.name, ours.round) == reference.weights(ours.round)
            if theirs.evaluation is not None:
                assert ours.evaluation is not None
                assert ours.evaluation.sites == theirs.evaluation.sites
        for name, site in federation.sites.items():
            assert Ledger(site.ledger).verify().problem == ""
            for record in records:
                assert record.sites[name].digest in self.left(record.round, site, "sent"), (name, record.round)
        for (number, name), digests in self.seen.items():
            assert digests == {records[number - 1].sites[name].digest}, (number, name)
        assert not any((self.folder / "open").glob("[0-9]*"))

    def _since_blow(self) -> float:
        return time.monotonic() - self.back

    def _open(self, number: int) -> Path:
        return self.folder / "open" / f"{number:05d}"

    def _is_written(self) -> bool:
        return any((self.folder / "rounds").glob(".tmp-*"))

    def _step(self, pid: int, question: Callable[[], bool], before: int) -> None:
        """Let a process that is halted go on for moments, until something has come about."""
        while not question():
            if self.is_closed(before):
                raise Missed
            os.kill(pid, signal.SIGCONT)
            time.sleep(_FAST_S)
            os.kill(pid, signal.SIGSTOP)
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                time.sleep(_FAST_S)

    def _until(self, question: Callable[[], bool], before: int | None, pause: float = _LOOK_S) -> None:
        """Wait for something that happens before a round is closed."""
        deadline, looked = time.monotonic() + PATIENCE_S, 0.0
        while not question():
            if before is not None and self.is_closed(before):
                raise Missed
            if pause > _FAST_S and time.monotonic() > looked + _SELDOM_S:
                looked = time.monotonic()
                self.look()
            assert time.monotonic() < deadline, f"{self.name} did not go on"
            time.sleep(pause)


def _numbers(record: RoundRecord) -> Mapping[str, Mapping[str, object]]:
    """What the sites reported of a round, but for times, which no two runs share."""
    return {
        name: {key: value for key, value in report.metrics.items() if not key.startswith("seconds-")}
        for name, report in record.sites.items()
    }


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _child(parent: int | None, name: str) -> int | None:
    """The child of a process whose program has that name."""
    try:
        children = psutil.Process(parent).children() if parent is not None else []
    except psutil.NoSuchProcess:
        return None
    for child in children:
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and any(Path(word).name == name for word in child.cmdline()[:3]):
                return int(child.pid)
    return None


def fill(folder: Path) -> Path:
    """Use up the rest of the disk that `folder` lies on; remove the file that is returned to free it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        for size in (2**20, 2**12, 1):
            block = b"\0" * size
            while True:
                try:
                    stream.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
    return path

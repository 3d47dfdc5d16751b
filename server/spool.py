"""The round that is open: the updates that were accepted so far, on disk, so that nobody is asked for one twice.

::

    open/00003/round.json                  from which weights and plan the round starts
               attempt-0001.json           who was asked and, where too few answered, what became of it
               <name>-00003.npz            one accepted update: its arrays as NumPy writes them, and what is known of it

A file is there as a whole or not at all. Arrays are read one by one, so that a round of many sites needs no more memory
than one of two.
"""

import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from wardround.errors import StorageError
from wardround.files import new_file, new_folder, remove_folder, sweep, write_text
from wardround.server.records import SiteReport, damaged, dumps, read_json, read_report
from wardround.strategies.contract import decode

logger = logging.getLogger(__name__)

OPEN = "open"
_START = "round.json"
_ABOUT = "update.json"


@dataclass(frozen=True)
class Accepted:
    """An update on disk.

    Parameters
    ----------
    site
        Who sent it.
    round
        The round in which it was asked for.
    examples
        Its weight in the average.
    report
        For the journal.
    path
        Where it lies.
    """

    site: str
    round: int
    examples: float
    report: SiteReport
    path: Path

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Read arrays from the disk, one at a time.

        Raises
        ------
        StorageError
            If the file is damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as file:
                places = {name: place for place, name in enumerate(json.loads(file.read(_ABOUT))["names"])}
                for name in names:
                    with file.open(f"{places[name]:05d}.npy") as stream:
                        array = np.lib.format.read_array(stream, allow_pickle=False)
                    yield name, array
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise damaged(self.path) from error


@dataclass(frozen=True)
class OpenView:
    """How far an open round is, for whoever looks at the journal from outside.

    Parameters
    ----------
    round
        Its number.
    asked
        Sites that were asked in the attempt that runs; empty if none runs.
    answered
        Sites whose update was accepted.
    attempts
        Attempts that were given up.
    left_out
        Who was refused or missing in the last of these, and why.
    since
        Seconds since 1970: when the attempt that runs began, or the last one was given up; NaN before the first.
    """

    round: int
    asked: tuple[str, ...]
    answered: tuple[str, ...]
    attempts: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    since: float = math.nan

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites that were asked and of which no update was accepted yet."""
        return tuple(site for site in self.asked if site not in self.answered)


class OpenRound:
    """The open round of a journal that somebody holds.

    Parameters
    ----------
    folder
        That of the journal.
    number
        Of the round.
    start
        Says what the round starts from. What an earlier process left for another start is removed, and so is an update
        that is damaged: its site is asked again.
    """

    def __init__(self, folder: Path, number: int, start: str) -> None:
        self._folder = _round_folder(folder, number)
        for other in _open_folders(folder):
            if other != self._folder or not _starts_from(other, start):
                remove_folder(other)
        if not self._folder.exists():
            with new_folder(self._folder) as temporary:
                (temporary / _START).write_text(json.dumps({"round": number, "start": start}), encoding="utf-8")
        self._updates = {(update.site, update.round): update for update in _whole_updates(self._folder)}

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    def updates(self) -> list[Accepted]:
        """The accepted updates, in the order of the sites' names: floating-point sums depend on it."""
        return [update for _, update in sorted(self._updates.items())]

    def accept(  # noqa: PLR0917
        self,
        site: str,
        round: int,
        examples: float,
        arrays: ArrayRecord,
        names: Iterable[str],
        report: SiteReport,
        read: Callable[[str, Array], npt.NDArray[Any]] = lambda name, array: decode(array),
    ) -> bool:
        """Keep an update, durably, before it counts.

        Parameters
        ----------
        site, round, examples, report
            See :class:`Accepted`.
        arrays
            That passed every check.
        names
            In the order of the network.
        read
            Reads an array by its name, where it does not travel as it is.

        Returns
        -------
        bool
            False where the site has an update of that round already: it counts once.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        if (site, round) in self._updates:
            return False
        ordered = list(names)
        about = {"site": site, "round": round, "examples": examples, "names": ordered, "report": asdict(report)}
        path = self._folder / f"{hashlib.sha256(site.encode()).hexdigest()[:32]}-{round:05d}.npz"
        with new_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            file.writestr(_ABOUT, dumps(about))
            for place, name in enumerate(ordered):
                with file.open(f"{place:05d}.npy", "w", force_zip64=True) as member:
                    # Decoded and written anew: of what a site sent, only the numbers are kept.
                    np.lib.format.write_array(member, read(name, arrays[name]), allow_pickle=False)
        self._updates[site, round] = Accepted(site, round, examples, report, path)
        return True

    def discard(self, update: Accepted) -> None:
        """Forget an update that is of no use: its site is asked again."""
        update.path.unlink(missing_ok=True)
        del self._updates[update.site, update.round]

    @property
    def failed(self) -> int:
        """How many attempts were given up."""
        return sum(1 for attempt in _attempts(self._folder) if "missing" in attempt)

    @property
    def asked(self) -> frozenset[str] | None:
        """The sites that the attempt asks that runs, or None if none does."""
        running = [attempt for attempt in _attempts(self._folder) if "missing" not in attempt]
        return frozenset(running[-1]["asked"]) if running else None

    def begin_attempt(self, asked: Iterable[str]) -> None:
        """Note whom the attempt asks, before anybody is."""
        write_text(self._attempt_path(), json.dumps({"asked": sorted(asked)}))

    def give_up_attempt(self, refused: Mapping[str, str], missing: Mapping[str, str]) -> None:
        """Note that the attempt did not close the round."""
        body = {"asked": sorted(self.asked or ()), "refused": dict(refused), "missing": dict(missing)}
        write_text(self._attempt_path(), json.dumps(body))

    def _attempt_path(self) -> Path:
        return self._folder / f"attempt-{self.failed + 1:04d}.json"


def drop_open_rounds(folder: Path, closed: int | None = None) -> None:
    """Remove the open rounds of the journal in `folder`, up to the last one that is closed, and what a crash left."""
    for path in _open_folders(folder):
        if closed is None or int(path.name) <= closed:
            remove_folder(path)
    if (folder / OPEN).is_dir():
        sweep(folder / OPEN)


def read_open(folder: Path) -> OpenView | None:
    """The open round of the journal in `folder`, if there is one; may be called while a coordinator writes there."""
    try:
        path = max(_open_folders(folder), default=None)
        if path is None:
            return None
        files = _attempt_files(path)
        attempts = [read_json(file) for file in files]
        running = [attempt for attempt in attempts if "missing" not in attempt]
        over = [attempt for attempt in attempts if "missing" in attempt]
        return OpenView(
            int(path.name),
            tuple(map(str, running[-1]["asked"])) if running else (),
            tuple(sorted(update.site for update in _updates(path) if update.round == int(path.name))),
            len(over),
            {str(site): str(why) for site, why in _left_out(over[-1])} if over else {},
            files[-1].stat().st_mtime if files else math.nan,
        )
    except (StorageError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        # It was closed while we looked, or a file is damaged: then nobody can say how far it is.
        return None


def _round_folder(folder: Path, number: int) -> Path:
    return folder / OPEN / f"{number:05d}"


def _open_folders(folder: Path) -> list[Path]:
    if not (folder / OPEN).is_dir():
        return []
    return [path for path in (folder / OPEN).iterdir() if path.name.isdigit()]


def _starts_from(folder: Path, start: str) -> bool:
    try:
        return bool(read_json(folder / _START).get("start") == start)
    except StorageError:
        return False


def _attempts(folder: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in _attempt_files(folder)]


def _attempt_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*.json"))


def _left_out(attempt: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted({**attempt["missing"], **attempt["refused"]}.items())


def _updates(folder: Path) -> Iterator[Accepted]:
    for path in sorted(folder.glob("*.npz")):
        yield _read_update(path)


def _whole_updates(folder: Path) -> Iterator[Accepted]:
    for path in sorted(folder.glob("*.npz")):
        try:
            yield _read_update(path, to_the_end=True)
        except StorageError:
            logger.warning("an accepted update is damaged; its site is asked again")
            path.unlink(missing_ok=True)


def _read_update(path: Path, *, to_the_end: bool = False) -> Accepted:
    try:
        with zipfile.ZipFile(path) as file:
            if to_the_end and file.testzip() is not None:
                raise damaged(path)
            about = json.loads(file.read(_ABOUT))
        return Accepted(about["site"], about["round"], about["examples"], read_report(about["report"]), path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise damaged(path) from error

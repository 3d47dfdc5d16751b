"""Replay memory: which cases of a stream are remembered, and which of those are recalled.

=================== ============================================== =====================================
policy              kept                                           recalled
=================== ============================================== =====================================
``reservoir``       every case so far is equally likely            at random
``class-balanced``  cases with rare structures stay longer         at random
``most-interfered`` as ``reservoir``                               those that the next step would harm
``random-subset``   old cases fade exponentially (Tian et al.)     at random
=================== ============================================== =====================================
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wardround.files import storage_error, write_bytes
from wardround.models.weights import load_arrays, save_arrays
from wardround.strategies.plan import Replay

Arrays = dict[str, npt.NDArray[Any]]

# How much of the memory is held in RAM; the rest is read again when it is drawn.
LOADED_BYTES = 2**29
# Suffix of the empty file that stands where a sample was removed.
_REMOVED = ".removed"
# Samples looked at for each one that is recalled as most interfered.
CANDIDATES = 4


@dataclass(frozen=True, eq=False)
class Sample:
    """What the learner learns from: never a truth, always a target that the annotator's work led to.

    Parameters
    ----------
    case_id
        Which case.
    image
        ``[I, J, K]``, float32, normalised.
    target
        ``[C, I, J, K]``, float16, probabilities that sum to one (to half precision).
    weight
        ``[I, J, K]``, float16, at least 0: how much each voxel counts.
    drawn
        ``[I, J, K]``, bool: voxels whose label somebody drew; None where that is not known.
    spacing
        Distance between voxel centres along i, j, k in millimetres.
    padding
        How much a voxel counts that is added round the image to fit a network, where it is background.
    logits
        ``[C, I, J, K]``, float16: what the network answered when the case was accepted, see
        :mod:`wardround.client.learning.stored_logits`; None where that was not kept.
    factor
        How much the sample counts as a whole, at least 0; of made ones alone another than 1.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    target: npt.NDArray[np.float16]
    weight: npt.NDArray[np.float16]
    drawn: npt.NDArray[np.bool_] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: float = 1.0
    logits: npt.NDArray[np.float16] | None = None
    factor: float = 1.0

    @cached_property
    def told(self) -> npt.NDArray[np.bool_]:
        """Of which structures anything is known, ``[C - 1]``.

        Of every one where no voxel has weight 0; else of those that a voxel of weight is likely to be: another one may
        lie where nothing is known.
        """
        known = self.weight > 0
        if known.all():
            return np.ones(len(self.target) - 1, dtype=np.bool_)
        shown = np.unique(self.target[:, known].argmax(axis=0))
        return np.isin(np.arange(1, len(self.target)), shown)

    def arrays(self) -> Arrays:
        """All but its name, to be kept in a file."""
        known: Arrays = {"image": self.image, "target": self.target, "weight": self.weight}
        if self.drawn is not None:
            known["drawn"] = self.drawn
        if self.logits is not None:
            known["logits"] = self.logits
        return known | {"spacing": np.asarray(self.spacing), "padding": np.asarray([self.padding])}

    @classmethod
    def of(cls, case_id: str, arrays: Mapping[str, npt.NDArray[Any]]) -> "Sample":
        """The sample whose :meth:`arrays` these are; files of earlier versions know less."""
        first, second, third = (float(step) for step in arrays.get("spacing", np.ones(3)))
        return cls(
            case_id,
            arrays["image"],
            arrays["target"],
            arrays["weight"],
            arrays.get("drawn"),
            (first, second, third),
            float(arrays.get("padding", np.ones(1))[0]),
            arrays.get("logits"),
        )


class Learner(Protocol):
    """What most-interfered recall asks of a learner."""

    def interference(self, incoming: Sample, candidates: Sequence[Sample], rng: np.random.Generator) -> list[float]:
        """Rise of the loss on each candidate if one step were taken on `incoming`."""


@dataclass(frozen=True)
class Reservoir:
    """Which cases of a stream are remembered. Holds names and counts only; immutable.

    Parameters
    ----------
    capacity
        How many cases at most; 0 remembers none.
    seen
        How many were offered so far.
    kept
        The names of those that are remembered.
    groups
        The group of each that is remembered; empty unless kept by :meth:`offer_balanced`, as are the next three.
    met
        Cases offered so far, by group.
    holders
        Cases offered so far that hold a structure, by label.
    full
        Groups that were the largest of a full memory once.
    """

    capacity: int
    seen: int = 0
    kept: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    met: tuple[int, ...] = ()
    holders: tuple[int, ...] = ()
    full: tuple[int, ...] = ()

    def offer(self, case_id: str, rng: np.random.Generator) -> "Reservoir":
        """The reservoir after one more case (Vitter 1985, algorithm R): it is in with probability ``capacity / seen``.

        Every case offered so far is then in with that same probability.
        """
        if case_id in self.kept:
            return self
        after = replace(self, seen=self.seen + 1)
        if len(self.kept) < self.capacity:
            return replace(after, kept=(*self.kept, case_id))
        return after._replacing(int(rng.integers(after.seen)), case_id)

    def offer_subset(self, case_id: str, rng: np.random.Generator) -> "Reservoir":
        """The reservoir after one more case: a random subset of what it held and the new one (Tian et al. 2023).

        Each of the ``capacity + 1`` is dropped with equal probability, so that a case survives a step with probability
        ``capacity / (capacity + 1)``: the chance to be still in after n more cases is that to the power n + 1.
        """
        if case_id in self.kept:
            return self
        after = replace(self, seen=self.seen + 1)
        if len(self.kept) < self.capacity:
            return replace(after, kept=(*self.kept, case_id))
        return after._replacing(int(rng.integers(self.capacity + 1)), case_id)

    def offer_balanced(self, case_id: str, structures: npt.NDArray[np.bool_], rng: np.random.Generator) -> "Reservoir":
        """The reservoir after one more case, kept in balance (Chrysakis and Moens 2020, algorithm 1).

        Their class of an image becomes a case's group: the rarest structure that it holds, counted over the cases
        offered so far, the lowest label among equals; 0 for a case of background only. A case of a group that never
        was the largest replaces a random one of the largest group; another replaces one of its own group with
        probability (kept of the group) / (met of the group). Where every case holds the same structures there is one
        group, and this is algorithm R.

        Parameters
        ----------
        case_id
            The new case.
        structures
            ``[C]``, bool: which labels the case holds; background, label 0, does not count.
        rng
            Only source of randomness.
        """
        if case_id in self.kept:
            return self
        holds = structures.astype(int)
        holds[0] = 0
        holders = holds + (self.holders or 0)
        present = np.flatnonzero(holds)
        group = int(present[np.argmin(holders[present])]) if present.size else 0
        met = np.bincount([group], minlength=holds.size) + (self.met or 0)
        after = replace(self, seen=self.seen + 1, met=_ints(met), holders=_ints(holders))
        if len(self.kept) < self.capacity:
            return replace(after, kept=(*self.kept, case_id), groups=(*self.groups, group))
        if not self.capacity:
            return after
        sizes = np.bincount(self.groups, minlength=holds.size)
        largest = np.flatnonzero(sizes == sizes.max())
        after = replace(after, full=_ints(sorted({*self.full, *_ints(largest)})))
        if group in after.full:
            if rng.random() * met[group] > sizes[group]:
                return after
            victims = np.flatnonzero(np.equal(self.groups, group))
        else:
            victims = np.flatnonzero(np.equal(self.groups, largest[int(rng.integers(largest.size))]))
        slot = int(victims[int(rng.integers(victims.size))])
        groups = list(self.groups)
        groups[slot] = group
        return replace(after._replacing(slot, case_id), groups=tuple(groups))

    def forgetting(self, names: Collection[str]) -> "Reservoir":
        """Without those of `names`, and knowing as before how many were offered."""
        stay = [index for index, name in enumerate(self.kept) if name not in names]
        groups = tuple(self.groups[index] for index in stay) if self.groups else ()
        return replace(self, kept=tuple(self.kept[index] for index in stay), groups=groups)

    def _replacing(self, slot: int, case_id: str) -> "Reservoir":
        """With `case_id` in place of the one at `slot`; the same where there is no such slot."""
        if slot >= self.capacity:
            return self
        kept = list(self.kept)
        kept[slot] = case_id
        return replace(self, kept=tuple(kept))


class ReplayMemory:
    """The samples that are remembered, in memory and as one file each.

    Files are written before the reservoir that names them is stored by the site, and swept by
    :meth:`discard_unnamed` after, so that a crash leaves at worst a file that nobody names. A file that was removed by
    :func:`remove_remembered` leaves a mark, so that a name without a file is no damage there.

    Parameters
    ----------
    folder
        Where the sample files lie.
    reservoir
        Which of them count; those that were removed are left out.
    policy
        Which are kept and recalled; see the module's table.
    """

    def __init__(self, folder: Path, reservoir: Reservoir, policy: Replay = "reservoir") -> None:
        self._folder = folder
        self.reservoir = reservoir
        self._policy = policy
        self._loaded: dict[str, Sample] = {}
        self.forget_removed()
        # Remembered, and never recalled to learn from: they judge what is learnt.
        self.withheld: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.reservoir.kept)

    @property
    def recalled(self) -> tuple[str, ...]:
        """The cases that may be recalled."""
        return tuple(name for name in self.reservoir.kept if name not in self.withheld)

    def offer(self, sample: Sample, rng: np.random.Generator) -> None:
        """Give `sample` its chance to be remembered; one that is already in is brought up to date."""
        if self._policy == "class-balanced":
            labels = np.unique(sample.target.argmax(axis=0))
            structures = np.isin(np.arange(len(sample.target)), labels)
            self.reservoir = self.reservoir.offer_balanced(sample.case_id, structures, rng)
        elif self._policy == "random-subset":
            self.reservoir = self.reservoir.offer_subset(sample.case_id, rng)
        else:
            self.reservoir = self.reservoir.offer(sample.case_id, rng)
        self._loaded = {name: kept for name, kept in self._loaded.items() if name in self.reservoir.kept}
        if sample.case_id in self.reservoir.kept:
            save_arrays(self._file(sample.case_id), sample.arrays())
            self._load(sample)

    def forget(self, names: Collection[str]) -> None:
        """Remember these cases no more; :meth:`discard_unnamed` removes their files."""
        self.reservoir = self.reservoir.forgetting(names)
        self._loaded = {name: kept for name, kept in self._loaded.items() if name not in names}

    def forget_removed(self) -> None:
        """Remember no more what :func:`remove_remembered` has taken out, in whichever process."""
        self.forget([name for name in self.reservoir.kept if _was_removed(self._file(name))])

    def draw(
        self,
        count: int,
        rng: np.random.Generator,
        learner: Learner | None = None,
        incoming: Sample | None = None,
    ) -> list[Sample]:
        """Recall `count` samples; none where nothing is remembered.

        At random they are drawn uniformly with replacement. Most-interfered recall (Aljundi et al. 2019, maximally
        interfered retrieval) draws :data:`CANDIDATES` times as many without replacement and takes those whose loss
        would rise most by a step on `incoming`, the most harmed first; where all the memory is fewer than `count`, it
        recalls all. Without `learner` and `incoming` (in rehearsal nothing comes in) it is at random, too.
        """
        names = self.recalled
        if not names or count < 1:
            return []
        if self._policy != "most-interfered" or learner is None or incoming is None:
            return [self.sample(names[int(rng.integers(len(names)))]) for _ in range(count)]
        chosen = rng.permutation(len(names))[: CANDIDATES * count]
        candidates = [self.sample(names[index]) for index in chosen]
        rise = np.array(learner.interference(incoming, candidates, rng))
        return [candidates[index] for index in np.argsort(-rise, kind="stable")[:count]]

    def sample(self, case_id: str) -> Sample:
        """A remembered case by its name.

        Raises
        ------
        StorageError
            If its file is missing or damaged.
        """
        sample = self._loaded.get(case_id)
        if sample is None:
            sample = Sample.of(case_id, load_arrays(self._file(case_id)))
            self._load(sample)
        return sample

    def discard_unnamed(self, *also_keep: str) -> None:
        """Remove the files of cases that neither the reservoir nor `also_keep` names."""
        named = {self._file(name).stem for name in (*self.reservoir.kept, *also_keep)}
        for file in self._folder.glob("[!.]*"):
            if file.suffix in {".safetensors", _REMOVED} and file.stem not in named:
                file.unlink(missing_ok=True)

    def _load(self, sample: Sample) -> None:
        """Keep a sample at hand; the longest-held ones go back to disk beyond :data:`LOADED_BYTES`."""
        self._loaded[sample.case_id] = sample
        while len(self._loaded) > 1 and sum(map(_size, self._loaded.values())) > LOADED_BYTES:
            del self._loaded[next(iter(self._loaded))]

    def _file(self, case_id: str) -> Path:
        return _file_of(self._folder, case_id)


def remove_remembered(folder: Path, case_id: str) -> None:
    """Remove the file of a case from the memory in `folder`, of whichever process; nothing where there is none.

    The mark that it was removed comes first. It counts as long as there is no file of the case: one that comes again
    may be remembered again.

    Raises
    ------
    StorageError
        If the disk is full or not writable.
    """
    file = _file_of(folder, case_id)
    if not file.exists():
        return
    write_bytes(file.with_suffix(_REMOVED), b"")
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, file) from error


def _file_of(folder: Path, case_id: str) -> Path:
    return folder / f"{hashlib.sha256(case_id.encode()).hexdigest()[:24]}.safetensors"


def _was_removed(file: Path) -> bool:
    return not file.exists() and file.with_suffix(_REMOVED).exists()


def _ints(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _size(sample: Sample) -> int:
    return sum(array.nbytes for array in sample.arrays().values())

"""Replay memory: a reservoir over the stream, so that every case seen so far is equally likely to be in it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wardround.models.weights import load_arrays, save_arrays

# How much of the memory is held in RAM; the rest is read again when it is drawn.
LOADED_BYTES = 2**29


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
    """

    case_id: str
    image: npt.NDArray[np.float32]
    target: npt.NDArray[np.float16]
    weight: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Reservoir:
    """Which cases of a stream are remembered (Vitter 1985, algorithm R). Holds names only; immutable.

    Parameters
    ----------
    capacity
        How many cases at most; 0 remembers none.
    seen
        How many were offered so far.
    kept
        The names of those that are remembered.
    """

    capacity: int
    seen: int = 0
    kept: tuple[str, ...] = ()

    def offer(self, case_id: str, rng: np.random.Generator) -> "Reservoir":
        """The reservoir after one more case: it is in with probability ``capacity / seen``."""
        if case_id in self.kept:
            return self
        seen = self.seen + 1
        if len(self.kept) < self.capacity:
            return replace(self, seen=seen, kept=(*self.kept, case_id))
        slot = int(rng.integers(seen))
        if slot >= self.capacity:
            return replace(self, seen=seen)
        kept = list(self.kept)
        kept[slot] = case_id
        return replace(self, seen=seen, kept=tuple(kept))


class ReplayMemory:
    """The samples that a reservoir keeps, in memory and as one file each.

    Files are written before the reservoir that names them is stored by the site, and swept by
    :meth:`discard_unnamed` after, so that a crash leaves at worst a file that nobody names.

    Parameters
    ----------
    folder
        Where the sample files lie.
    reservoir
        Which of them count.
    """

    def __init__(self, folder: Path, reservoir: Reservoir) -> None:
        self._folder = folder
        self.reservoir = reservoir
        self._loaded: dict[str, Sample] = {}

    def __len__(self) -> int:
        return len(self.reservoir.kept)

    def offer(self, sample: Sample, rng: np.random.Generator) -> None:
        """Give `sample` its chance to be remembered; one that is already in is brought up to date."""
        self.reservoir = self.reservoir.offer(sample.case_id, rng)
        self._loaded = {name: kept for name, kept in self._loaded.items() if name in self.reservoir.kept}
        if sample.case_id in self.reservoir.kept:
            save_arrays(
                self._file(sample.case_id), {"image": sample.image, "target": sample.target, "weight": sample.weight}
            )
            self._load(sample)

    def draw(self, count: int, rng: np.random.Generator) -> list[Sample]:
        """Draw `count` samples uniformly with replacement; none where nothing is remembered."""
        names: Sequence[str] = self.reservoir.kept
        return [self._sample(names[int(rng.integers(len(names)))]) for _ in range(count)] if names else []

    def discard_unnamed(self, *also_keep: str) -> None:
        """Remove the files of cases that neither the reservoir nor `also_keep` names."""
        named = {self._file(name).name for name in (*self.reservoir.kept, *also_keep)}
        for file in self._folder.glob("*.safetensors"):
            if file.name not in named:
                file.unlink(missing_ok=True)

    def _sample(self, case_id: str) -> Sample:
        sample = self._loaded.get(case_id)
        if sample is None:
            arrays = load_arrays(self._file(case_id))
            sample = Sample(case_id, arrays["image"], arrays["target"], arrays["weight"])  # type: ignore[arg-type]
            self._load(sample)
        return sample

    def _load(self, sample: Sample) -> None:
        """Keep a sample at hand; the longest-held ones go back to disk beyond :data:`LOADED_BYTES`."""
        self._loaded[sample.case_id] = sample
        while len(self._loaded) > 1 and sum(map(_size, self._loaded.values())) > LOADED_BYTES:
            del self._loaded[next(iter(self._loaded))]

    def _file(self, case_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(case_id.encode()).hexdigest()[:24]}.safetensors"


def _size(sample: Sample) -> int:
    return sample.image.nbytes + sample.target.nbytes + sample.weight.nbytes

"""Randomness that privacy rests on: who could foresee it could take the noise out again.

At a live site and at a coordinator every number comes from the operating system's generator. In a simulation, where
nobody's privacy is at stake and a run is to be repeated, it comes from a key.
"""

import hashlib
import secrets

import numpy as np
import numpy.typing as npt

_BLOCK = 2**20
# Numbers that are drawn at a time, so that the noise for a large array needs little memory beside it.
_PORTION = 2**18


class Noise:
    """Uniform and normal numbers, none of which is handed out twice.

    Parameters
    ----------
    key
        Whoever has it can foresee everything. None for the operating system's generator, which nobody can.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self._blocks = 0
        self._left = b""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """``[count]``, in the middle of one of 2⁵³ equal parts of 0 … 1 each: neither 0 nor 1."""
        whole = np.frombuffer(self._bytes(8 * count), dtype="<u8") >> np.uint64(11)
        return (whole.astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Standard normal numbers.

        Each is the sum of four by Box and Muller, over two: what a double can hold of a single one would give away
        what it was added to (Mironov 2012), and of a sum of several does not (Holohan and Braghin 2021).
        """
        count = int(np.prod(shape))
        parts = [self._normals(min(_PORTION, count - start)) for start in range(0, count, _PORTION)]
        return np.concatenate(parts).reshape(shape) if parts else np.zeros(shape)

    def seed(self) -> int:
        """0 … 2¹²⁸ - 1, for a generator of windows or augmentation that nobody can foresee either."""
        return int.from_bytes(self._bytes(16), "little")

    def _normals(self, count: int) -> npt.NDArray[np.float64]:
        radius, angle = self.uniform(4 * count).reshape(2, 2, count)
        radius = np.sqrt(-2 * np.log(radius))
        angle = 2 * np.pi * angle
        whole: npt.NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0) / 2
        return whole

    def _bytes(self, count: int) -> bytes:
        if self._key is None:
            return secrets.token_bytes(count)
        while len(self._left) < count:
            block = hashlib.shake_256(self._blocks.to_bytes(8, "big") + self._key).digest(_BLOCK)
            self._left, self._blocks = self._left + block, self._blocks + 1
        taken, self._left = self._left[:count], self._left[count:]
        return taken

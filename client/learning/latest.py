"""The latest global weights that a site was given, with the plan that they came with: where interactive work starts."""

import hashlib
import json
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wardround.errors import PlanError, StorageError
from wardround.files import sweep, write_bytes
from wardround.models.weights import network_weights
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan

_NAME = "latest.safetensors"


class LatestModel:
    """One file in `folder`: the weights, and in its header plan and digest, so that all change at once.

    One process writes it, at every round that it takes part in; any may read it meanwhile.

    Parameters
    ----------
    folder
        Of the model; made where it is absent.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def repair(self) -> None:
        """Remove what a crash left half-written. Call only where nobody else writes."""
        sweep(self._path.parent)

    def save(self, plan: RoundPlan, weights: Weights) -> None:
        """Keep these in place of the earlier ones, atomically and durably.

        Those of an earlier round of the same run, which is asked for again, change nothing. What travels beside the
        network's weights is not kept: nobody draws with it.

        Raises
        ------
        StorageError
            If the disk is full or not writable; the earlier ones are then still there.
        """
        weights = network_weights(weights)
        digest = weights_digest(weights)
        try:
            known = self._header()
        except StorageError:
            known = None  # A damaged one is replaced.
        if known is not None:
            latest, same = known[0], known[1] == digest
            if (latest.run == plan.run and latest.round > plan.round) or (latest == plan and same):
                return
        metadata = {"plan": plan.model_dump_json(), "digest": digest}
        contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
        write_bytes(self._path, save(contiguous, metadata))

    def read(self) -> tuple[RoundPlan, Weights] | None:
        """Plan and weights; None before the first round.

        Raises
        ------
        StorageError
            If the file is damaged or of another version.
        """
        try:
            with safe_open(self._path, framework="numpy") as stored:
                plan, digest = _parse(stored.metadata())
                weights: Weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if weights_digest(weights) != digest:
                raise ValueError("the weights are not those that were written")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, PlanError, SafetensorError) as error:
            raise self._damaged(error) from error
        return plan, weights

    def digest(self) -> str:
        """SHA-256 of the weights, as :func:`weights_digest` has it; empty before the first round.

        Raises
        ------
        StorageError
            As :meth:`read`.
        """
        known = self._header()
        return "" if known is None else known[1]

    def _header(self) -> tuple[RoundPlan, str] | None:
        try:
            with safe_open(self._path, framework="numpy") as stored:
                return _parse(stored.metadata())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, PlanError, SafetensorError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StorageError:
        return StorageError(
            f"cannot read {self._path}",
            f"the file is damaged or of another version ({type(error).__name__})",
            "remove it: the next round of the federation writes it anew",
        )


def weights_digest(weights: Weights) -> str:
    """SHA-256 of named arrays, in hexadecimal: their names, dtypes, shapes and bytes, whatever their order."""
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _parse(metadata: dict[str, str] | None) -> tuple[RoundPlan, str]:
    found = metadata or {}
    try:
        return RoundPlan.model_validate_json(found["plan"]), found["digest"]
    except ValidationError as error:
        raise ValueError("the plan cannot be read") from error

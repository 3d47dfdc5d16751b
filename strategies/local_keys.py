"""Arrays of a network that stay at each site: which, by patterns over their names.

Whatever matches a pattern is no part of the initial weights, of what a site is sent, or of its answer; the rest is
combined by any strategy as if it were the whole network. Two papers are a choice of patterns each:

========= ========================= ===================================================================================
name      stays at the site         source
========= ========================= ===================================================================================
fedbn     :data:`NORMALISATION`     Li et al. 2021, "FedBN: federated learning on non-IID features via local batch
                                    normalization" (arXiv 2102.07623): scanners differ in their intensities, which is
                                    what normalisation answers
fedper    :data:`HEAD`              Arivazhagan et al. 2019, "Federated learning with personalization layers" (arXiv
                                    1912.00818): the last layers
========= ========================= ===================================================================================
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from wardround.errors import PlanError

NORMALISATION = ("*.adn.*", "*norm.weight", "*norm.bias")
"""Scales and offsets of normalisation, and the slopes of activations that come right after it.

The catalogue's networks keep no running statistics: each image is normalised by its own. Those that end in ``-affine``
learn a scale and an offset for each channel, which is what FedBN keeps at a site; without these only slopes, and the
normalisation of attention, are left of it."""

HEAD = ("model.2.*",)
"""The last stage of the catalogue's networks, at full resolution, which ends in the labels."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns is the whole of `name`: ``*`` for any letters, dots included, ``?`` for one."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def staying(names: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """Those of a network's arrays that stay at each site.

    Raises
    ------
    PlanError
        If there are patterns and none of them matches, or nothing is left to travel.
    """
    patterns, names = tuple(patterns), tuple(names)
    found = frozenset(name for name in names if matches(name, patterns))
    if patterns and (not found or len(found) == len(names)):
        raise PlanError(
            "the plan's local-keys cannot be used",
            f"they match {'every array' if found else 'no array'} of this network",
            "name some of its arrays; normalisation with scales has every network of the catalogue in -affine",
        )
    return found

"""What is compared: arms, and what all arms of a stream share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from memory.streams import Phantoms, Unlabelled
from wardround.client.cases.phantoms import ScannerShift
from wardround.client.learning.teachers import SCALES, Distillation
from wardround.strategies.plan import Scale


@dataclass(frozen=True)
class Arm:
    """One way not to forget.

    Parameters
    ----------
    title
        In the table.
    memory
        Cases that are remembered; 0 for none.
    joint
        All cases of all regimes from the start, at random, with every structure drawn: what a stream could at best come
        to.
    distill, temperature, certainty, head, contrast, contrast_temperature, scales, edges
        As in :class:`~wardround.client.learning.teachers.Distillation`; the teacher is the network as it was when the
        case was met. A federation's teacher has no place in the stream of one site.
    logits
        Weight of the difference to what was answered when a remembered case was learnt; it needs memory.
    ewc
        Strength of :class:`~wardround.client.learning.consolidation.Consolidation`.
    forgets
        Whether all cases are forgotten at the end of a regime.
    generative
        As well, and a generator that has learnt them takes their place: no image of an earlier regime is kept.
    """

    title: str
    memory: int = 0
    joint: bool = False
    distill: float = 0.0
    temperature: float = 1.0
    certainty: bool = True
    head: bool = False
    contrast: float = 0.0
    contrast_temperature: float = 1.0
    scales: tuple[Scale, ...] = SCALES
    edges: tuple[Scale, ...] = ()
    logits: float = 0.0
    ewc: float = 0.0
    forgets: bool = False
    generative: bool = False

    @property
    def distillation(self) -> Distillation:
        """What is learnt from the teacher."""
        return Distillation(
            weight=self.distill,
            temperature=self.temperature,
            certainty=self.certainty,
            head=self.head,
            contrast=self.contrast,
            contrast_temperature=self.contrast_temperature,
            scales=self.scales,
            edges=self.edges,
        )


@dataclass(frozen=True)
class Recipe:
    """What all arms of a stream share.

    Parameters
    ----------
    cases, updates
        Cases of a regime, and updates on each.
    batch
        Samples of an update: half of the case at hand, half recalled; where nothing is recalled, all of that case.
    patch
        Sides of a window in voxels.
    shrink, slices
        Voxels along each side in plane, and across, that become one to learn from. Dice stays that on the image's own
        grid.
    tests
        Test cases of a regime.
    every
        Cases of the stream after which all regimes are tested; also at the end of each regime.
    rate, rate_end
        Learning rate of AdamW, along half a cosine within each case: a stream has no end to anneal towards.
    blocks
        Steps in which it falls.
    augmentation
        Of every batch.
    dice
        Weight of soft Dice beside cross-entropy.
    unlabelled
        What a structure is that is not drawn in a regime.
    model
        Of the catalogue.
    steps, side
        Of a generator: its updates at the end of each regime, and the longest side of what it makes, in voxels.
    """

    cases: int
    updates: int
    batch: int
    patch: tuple[int, int, int]
    shrink: int
    slices: int
    tests: int
    every: int
    rate: float = 4e-3
    rate_end: float = 2e-4
    blocks: int = 5
    augmentation: Literal["light", "strong"] = "light"
    dice: float = 1.0
    unlabelled: Unlabelled = "unknown"
    model: str = "unet3d-small"
    steps: int = 400
    side: int = 32

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"patch": list(self.patch)}


@dataclass(frozen=True)
class Task:
    """One stream, and what is compared on it.

    Parameters
    ----------
    title
        Above the tables.
    data
        Folder of the data set; empty where phantoms are drawn.
    recipe
        For two cores.
    full
        For a GPU.
    phantoms
        What is drawn.
    parts
        As in :func:`memory.streams.regimes_of`.
    free
        Whether seeds may order the regimes.
    """

    title: str
    data: str
    recipe: Recipe
    full: Recipe
    phantoms: Phantoms | None = None
    parts: Mapping[str, tuple[int, ...]] | None = None
    free: bool = True


# Weights and temperatures as released: for tumours (BraTS), and for the prostate (NCI). The former is the row of the
# table: on held-out training cases a head of its own took from distillation what it gives (seed 7, scanners).
_MSMT = Arm("MSMT", distill=0.4, contrast=0.1, contrast_temperature=0.5, scales=("encoder", "bottleneck", "decoder"))
_PROSTATE = Arm("MSMT, head and branch of its own", distill=0.4, head=True, contrast=0.1)
# Four that shapes are learnt from, and one that is kept apart to test by: the fewest that a generator takes over.
_HELD = 5
_CONTRAST = {
    "encoder": Arm("contrast of the encoder", contrast=0.2, contrast_temperature=2.0, scales=("encoder",)),
    "bottleneck": Arm("contrast of the bottleneck", contrast=0.1, contrast_temperature=0.5, scales=("bottleneck",)),
    "branch": Arm("contrast of the branch", contrast=0.2, contrast_temperature=2.0, scales=("branch",)),
    "decoder": Arm("contrast of the decoder", contrast=0.4, scales=("decoder",)),
}

ARMS: dict[str, Arm] = {
    "fine-tune": Arm("fine-tuning"),
    "lwf": Arm("LwF", distill=0.4, temperature=2.0, certainty=False),
    "ewc": Arm("EWC", ewc=0.1),
    "kd": Arm("distillation by certainty", distill=0.4),
    "msmt": _MSMT,
    "memory-2": Arm("memory of 2", memory=2),
    "memory-4": Arm("memory of 4", memory=4),
    "der++": Arm("DER++, memory of 4", memory=4, logits=0.2),
    "memory-4+kd": Arm("memory of 4 + distillation by certainty", memory=4, distill=0.4),
    "memory-4+msmt": replace(_MSMT, title="memory of 4 + MSMT", memory=4),
    "forgetful": Arm(f"memory of {_HELD}, forgotten after each regime", memory=_HELD, forgets=True),
    "generative": Arm("generative replay", memory=_HELD, forgets=True, generative=True),
    "joint": Arm("joint", joint=True),
}
"""The rows of the table."""

_REMEMBERED = replace(_PROSTATE, memory=4, edges=("encoder",))

ABLATIONS: dict[str, Arm] = {
    # Each part by itself, without memory.
    "kd-head": Arm("distillation by certainty, own head", distill=0.4, head=True),
    **{f"contrast-{scale}": arm for scale, arm in _CONTRAST.items()},
    "msmt-prostate": _PROSTATE,
    "msmt-uncertain": replace(_MSMT, title="MSMT, certainty off", certainty=False),
    "memory-2+msmt": replace(_MSMT, title="memory of 2 + MSMT", memory=2),
    "memory-4+msmt-uncertain": replace(_MSMT, title="memory of 4 + MSMT, certainty off", memory=4, certainty=False),
    "generative+msmt": replace(_MSMT, title="generative replay + MSMT", memory=_HELD, forgets=True, generative=True),
    # One part after the other beside a memory of 4, for the prostate.
    "memory-4+kd-head": replace(_REMEMBERED, title="memory of 4 + distillation, own head", contrast=0.0, edges=()),
    **{
        f"memory-4+kd-head+{SCALES[count - 1]}": replace(
            _REMEMBERED,
            title=f"memory of 4 + distillation, own head + {', '.join(SCALES[:count])}",
            scales=SCALES[:count],
            edges=(),
        )
        for count in range(1, len(SCALES) + 1)
    },
    "memory-4+msmt-edges-encoder": replace(_REMEMBERED, title="memory of 4 + all of it, edges: encoder"),
    "memory-4+msmt-edges-decoder": replace(
        _REMEMBERED, title="memory of 4 + all of it, edges: decoder", edges=("decoder",)
    ),
    "memory-4+msmt-edges-both": replace(
        _REMEMBERED, title="memory of 4 + all of it, edges: both", edges=("encoder", "decoder")
    ),
}
"""Rows that are run by name alone."""


def picked(names: Sequence[str], changed: Mapping[str, Any]) -> dict[str, Arm]:
    """The arms of these names, those of the table for none, with these fields changed in every one."""
    known = ARMS | ABLATIONS
    return {name: replace(known[name], **changed) for name in names or ARMS}


_INSTITUTIONS = Recipe(cases=6, updates=60, batch=16, patch=(32, 32, 1), shrink=4, slices=1, tests=6, every=3)
_SCANNERS = Recipe(cases=6, updates=60, batch=2, patch=(32, 32, 32), shrink=1, slices=1, tests=6, every=3)
_STRUCTURES = Recipe(cases=8, updates=40, batch=2, patch=(32, 32, 32), shrink=2, slices=2, tests=12, every=2)
_PHANTOMS = replace(_SCANNERS, cases=3, updates=40, tests=3, steps=200)

_SEQUENCES = {
    "usual": ScannerShift(),
    "inverse": ScannerShift(contrast=-0.6),
    "coarse": ScannerShift(contrast=2.0, resolution=1.2, noise=0.08),
    "shaded": ScannerShift(contrast=-1.2, bias=0.3, noise=0.06),
}

TASKS: dict[str, Task] = {
    "institutions": Task(
        "Four institutions, tumours in FLAIR",
        "lgg_multisite",
        replace(_INSTITUTIONS, model="unet2d-small"),
        replace(_INSTITUTIONS, updates=150, batch=16, patch=(128, 128, 1), shrink=1, model="unet2d"),
    ),
    "scanners": Task(
        "Four scanners, phantoms",
        "",
        _SCANNERS,
        replace(_SCANNERS, updates=150, model="unet3d"),
        Phantoms((24, 32, 24), _SEQUENCES, train=16, test=6),
    ),
    "structures": Task(
        "Anterior, then posterior hippocampus",
        "hippocampus",
        _STRUCTURES,
        replace(_STRUCTURES, updates=150, patch=(64, 64, 64), shrink=1, slices=1, model="unet3d"),
        parts={"anterior": (1,), "posterior": (2,)},
        free=False,
    ),
    "phantoms": Task(
        "Two scanners, a few phantoms",
        "",
        _PHANTOMS,
        replace(_PHANTOMS, updates=60),
        Phantoms((24, 32, 24), {name: _SEQUENCES[name] for name in ("inverse", "coarse")}, train=6, test=4),
    ),
}

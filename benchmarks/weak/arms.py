"""What is compared: arms, and the recipe that all arms of a task share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from wardround.client.supervision.regularisation import Kernel, Regularisation

FLAT, FLAT_ATTENTION = "unet2d-small", "unet2d-small-attention"
SOLID, SOLID_ATTENTION = "unet3d-small", "unet3d-small-attention"


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Parameters
    ----------
    title
        In the table.
    labels
        What is given for a case, see :data:`weak.labels.KINDS`.
    model
        Of the catalogue.
    dice
        Weight of partial Dice beside partial cross-entropy.
    crf, variance, attentive, kernel
        As in :class:`~wardround.client.supervision.regularisation.Regularisation`.
    ramp
        Share of training over which these grow to full strength.
    second
        The other network of stage 2; stage 1 then takes the first half of the updates of each.
    """

    title: str
    labels: str
    model: str
    dice: float = 1.0
    crf: float = 0.0
    variance: float = 0.0
    attentive: float = 0.0
    kernel: Kernel = "windowed"
    ramp: float = 0.0
    second: str = ""

    @property
    def regularisation(self) -> Regularisation:
        """At full strength."""
        return Regularisation(self.crf, self.variance, self.attentive, self.kernel)


@dataclass(frozen=True)
class Recipe:
    """What all arms of a task share.

    Parameters
    ----------
    iterations, batch
        Updates of every network, and windows in each.
    patch
        Sides of a window in voxels.
    rate, rate_end
        Learning rate of AdamW, along half a cosine.
    blocks
        Steps in which rate and strength change, and after which a kernel's health is noted.
    augmentation
        Of every batch; the strong one is of nnU-Net's strength.
    """

    iterations: int
    batch: int
    patch: tuple[int, int, int]
    rate: float = 4e-3
    rate_end: float = 2e-4
    blocks: int = 25
    augmentation: Literal["light", "strong"] = "strong"

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"patch": list(self.patch)}


@dataclass(frozen=True)
class Task:
    """One table.

    Parameters
    ----------
    title
        Above it.
    data
        Folder of the data set.
    arms
        By name, in the order of the table.
    baseline
        The strongest simple arm: every other one is compared with it case by case.
    floor, ceiling
        Arms between which a gap is closed.
    cpu, full
        Recipes for two cores and for a GPU.
    unit
        Of surface distances.
    """

    title: str
    data: str
    arms: Mapping[str, Arm]
    baseline: str
    floor: str
    ceiling: str
    cpu: Recipe
    full: Recipe
    unit: str = "mm"

    def picked(self, names: Sequence[str]) -> "Task":
        """With these arms alone; all of them for none."""
        return replace(self, arms={name: self.arms[name] for name in names}) if names else self


CRF = 0.1
VARIANCE = 0.1
RELEASED = 0.1
# Asked at full strength from the start, a small network calls everything background on phantoms.
RAMP = 0.5
# A row of our kernel sums to one where one of theirs sums to about thirty.
OURS = 1.0

_SCRIBBLED = {
    "pce": Arm("partial CE", "scribbles", FLAT, dice=0.0),
    "pce+dice": Arm("partial CE + partial Dice", "scribbles", FLAT),
    "crf": Arm("+ gated CRF", "scribbles", FLAT, crf=CRF, ramp=RAMP),
    "attention-pce+dice": Arm("attention network: partial CE + partial Dice", "scribbles", FLAT_ATTENTION),
    "attention-crf": Arm("attention network: + gated CRF", "scribbles", FLAT_ATTENTION, crf=CRF, ramp=RAMP),
    "released": Arm(
        "attention network: + CRF + attentive, released",
        *("scribbles", FLAT_ATTENTION),
        crf=CRF,
        attentive=RELEASED,
        kernel="released",
        ramp=RAMP,
    ),
    "ours": Arm(
        "attention network: + CRF + attentive, ours", "scribbles", FLAT_ATTENTION, crf=CRF, attentive=OURS, ramp=RAMP
    ),
    "dense": Arm("dense labels", "dense", FLAT),
}


def _pointed(contrast: str) -> dict[str, Arm]:
    """The arms of seven points, with the seeds that were chosen for tumours or for low contrast."""
    stage_1 = Arm(
        "stage 1: geodesic seeds + CRF + variance", f"geodesic{contrast}", SOLID, crf=1.0, variance=VARIANCE, ramp=0.1
    )
    return {
        "points": Arm("seven points, partial CE", "points", SOLID, dice=0.0),
        "euclidean": Arm("seeds by plain distance", f"euclidean{contrast}", SOLID),
        "geodesic": Arm("seeds by geodesic distance", f"geodesic{contrast}", SOLID),
        "stage-1": stage_1,
        "stage-2": replace(stage_1, title="stage 2: two networks monitor", second=SOLID_ATTENTION),
        "dense": Arm("dense labels", "dense", SOLID),
    }


_HELPED = {
    "points+slice": Arm("points + one slice", "points+slice", SOLID),
    "points+3slices": Arm("points + one slice a plane", "points+3slices", SOLID),
}

TASKS = {
    "acdc": Task(
        "Cardiac MR, expert scribbles",
        "acdc_scribbles",
        _SCRIBBLED,
        *("pce+dice", "pce", "dense"),
        Recipe(1200, 8, (128, 128, 1)),
        Recipe(60_000, 12, (256, 256, 1), 2e-3, 1e-5, 100),
    ),
    "phantoms": Task(
        "Phantoms, simulated scribbles",
        "phantoms",
        _SCRIBBLED,
        *("pce+dice", "pce", "dense"),
        Recipe(240, 8, (32, 32, 1), blocks=6, augmentation="light"),
        Recipe(600, 8, (32, 32, 1), augmentation="light"),
    ),
    "tumours": Task(
        "Tumours in FLAIR, seven points",
        "lgg_multisite",
        _pointed(", contrasted"),
        *("euclidean", "points", "dense"),
        Recipe(600, 2, (96, 96, 24)),
        Recipe(30_000, 4, (128, 128, 32), 2e-3, 1e-5, 100),
        unit="voxels",
    ),
    "federated": Task(
        "Four hospitals, four kinds of label",
        "lgg_multisite",
        {
            "federated": Arm("all four, federated", "mixed", SOLID),
            "site_CS": Arm("CS alone, dense labels", "dense", SOLID),
            "site_FG": Arm("FG alone, four slices a case", "slices", SOLID),
            "site_HT": Arm("HT alone, strokes", "scribbles", SOLID),
            "site_DU": Arm("DU alone, seven points", "geodesic, contrasted", SOLID),
        },
        *("federated", "site_DU", "site_CS"),
        Recipe(400, 2, (96, 96, 24)),
        Recipe(10_000, 4, (128, 128, 32), 2e-3, 1e-5, 100),
        unit="voxels",
    ),
    "hippocampus": Task(
        "Hippocampus, seven points a part",
        "hippocampus",
        _pointed("") | _HELPED,
        *("euclidean", "points", "dense"),
        Recipe(800, 2, (64, 64, 64)),
        Recipe(20_000, 4, (64, 64, 64), 2e-3, 1e-5, 100),
    ),
}
KERNELS = ("released", "ours")

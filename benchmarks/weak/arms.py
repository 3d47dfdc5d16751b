"""What is compared: arms, and the recipe that all arms of a task share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from wardround.client.supervision.crf import CrfSettings
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
    side, radius, position
        Of the grid on which the random field compares neighbours, and its window on it, as in
        :class:`~wardround.client.supervision.crf.CrfSettings`.
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
    side: int = 64
    radius: float = 5.0
    position: float = 6.0
    second: str = ""

    @property
    def regularisation(self) -> Regularisation:
        """At full strength."""
        neighbours = CrfSettings(self.radius, self.position)
        return Regularisation(self.crf, self.variance, self.attentive, self.kernel, self.side, neighbours=neighbours)


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
    shrink
        Pixels along each side in plane that become one to learn from. Dice stays that on the image's own grid.
    """

    iterations: int
    batch: int
    patch: tuple[int, int, int]
    rate: float = 4e-3
    rate_end: float = 2e-4
    blocks: int = 25
    augmentation: Literal["light", "strong"] = "strong"
    shrink: int = 1

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

    def enlarged(self) -> "Task":
        """With the large network of each family."""
        arms = {
            name: replace(arm, model=arm.model.replace("-small", ""), second=arm.second.replace("-small", ""))
            for name, arm in self.arms.items()
        }
        return replace(self, arms=arms)


def _scribbled(crf: float, released: float, ours: float, ramp: float) -> dict[str, Arm]:
    """The arms of strokes under these weights of the random field and of attentive similarity by either kernel."""
    attention = Arm("attention network: partial CE + partial Dice", "scribbles", FLAT_ATTENTION)
    field = replace(attention, title="attention network: + gated CRF", crf=crf, ramp=ramp)
    attentive = "attention network: + CRF + attentive"
    return {
        "pce": Arm("partial CE", "scribbles", FLAT, dice=0.0),
        "pce+dice": Arm("partial CE + partial Dice", "scribbles", FLAT),
        "crf": Arm("+ gated CRF", "scribbles", FLAT, crf=crf, ramp=ramp),
        "attention-pce+dice": attention,
        "attention-crf": field,
        "released": replace(field, title=f"{attentive}, released", attentive=released, kernel="released"),
        "ours": replace(field, title=f"{attentive}, ours", attentive=ours),
        "dense": Arm("dense labels", "dense", FLAT),
        "attention-dense": replace(attention, title="attention network: dense labels", labels="dense"),
    }


# PA-Seg asks for ten times as much of the random field, over a hundred times as many updates. Here that made
# hippocampi all background. Chosen with --inner (200 updates, seed 7).
_STAGE_1 = Arm("stage 1: geodesic seeds + CRF + variance", "geodesic", SOLID, crf=0.1, variance=0.1, ramp=0.5)


def _pointed(contrast: str) -> dict[str, Arm]:
    """The arms of seven points, with the seeds that were chosen for tumours or for low contrast."""
    stage_1 = replace(_STAGE_1, labels=f"geodesic{contrast}")
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
    "proxy+3slices": Arm("points + one slice a plane, propagated", "proxy, 3 slices", SOLID),
    "stage-1+slice": replace(_STAGE_1, title="stage 1 + one slice", labels="geodesic, slice"),
    "stage-1+3slices": replace(_STAGE_1, title="stage 1 + one slice a plane", labels="geodesic, 3 slices"),
}

TASKS = {
    "acdc": Task(
        "Cardiac MR, expert scribbles",
        "acdc_scribbles",
        # Chosen with --inner (400 updates, seed 7).
        _scribbled(crf=1.0, released=0.1, ours=4.0, ramp=0.1),
        *("attention-crf", "pce", "dense"),
        Recipe(400, 8, (128, 128, 1), shrink=2),
        Recipe(60_000, 12, (256, 256, 1), 2e-3, 1e-5, 100),
    ),
    "phantoms": Task(
        "Phantoms, simulated scribbles",
        "phantoms",
        # Asked at full strength from the start, a small network calls everything background here.
        _scribbled(crf=0.1, released=0.1, ours=1.0, ramp=0.5),
        *("pce+dice", "pce", "dense"),
        Recipe(240, 8, (32, 32, 1), blocks=6, augmentation="light"),
        Recipe(600, 8, (32, 32, 1), augmentation="light"),
    ),
    "tumours": Task(
        "Tumours in FLAIR, seven points",
        "lgg_multisite",
        _pointed(", contrasted"),
        *("euclidean", "points", "dense"),
        Recipe(300, 2, (64, 64, 32), shrink=2),
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
        Recipe(200, 2, (64, 64, 32), shrink=2),
        Recipe(10_000, 4, (128, 128, 32), 2e-3, 1e-5, 100),
        unit="voxels",
    ),
    "hippocampus": Task(
        "Hippocampus, seven points a part",
        "hippocampus",
        _pointed("") | _HELPED,
        *("euclidean", "points", "dense"),
        Recipe(300, 2, (48, 64, 48)),
        Recipe(20_000, 4, (64, 64, 64), 2e-3, 1e-5, 100),
    ),
}
KERNELS = ("released", "ours")

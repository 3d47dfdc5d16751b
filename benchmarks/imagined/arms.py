"""What is compared: arms, the generators behind them, and what all of them share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from weak.arms import Recipe as Learning

BASELINE = "strong"
VALIDATION_CASES = 5
"""Where a generator is steered by validation, every so many labelled cases one is set aside for it."""


@dataclass(frozen=True)
class Generator:
    """What makes images of labels, trained before the arms that use it.

    Parameters
    ----------
    title
        In the tables.
    kind
        A diffusion model, or a searched generator at even operators.
    style, frequency
        Of the diffusion model: whether the texture of another image is injected, and whether features are gated in the
        frequency domain.
    """

    title: str
    kind: Literal["diffusion", "searched"] = "diffusion"
    style: bool = True
    frequency: bool = True

    @property
    def apart(self) -> bool:
        """Whether cases for validation are kept from it."""
        return self.kind == "searched"


GENERATORS = {
    "medsad": Generator("diffusion"),
    "medsad-no-tsi": Generator("diffusion without texture injection", style=False),
    "medsad-no-ffda": Generator("diffusion without frequency gate", frequency=False),
    "searched": Generator("searched, even operators", "searched"),
}


@dataclass(frozen=True)
class Arm:
    """One way to learn from k labelled volumes.

    Parameters
    ----------
    title
        In the table.
    augmentation
        Of every batch; ``knobs`` are those of :mod:`wardround.client.synthesis.knobs`, turned by validation.
    source
        Where made pairs come from: a name of :data:`GENERATORS`, ``deformed`` for real pairs bent and recoloured, or
        nothing.
    steered
        Whether validation moves the source while the network learns: operators of the generator, or knobs.
    apart
        Whether cases for validation are set aside, which no update of the network sees.
    sizes
        Numbers k of labelled volumes that it is run with; none for all.
    """

    title: str
    augmentation: Literal["none", "light", "strong", "knobs"] = "strong"
    source: str = ""
    steered: bool = False
    apart: bool = False
    sizes: tuple[int, ...] = ()


ARMS: dict[str, Arm] = {
    "none": Arm("no augmentation", "none", sizes=(5,)),
    "light": Arm("light augmentation", "light", sizes=(5,)),
    "strong": Arm("strong augmentation"),
    "strong-train-only": Arm("strong, without the validation cases", apart=True, sizes=(5,)),
    "deformed": Arm("+ deformed and recoloured real pairs", source="deformed", sizes=(5,)),
    "medsad": Arm("+ diffusion", source="medsad"),
    "medsad-no-tsi": Arm("+ diffusion, no texture injection", source="medsad-no-tsi", sizes=(5,)),
    "medsad-no-ffda": Arm("+ diffusion, no frequency gate", source="medsad-no-ffda", sizes=(5,)),
    "separate": Arm("+ searched generator, no feedback", source="searched", apart=True, sizes=(5,)),
    "genseg": Arm("+ searched generator, coupled", source="searched", steered=True, apart=True),
    "genseg-knobs": Arm("the same, knobs coupled instead", "knobs", "searched", steered=True, apart=True, sizes=(5,)),
}
"""The rows of the tables, in their order."""


@dataclass(frozen=True)
class Recipe(Learning):
    """What all arms share; `patch` is the grid of slices, of one slice.

    Parameters
    ----------
    model
        Of the catalogue.
    sizes
        Numbers k of labelled volumes.
    share
        Of a batch that is made pairs, where the slice in its place shows any structure.
    gamma
        γ, how much a made pair counts. At 0 a real one takes its place.
    pool
        Pairs that a generator makes; what is made anew between blocks counts as many a run.
    diffusion_updates, diffusion_batch, channels, style
        Of the diffusion model.
    searched_updates, searched_batch, searched_channels
        Of the searched generator before it is coupled.
    advances
        Steps of the coupled search a run, as many between any two blocks of the network's own steps.
    knob_rate
        Learning rate of the knobs (Adam).
    judge_cases, judge_updates
        Of the network that is asked what synthetic images show.
    held_out
        Cases that nothing learns from, for comparison with real images.
    tests
        Cases that are held out where settings are chosen.
    looked_at
        Images in a comparison.
    """

    model: str = "unet2d-small"
    sizes: tuple[int, ...] = (5, 10, 20)
    share: float = 0.25
    gamma: float = 1.0
    pool: int = 256
    diffusion_updates: int = 800
    diffusion_batch: int = 16
    channels: tuple[int, ...] = (16, 32, 64)
    style: int = 32
    searched_updates: int = 600
    searched_batch: int = 8
    searched_channels: tuple[int, ...] = (16, 32, 64)
    advances: int = 200
    knob_rate: float = 0.05
    judge_cases: int = 56
    judge_updates: int = 4000
    held_out: int = 20
    tests: int = 24
    looked_at: int = 96

    @property
    def grid(self) -> tuple[int, int]:
        """Sides of a slice for networks and generators."""
        return self.patch[:2]

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Task:
    """One table.

    Parameters
    ----------
    title
        Above it.
    data
        Folder of the data set; empty where phantoms are drawn.
    cpu, full
        Recipes for two cores and for a GPU.
    arms
        By name, in the order of the table.
    """

    title: str
    data: str
    cpu: Recipe
    full: Recipe
    arms: Mapping[str, Arm] = field(default_factory=lambda: ARMS)


_HIPPOCAMPUS = Recipe(iterations=1200, batch=4, patch=(32, 48, 1), rate=4e-3, rate_end=2e-4, blocks=20)
_PHANTOMS = replace(
    _HIPPOCAMPUS,
    iterations=24,
    batch=4,
    patch=(24, 24, 1),
    blocks=4,
    sizes=(5,),
    pool=24,
    diffusion_updates=24,
    diffusion_batch=4,
    channels=(8, 8),
    style=8,
    searched_updates=24,
    searched_channels=(8, 8),
    advances=8,
    judge_cases=3,
    judge_updates=24,
    held_out=3,
    tests=2,
    looked_at=16,
)

TASKS: dict[str, Task] = {
    "hippocampus": Task(
        "Anterior and posterior hippocampus, k labelled volumes",
        "hippocampus",
        _HIPPOCAMPUS,
        replace(
            _HIPPOCAMPUS,
            iterations=10_000,
            batch=16,
            patch=(48, 64, 1),
            rate=2e-3,
            rate_end=1e-5,
            blocks=100,
            model="unet2d",
            pool=4096,
            diffusion_updates=40_000,
            diffusion_batch=32,
            channels=(64, 128, 256),
            style=128,
            searched_updates=20_000,
            searched_channels=(64, 128, 256),
            advances=5_000,
            judge_updates=10_000,
            looked_at=512,
        ),
    ),
    "phantoms": Task("Phantoms, k labelled volumes", "", _PHANTOMS, replace(_PHANTOMS, iterations=240, blocks=12)),
}

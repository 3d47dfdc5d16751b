"""Random deformation and intensity change of a training batch, the same for every arm of an experiment."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from monai import transforms
from monai.data import get_track_meta, set_track_meta
from torch import Tensor

from wardround.strategies.plan import Strength

# A volume is turned only in planes whose sides are within this ratio: thick slices are not cut obliquely.
THIN = 3


class Augmenter(Protocol):
    """What may be done to every batch: the same to image, target and weights."""

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Augmentation.__call__`."""
        ...


def augmentation_named(strength: Strength) -> Augmenter | None:
    """:class:`Augmentation` or :class:`StrongAugmentation` with its default settings; None for ``none``."""
    return {"none": None, "light": Augmentation(), "strong": StrongAugmentation()}[strength]


@dataclass(frozen=True)
class Augmentation:
    """How strongly a batch is changed.

    Parameters
    ----------
    scale
        Each axis is stretched by a factor from ``[1 - scale, 1 + scale]``.
    shear
        Standard deviation of the off-diagonal entries of the affine map (small rotations and shears).
    shift
        Largest translation as a fraction of half the field of view.
    contrast, brightness
        Half-widths of the random gain and offset, in units of the image's standard deviation.
    noise
        Largest standard deviation of added Gaussian noise, in the same unit.
    """

    scale: float = 0.15
    shear: float = 0.06
    shift: float = 0.08
    contrast: float = 0.2
    brightness: float = 0.2
    noise: float = 0.1

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Deform image, target and weight alike, and change the image's intensities.

        Parameters
        ----------
        image
            ``[N, 1, *spatial]`` with two or three spatial axes, normalised intensities.
        target
            ``[N, C, *spatial]``, probabilities. What moves in from outside the volume is background.
        weight
            ``[N, W, *spatial]``, at least 0: how much voxels count, and what else is known of them. What moves in from
            outside is 0; nothing is interpolated.
        rng
            The only source of randomness.
        """
        count, axes = image.shape[0], image.ndim - 2
        matrix = np.eye(axes) * rng.uniform(1 - self.scale, 1 + self.scale, (count, 1, axes))
        matrix = matrix + rng.normal(0, self.shear, (count, axes, axes)) * (1 - np.eye(axes))
        offset = rng.uniform(-self.shift, self.shift, (count, axes, 1))
        theta = torch.from_numpy(np.concatenate([matrix, offset], axis=2)).to(image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        one_each = (count, *(1,) * (axes + 1))

        def move(tensor: Tensor, mode: str = "bilinear") -> Tensor:
            return F.grid_sample(tensor, grid, mode=mode, padding_mode="zeros", align_corners=False)

        target = _filled_up(move(target))
        gain = torch.from_numpy(rng.uniform(1 - self.contrast, 1 + self.contrast, one_each)).to(image)
        lift = torch.from_numpy(rng.uniform(-self.brightness, self.brightness, one_each)).to(image)
        grain = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sigma = torch.from_numpy(rng.uniform(0, self.noise, one_each)).to(image)
        noise = torch.randn(image.shape, generator=grain).to(image)
        return move(image) * gain + lift + sigma * noise, target, move(weight, "nearest")


@dataclass(frozen=True)
class StrongAugmentation:
    """What nnU-Net does to its batches (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, supplementary note 4).

    The transforms are MONAI's, in nnU-Net's order and with its ranges. Elastic deformation is left out, as nnU-Net's
    second version leaves it out.

    Parameters
    ----------
    rotation
        Largest angle in each plane, in degrees. Where one side of a volume is less than a third of another, slices are
        taken to be thick and turned within themselves only, as nnU-Net does.
    shift
        Largest translation along each axis as a fraction of its side.
    scale
        Range of the factor by which everything is enlarged, the same along all axes.
    moved
        Probability of rotation and shift, and again that of scaling. nnU-Net's is 0.2, but its patches lie anywhere in
        an image, and ours are mostly whole images.
    mirror
        Spatial axes that are mirrored half of the time. None by default: where left and right are told apart, mirroring
        would teach the wrong side.
    intensities
        Factor on the probabilities of changes of intensity, which are nnU-Net's: noise 0.1, blur 0.2, brightness and
        contrast 0.15 each, low resolution 0.25, gamma 0.3 and of the inverted image 0.1.
    """

    rotation: float = 30.0
    shift: float = 0.1
    scale: tuple[float, float] = (0.7, 1.4)
    moved: float = 0.5
    mirror: tuple[int, ...] = ()
    intensities: float = 1.0

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of :meth:`Augmentation.__call__`."""
        transform = self._transform(tuple(image.shape[2:]))
        transform.set_random_state(seed=int(rng.integers(2**31)))
        # What MONAI notes of each transform is read by nobody here, and takes as long as all that they do.
        noting = get_track_meta()
        set_track_meta(False)
        try:
            found = [
                transform({"image": one, "target": its_target, "weight": its_weight})
                for one, its_target, its_weight in zip(image, target, weight, strict=True)
            ]
        finally:
            set_track_meta(noting)
        image, target, weight = (
            torch.stack([torch.as_tensor(one[name]).as_subclass(Tensor) for one in found])
            for name in ("image", "target", "weight")
        )
        return image, _filled_up(target), weight

    def _transform(self, sides: tuple[int, ...]) -> transforms.Compose:
        often, linear = self.intensities, "bilinear" if len(sides) == 2 else "trilinear"
        everything = ["image", "target", "weight"]
        return transforms.Compose(
            [
                transforms.RandAffined(
                    everything,
                    prob=self.moved,
                    rotate_range=self._angles(sides),
                    translate_range=[self.shift * side for side in sides],
                    mode=["bilinear", "bilinear", "nearest"],
                    padding_mode="zeros",
                ),
                transforms.RandZoomd(
                    everything,
                    prob=self.moved,
                    min_zoom=self.scale[0],
                    max_zoom=self.scale[1],
                    mode=[linear, linear, "nearest-exact"],
                    padding_mode="constant",
                ),
                *(transforms.RandFlipd(everything, prob=0.5, spatial_axis=axis) for axis in self.mirror),
                transforms.RandGaussianNoised("image", prob=0.1 * often, std=0.3),
                transforms.RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=0.2 * often),
                transforms.RandScaleIntensityd("image", 0.25, prob=0.15 * often),
                transforms.RandScaleIntensityFixedMeand("image", 0.25, preserve_range=True, prob=0.15 * often),
                transforms.RandSimulateLowResolutiond("image", prob=0.25 * often, upsample_mode=linear),
                transforms.RandAdjustContrastd(
                    "image", prob=0.1 * often, gamma=(0.7, 1.5), invert_image=True, retain_stats=True
                ),
                transforms.RandAdjustContrastd("image", prob=0.3 * often, gamma=(0.7, 1.5), retain_stats=True),
            ]
        )

    def _angles(self, sides: tuple[int, ...]) -> list[float]:
        """Largest angle of each rotation: one in the plane, or one round each of three axes."""
        planes = [sides] if len(sides) == 2 else [sides[:axis] + sides[axis + 1 :] for axis in range(3)]
        return [np.deg2rad(self.rotation) if max(plane) <= THIN * min(plane) else 0.0 for plane in planes]


def _filled_up(target: Tensor) -> Tensor:
    """`target` with background where nothing else is."""
    return torch.cat([target[:, :1] + (1 - target.sum(1, keepdim=True)), target[:, 1:]], dim=1)

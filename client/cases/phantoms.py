"""Phantoms: procedurally drawn 3D anatomies, so that everything runs with no data and site differences are a parameter.

A phantom holds one bent, tapering organ in two parts, a thick *head* (label 1) and a thin *body* (label 2), in a
background of fluid, grey and white tissue. Grey tissue and a second organ beside the first have the organ's own
intensity, so that no threshold separates it: position and shape do. Each scanner then changes contrast, resolution,
bias field and Rician noise in its own way.
"""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround import files
from wardround.client.cases.nifti import write_volume
from wardround.client.cases.volume import Volume
from wardround.errors import UsageError

LABEL_NAMES = ("background", "head", "body")
DEFAULT_SHAPE = (40, 48, 40)
SMALLEST_AXIS = 16

# Mean signal as a fraction of white matter's, before the scanner.
_FLUID, _GREY, _WHITE = 0.18, 0.52, 0.85
_HEAD, _BODY, _NEIGHBOUR = 0.44, 0.60, 0.52

_Field = npt.NDArray[np.float64]
_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ScannerShift:
    """How one site's scanner renders the same anatomy. The defaults are the reference scanner.

    Parameters
    ----------
    contrast
        Exponent on the signal (white matter = 1), above 0; 1 leaves it as it is.
    resolution
        Standard deviation of the point spread in voxels, 0 or above.
    noise
        Standard deviation of each channel of the Rician noise as a fraction of white matter's signal, 0 or above.
    bias
        Standard deviation of the logarithm of the multiplicative bias field, 0 or above.
    """

    contrast: float = 1.0
    resolution: float = 0.5
    noise: float = 0.04
    bias: float = 0.1


def site_shift(site_index: int, strength: float) -> ScannerShift:
    """The scanner of a site.

    Sites are spread over the four properties by a Halton sequence, so that any two differ and the first few already
    span the range. The same index gives the same direction at every strength.

    Parameters
    ----------
    site_index
        0 or above.
    strength
        0 gives every site the reference scanner (IID); 1 differs as scanners of one field strength do; 2 is harsh.

    Raises
    ------
    UsageError
        If `strength` is negative or not finite.
    """
    if not (strength >= 0 and np.isfinite(strength)):
        raise UsageError(f"a scanner shift cannot have strength {strength}", "it must be 0 or above", "try 1")
    contrast, resolution, noise, bias = (2 * _halton(site_index + 1, base) - 1 for base in (2, 3, 5, 7))
    reference = ScannerShift()
    return ScannerShift(
        contrast=reference.contrast * float(np.exp(0.6 * strength * contrast)),
        resolution=reference.resolution * float(np.exp(0.6 * strength * resolution)),
        noise=reference.noise * float(np.exp(0.6 * strength * noise)),
        bias=reference.bias * float(np.exp(0.8 * strength * bias)),
    )


def draw_phantom(
    rng: np.random.Generator, shape: _Shape = DEFAULT_SHAPE, shift: ScannerShift | None = None
) -> tuple[Volume, Volume]:
    """Draw one case.

    Parameters
    ----------
    rng
        Draws anatomy and noise; equal generators give equal cases.
    shape
        ``(I, J, K)``, each at least :data:`SMALLEST_AXIS`; the organ's long axis runs along j.
    shift
        The scanner; the reference scanner where None.

    Returns
    -------
    image : Volume
        float32, 0 or above, in an arbitrary unit that differs from case to case by a factor of up to 100.
    labels : Volume
        uint8: 0 background, 1 head, 2 body, on the same grid; the spacing is slightly anisotropic.

    Raises
    ------
    UsageError
        If an axis is too short.
    """
    if min(shape) < SMALLEST_AXIS:
        raise UsageError(
            f"a phantom cannot have the shape {shape}",
            f"the organ needs {SMALLEST_AXIS} voxels along each axis",
            "ask for a larger shape",
        )
    shift = shift or ScannerShift()
    labels, neighbour = _draw_organs(rng, shape)
    image = _scan(rng, _draw_tissue(rng, labels, neighbour), shift)
    spacing = np.array([0.9, 1.0, 1.1])
    affine = np.diag([*(spacing * (-1, -1, 1)), 1.0])
    affine[:3, 3] = np.round(rng.uniform(-40, 40, 3), 1)
    return Volume(image, affine), Volume(labels, affine)


def write_phantom_dataset(
    folder: Path,
    sites: int,
    cases_per_site: int,
    test_cases_per_site: int,
    seed: int,
    *,
    shift_strength: float,
    shape: _Shape = DEFAULT_SHAPE,
) -> Path:
    """Write a data set of phantoms with its split, in the layout that `load_dataset` and `split_by_file` read.

    A case depends on `seed`, its site, its number and the scanner alone: asking for more cases or sites leaves the
    others as they are. The folder appears as a whole or not at all; one that already holds this very data set is kept.

    Parameters
    ----------
    folder
        To be made: ``imagesTr/``, ``labelsTr/``, ``dataset.json``, ``split.json`` and ``manifest.csv``.
    sites, cases_per_site, test_cases_per_site
        How many; at least 1, 1 and 0.
    seed
        0 or above.
    shift_strength
        How much the sites' scanners differ, see :func:`site_shift`.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    UsageError
        If a number is out of range.
    StorageError
        If the folder holds anything else, the disk is full or it is not writable.
    """
    if sites < 1 or cases_per_site < 1 or test_cases_per_site < 0 or seed < 0:
        raise UsageError(
            f"cannot draw {sites} sites of {cases_per_site} + {test_cases_per_site} cases from seed {seed}",
            "at least one site and one training case are needed, and no number may be negative",
            "ask for more",
        )
    shifts = {f"site_{n}": site_shift(n - 1, shift_strength) for n in range(1, sites + 1)}
    settings: dict[str, Any] = {
        "version": 1,
        "sites": sites,
        "cases_per_site": cases_per_site,
        "test_cases_per_site": test_cases_per_site,
        "seed": seed,
        "shift_strength": shift_strength,
        "shape": list(shape),
    }
    if _holds(folder, settings):
        return folder
    counts = {"sites": cases_per_site, "test": test_cases_per_site}
    split: dict[str, dict[str, list[str]]] = {part: {site: [] for site in shifts} for part in counts}
    rows: list[dict[str, str]] = []
    with files.new_folder(folder) as building:
        for site_index, (site, shift) in enumerate(shifts.items()):
            for part_index, (part, count) in enumerate(counts.items()):
                for number in range(count):
                    case = f"{site}_{'case' if part == 'sites' else 'test'}_{number + 1:03d}"
                    rng = np.random.default_rng(np.random.SeedSequence([seed, site_index, part_index, number]))
                    image, labels = draw_phantom(rng, shape, shift)
                    write_volume(building / "imagesTr" / f"{case}.nii.gz", image)
                    write_volume(building / "labelsTr" / f"{case}.nii.gz", labels)
                    split[part][site].append(case)
                    rows.append({"case": case, "subject": case, "site": site, "source_dtype": "float32"})
        files.write_text(building / "dataset.json", _as_json(_description(rows, settings, shifts)))
        files.write_text(building / "split.json", _as_json(split))
        files.write_text(building / "manifest.csv", _as_csv(rows))
    return folder


def _draw_organs(rng: np.random.Generator, shape: _Shape) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Labels of the organ, and the mask of the neighbour that looks like it."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    warp = [_smooth_noise(rng, shape, 0.16) * 0.045 for _ in range(3)]
    tilt = rng.normal(0, 0.08, 2)
    x = x + warp[0] + rng.uniform(-0.15, 0.15) + tilt[0] * y
    y = y + warp[1] + rng.uniform(-0.08, 0.08)
    z = z + warp[2] + rng.uniform(-0.15, 0.15) + tilt[1] * y

    along = y / rng.uniform(0.66, 0.78)
    bend_x, bend_z = rng.uniform(0.10, 0.26), rng.uniform(-0.22, -0.08)
    thickness = rng.uniform(0.34, 0.42) * (1 - rng.uniform(0.25, 0.4) * (along + 1) / 2)
    radius = thickness * np.sqrt(np.clip(1 - along**2, 0, None))
    across = np.hypot((x - bend_x * (along**2 - 0.4)) / rng.uniform(0.95, 1.15), z - bend_z * (along**2 - 0.4))
    pieces, _ = ndimage.label(across < radius)
    organ = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1  # the warp may cut off a tip
    # The border between the parts is tilted and bulges, so that one axial cut does not give it away.
    border = rng.uniform(-0.15, 0.05) + rng.normal(0, 0.2) * x + rng.normal(0, 0.2) * z
    labels = np.where(organ, np.where(along < border, 1, 2), 0).astype(np.uint8)

    side = rng.choice([-1.0, 1.0])
    centre = np.array([side * rng.uniform(0.5, 0.62), rng.uniform(-0.6, 0.4), rng.uniform(0.1, 0.4)])
    size = rng.uniform([0.16, 0.22, 0.16], [0.26, 0.4, 0.26])
    distance = np.sqrt(sum(((v - c) / s) ** 2 for v, c, s in zip((x, y, z), centre, size, strict=True)))
    return labels, (distance < 1) & ~organ


def _draw_tissue(rng: np.random.Generator, labels: npt.NDArray[np.uint8], neighbour: npt.NDArray[np.bool_]) -> _Field:
    """Signal before the scanner, as a fraction of white matter's."""
    pattern = _smooth_noise(rng, labels.shape, 0.09)
    tissue = np.select([pattern < -0.9, pattern < 0.05], [_FLUID, _GREY], _WHITE)
    # A rim of white matter, with gaps where the organ touches grey tissue of its own intensity.
    organ = labels > 0
    gaps = _smooth_noise(rng, labels.shape, 0.12) > 0.8
    rim = ndimage.binary_dilation(organ | neighbour, iterations=2) & ~gaps
    tissue[rim] = _WHITE
    tissue[neighbour] = _NEIGHBOUR
    tissue[labels == 1] = _HEAD
    tissue[labels == 2] = _BODY
    texture = 0.035 * _smooth_noise(rng, labels.shape, 0.03) + 0.02 * rng.standard_normal(labels.shape)
    return np.clip(tissue + texture, 0.02, None)


def _scan(rng: np.random.Generator, tissue: _Field, shift: ScannerShift) -> npt.NDArray[np.float32]:
    signal = ndimage.gaussian_filter(tissue, shift.resolution) ** shift.contrast
    signal = signal * np.exp(shift.bias * _smooth_noise(rng, tissue.shape, 0.3))
    real, imaginary = shift.noise * rng.standard_normal((2, *tissue.shape))
    gain = 10 ** rng.uniform(2, 4)
    image: npt.NDArray[np.float32] = (gain * np.hypot(signal + real, imaginary)).astype(np.float32)
    return image


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> _Field:
    """Gaussian noise of mean 0 and deviation 1, smoothed over the fraction `scale` of each axis."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [scale * n for n in shape], mode="reflect", truncate=3)
    normalised: _Field = (field - field.mean()) / field.std()
    return normalised


def _halton(index: int, base: int) -> float:
    """The radical inverse of `index` in `base`, in (0, 1) (Halton 1960)."""
    value, weight = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * weight
        weight /= base
    return value


def _holds(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("phantoms") == settings


def _description(
    rows: list[dict[str, str]], settings: dict[str, Any], shifts: dict[str, ScannerShift]
) -> dict[str, Any]:
    return {
        "name": "Phantoms",
        "description": "Procedurally drawn: one bent organ in two parts, seen by the scanner of each site",
        "tensorImageSize": "3D",
        "modality": {"0": "phantom"},
        "labels": {str(value): name for value, name in enumerate(LABEL_NAMES)},
        "numTraining": len(rows),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{row['case']}.nii.gz", "label": f"./labelsTr/{row['case']}.nii.gz"} for row in rows
        ],
        "test": [],
        "phantoms": settings,
        "scanners": {site: asdict(shift) for site, shift in shifts.items()},
    }


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""A whole federation, and somebody who hears all that its sites say: weights, and nothing of an image."""

from pathlib import Path

import numpy as np
import pytest
from canaries import IN_DICOM, WORDS, Needles, files, find, outline, pixels, sign, words, write_dicom
from deployment import free_ports
from federation import PATIENCE_S, Federation, simulate
from wiretap import wiretap

from wardround.client.cases.dataset import load_dataset
from wardround.client.cases.nifti import read_image, read_labels, write_volume
from wardround.client.cases.volume import Volume
from wardround.server.journal import read_weights

IN_HEADERS = {"descrip", "aux_file", "intent_name", "db_name", "a header's extension"}


def bring_dicom(federation: Federation, folder: Path) -> Needles:
    """A case to be tested on, from DICOM, with its label; what is planted in both."""
    grid = np.indices((24, 24, 24)).sum(axis=0)
    noise = np.random.default_rng(1).integers(-1000, 1000, grid.shape)
    image = Volume((noise + 40 * grid).astype(np.float32), np.diag([1.0, 1.0, 1.5, 1.0]))
    labels = image.with_array((grid % 13 < 5).astype(np.uint8))
    needles = write_dicom(folder, image) | pixels(image) | outline(labels)
    write_volume(folder.with_suffix(".nii.gz"), labels)
    assert {f"{word} (as it is)" for word in IN_DICOM} <= find(needles, files(folder))
    site = next(iter(federation.sites))
    federation.site(site, "import", str(folder), "--test", "--label", str(folder.with_suffix(".nii.gz")))
    return {f"DICOM, {name}": needle for name, needle in needles.items()}


@pytest.mark.long
@pytest.mark.timeout(4 * PATIENCE_S)
def test_of_images_labels_and_headers_nothing_is_heard(tmp_path: Path) -> None:
    reference = simulate(tmp_path / "out", sites=2, rounds=2)
    assert set(WORDS) >= IN_HEADERS
    needles = {name: needle for name, needle in words().items() if name.rpartition(" (")[0] in IN_HEADERS}
    for case in load_dataset(reference.out / "data").cases.values():
        sign(case.image)
        assert case.label is not None
        planted = pixels(read_image(case.image)) | outline(read_labels(case.label))
        needles |= {f"{case.id}: {name}": needle for name, needle in planted.items()}
    assert {f"{word} (as it is)" for word in IN_HEADERS} <= find(needles, files(reference.out / "data"))
    public, runtime, dialled = free_ports(3)
    options = ["--name", "localhost", "--host", "127.0.0.1", "--url", f"https://localhost:{dialled}"]
    options += ["--port", str(public), "--runtime-port", str(runtime)]
    federation = Federation(tmp_path, reference, options)
    needles |= bring_dicom(federation, tmp_path / "pacs")
    with wiretap(federation.home, dialled, tmp_path / "tap") as tap:
        with federation.serving():
            federation.run("study")
        assert federation.weights("study", 2) == reference.weights(2)
        weights = read_weights(federation.home.run_folder("study"), 1)
        largest = max(weights.values(), key=lambda array: array.size)
        assert find({"weights": np.ascontiguousarray(largest).tobytes()}, tap.told) == {"weights"}
        assert sum(map(len, tap.sent)) > 4 * largest.nbytes
        assert find(needles, [*tap.sent, *tap.told]) == set()
    assert find(needles, files(federation.home.path)) == set()

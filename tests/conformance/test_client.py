"""MONAI Label's own client, unmodified and in an environment of its own, against a workbench over HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from played_studio import REACH, oblique, played_workbench
from workbench import password, workbench

from wardround.client.cases import nifti
from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label.desk import AUTOMATIC, POINTS, SCRIBBLES

DRIVER = Path(__file__).parent / "drive.py"
CLICK = (5, 4, 3)
ADMINISTRATOR = "adm"
pytestmark = pytest.mark.network


def drive(env: Path, url: str, image: Volume, folder: Path, **more: Any) -> dict[str, Any]:
    """Let the client do all that it can, and return what it said."""
    folder.mkdir()
    strokes = np.zeros(image.shape, dtype=np.uint8)
    strokes[2, 2:5, 4] = 1
    strokes[8, 2:5, 4] = 2
    strokes[9, 2:5, 4] = 3
    label = np.zeros(image.shape, dtype=np.uint8)
    label[3:6, 3:6, 3:6] = 1
    label[6:9, 3:6, 3:6] = 2
    for name, array in (("strokes", strokes), ("label", label), ("image", image.array)):
        nifti.write_volume(folder / f"{name}.nii.gz", image.with_array(array))
    ask = {
        "url": url,
        "folder": str(folder),
        "points model": POINTS,
        "scribbles model": SCRIBBLES,
        "automatic model": AUTOMATIC,
        "label": "anterior",
        "points": {"anterior": [list(CLICK)], "background": [[0, 0, 0]], "label": "anterior"},
        "scribbles": {
            "label_info": [
                {"name": "anterior", "id": 1},
                {"name": "background_scribbles", "id": 2},
                {"name": "foreground_scribbles", "id": 3},
            ],
            "selected_label_name": "posterior",
            # As 3D Slicer gives the corners of its box on an image whose i falls where x grows.
            "roi": [9, 1, 8, 1, 1, 6],
        },
        "scribbles file": str(folder / "strokes.nii.gz"),
        "image file": str(folder / "image.nii.gz"),
        # Numbered the other way round, as a viewer numbers its segments.
        "label info": [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}],
        "label file": str(folder / "label.nii.gz"),
        "administrator": ADMINISTRATOR,
        "administrator's password": password(ADMINISTRATOR),
        **more,
    }
    (folder / "ask.json").write_text(json.dumps(ask))
    done = subprocess.run(
        [sys.executable, "-S", str(DRIVER), str(folder / "ask.json")],
        env={**os.environ, "PYTHONPATH": str(env)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def check_protocol(said: dict[str, Any], image: Volume, folder: Path) -> None:
    """What holds of every server that speaks the protocol as we do."""
    assert said["enabled"] is True
    assert said["valid"] is True
    assert "401" in said["stranger"]
    assert "401" in said["wrong password"]

    info = said["info"]
    assert info["labels"] == ["anterior", "posterior"]
    assert {name: model["type"] for name, model in info["models"].items()} == {
        POINTS: "deepedit",
        SCRIBBLES: "scribbles",
        AUTOMATIC: "segmentation",
    }
    assert all(model["labels"] == {"anterior": 1, "posterior": 2} for model in info["models"].values())
    assert set(info["datastore"]) == {"total", "completed", "label_tags"}
    assert {"epoch", "total_epochs", "best_metric", "total_time"} <= info["train_stats"][POINTS].keys()

    sample = said["sample"]
    assert {"id", "weight", "path", "ts", "name", "checksum"} <= sample.keys()
    assert said["image without a token"] == said["image"]
    assert sample["path"] == ""
    assert said["image"] == [200, f'attachment; filename="{sample["name"]}"']
    assert nifti.read_image(folder / "image.nii.gz").same_grid(image)

    for name in ("points", "nothing drawn", "scribbles", "on the bench", "a file", "session points", "on the upload"):
        file, reply = said[name]
        assert {"label_names", "latencies", "centroids", "x_latency_ms", "x_progress"} <= reply.keys(), name
        assert {"pre", "infer", "invert", "post", "write", "total", "transform"} == reply["latencies"].keys()
        check_grid(Path(file), image)
    assert Path(said["points"][0]).suffix == ".nrrd"
    assert said["nothing drawn"][0].endswith(".nii.gz")
    assert mask_of(said["points"])[CLICK] == 1
    assert said["scribbles"][1]["label_names"] == {"posterior": 1}
    assert mask_of(said["scribbles"])[9, 3, 4] == 1
    assert mask_of(said["scribbles"])[8, 3, 4] == 0
    assert mask_of(said["on the bench"])[CLICK] == 1
    assert {"x_suggestion", "x_effort", "x_residual"} <= said["on the bench"][1].keys()

    for name in ("session", "session after JSON"):
        created = said[name]
        fields = {"name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry"}
        assert (
            created["session_info"].keys() == said[f"{name} again"].keys() == said[f"{name} removed"].keys() == fields
        )
        assert created["session_info"]["path"] == ""
        assert "404" in said[f"{name} gone"] or "no such session" in said[f"{name} gone"]

    assert said["uploaded"]["image"] not in ("", "Muster^Erika 1970-01-01")
    assert "Erika" not in json.dumps({name: value for name, value in said.items() if name != "saved"})

    assert said["saved"]["image"] == sample["id"]
    assert said["saved"]["x_state"] == "accepted"
    assert "final" in said["datastore"]["objects"][sample["x_id"]]["labels"]
    saved = nifti.read_labels(Path(said["label"]))
    assert saved.same_grid(image)
    assert (saved.array[4, 4, 4], saved.array[7, 4, 4], saved.array[0, 0, 0]) == (2, 1, 0)
    assert said["next sample"]["x_id"] != sample["x_id"]

    assert said["not running"] is False
    for name in ("train", "status", "stopped"):
        assert {"id", "status", "request", "start_ts", "details"} <= said[name].keys(), name
        assert said[name]["details"]
    assert said["train"]["status"] in ("SUBMITTED", "RUNNING", "DONE")

    assert [said["log"][0], said["log for others"]] == [200, 403]
    assert "/infer/{model}" in said["log"][1]
    assert not any(name in said["log"][1] for name in ("Erika", "user-xyz", sample["x_id"], said["uploaded"]["image"]))
    # The same label once more by its tag: it takes the place of the first, which was the same person's.
    assert said["saved again"]["x_state"] == "accepted"
    assert said["datastore at the end"]["objects"].keys() >= {sample["x_id"]}
    assert said["last sample"].get("x_id") not in (sample["x_id"], None)

    for name, status in (
        ("no such model", "404"),
        ("no such image", "404"),
        ("no such strategy", "404"),
        ("no points", "400"),
        ("no such label", "404"),
    ):
        assert status in said[name], said[name]
        assert '"error"' in said[name], said[name]
    assert said["nothing"][0] == 404


def check_grid(file: Path, image: Volume) -> None:
    """A mask lies where SimpleITK, which 3D Slicer reads with, finds the image."""
    mask = sitk.ReadImage(str(file))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == image.shape
    for index in ((0, 0, 0), tuple(side - 1 for side in image.shape), (image.shape[0] - 1, 0, 0)):
        expected = image.affine @ [*index, 1]
        assert np.abs(np.array(mask.TransformIndexToPhysicalPoint(index)) - expected[:3]).max() < 1e-3


def mask_of(answer: list[Any]) -> np.ndarray[Any, Any]:
    """The voxels of a mask, ``[i, j, k]``."""
    return sitk.GetArrayFromImage(sitk.ReadImage(answer[0])).transpose(2, 1, 0)


def test_the_client_against_a_played_studio(monai_label: Path, tmp_path: Path) -> None:
    """Every voxel that the client draws arrives where it was drawn."""
    image = oblique(0)
    with played_workbench(tmp_path / "site") as bench:
        said = drive(monai_label, bench.url, image, tmp_path / "client", user="ann", password=password("ann"))
        inferred = bench.studio.inferred
    check_protocol(said, image, tmp_path / "client")
    i, j, k = CLICK
    cube = np.zeros(image.shape, dtype=np.uint8)
    cube[i - REACH : i + REACH + 1, j - REACH : j + REACH + 1, k - REACH : k + REACH + 1] = 1
    background = cube.copy()
    background[: REACH + 1, : REACH + 1, : REACH + 1] = 0
    for name in ("points", "a file", "session points"):
        painted = mask_of(said[name])
        assert np.array_equal(painted[REACH + 1 :], cube[REACH + 1 :]), name
    region = next(extent for _, extent in inferred if extent is not None)
    assert (region.lower, region.upper) == ((1, 1, 1), (9, 8, 6))


def test_the_client_against_the_real_studio(monai_label: Path, tmp_path: Path) -> None:
    """The same session on a model that learns."""
    with workbench(tmp_path / "site") as bench:
        image = bench.store.image("case-0")
        said = drive(monai_label, bench.url, image, tmp_path / "client", user="ann", password=password("ann"))
        assert bench.store.counting(review=False)["case-0"] == "ann"
    check_protocol(said, image, tmp_path / "client")

"""A bundle runs where nothing of ours is installed, and predicts as we do."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from wardround.client.learning.inference import normalise, predict
from wardround.errors import PlanError, StorageError, UsageError
from wardround.models.bundle import Origin, _inference, write_bundle
from wardround.models.catalogue import architecture, build
from wardround.models.weights import OPERATORS, weights_of

MODELS = ["unet3d-small", "unet3d-small-attention", "unet2d-small", "unet2d-small-attention"]
MODEL, LABELS = MODELS[0], ["anterior", "posterior"]
ORIGIN = Origin("first", 7, "ab" * 32)
SHAPES = {"whole": (19, 27, 14), "tiny": (5, 6, 7), "long": (20, 18, 150)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("bundles") / "hippocampus")


def written(folder: Path, model: str = MODEL) -> Path:
    write_bundle(folder, model, LABELS, weights_of(build(model, 3, seed=5)), ORIGIN)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    affine = np.array([[-0.8, 0.1, 0, 12], [0.1, 0.9, 0, -30], [0, 0, 2.5, 4], [0, 0, 0, 1]])
    for name, shape in SHAPES.items():
        nib.save(nib.Nifti1Image(rng.normal(300, 90, shape).astype(np.float32), affine), folder / f"{name}.nii.gz")
    return folder


def ours(image: Path, model: str = MODEL) -> np.ndarray:
    array, spec = normalise(np.asarray(nib.load(image).dataobj)), architecture(model)
    network = build(model, 3, seed=5)
    return predict(network, array, stride=spec.stride, device=torch.device("cpu"), dimensions=spec.dimensions)


@pytest.mark.parametrize(
    "model", [MODEL, MODELS[3], *(pytest.param(model, marks=pytest.mark.long) for model in MODELS[1:3])]
)
def test_it_is_run_by_monai_and_says_what_we_say(model: str, images: Path, tmp_path: Path) -> None:
    bundle = written(tmp_path / "bundle", model)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json"]
    command += [
        "--bundle_root",
        ".",
        "--dataset_dir",
        str(images),
        "--output_dir",
        str(tmp_path / "labels"),
        "--device",
        "cpu",
    ]
    ran = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in SHAPES:
        label = nib.load(tmp_path / "labels" / f"{name}_label.nii.gz")
        image = nib.load(images / f"{name}.nii.gz")
        assert np.allclose(label.affine, image.affine)
        probabilities = ours(images / f"{name}.nii.gz", model)
        # Where two classes are equally likely, the last bit decides.
        ordered = np.sort(probabilities, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-4
        assert clear.mean() > 0.99
        assert np.array_equal(np.asarray(label.dataobj)[clear], probabilities.argmax(axis=0)[clear])


@pytest.mark.parametrize("model", MODELS[:3])
def test_its_probabilities_are_ours(model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = written(tmp_path / "bundle", model)
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(bundle)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(images), "device": "cpu"})
    parser.get_parsed_content("initialize")
    try:
        network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
        for item in parser.get_parsed_content("dataset"):
            found = torch.softmax(inferer(item["image"][None], network)[0], dim=0).numpy()
            name = Path(item["image"].meta["filename_or_obj"])
            assert np.abs(found - ours(name, model)).max() < 1e-4
    finally:
        parser.get_parsed_content("finalize")


def test_it_says_where_it_comes_from_and_holds_no_pickle(bundle: Path) -> None:
    about = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert about["wardround"] | {"version": ""} == {
        "version": "",
        "model": MODEL,
        "run": "first",
        "round": 7,
        "weights-sha256": "ab" * 32,
    }
    assert about["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "anterior",
        "2": "posterior",
    }
    torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert "first" in (bundle / "docs" / "README.md").read_text()
    assert not any("import wardround" in file.read_text() for file in (bundle / "scripts").glob("*.py"))


def test_what_cannot_become_a_bundle_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    weights = weights_of(build(MODEL, 3, seed=5))
    with pytest.raises(PlanError, match="do not fit"):
        write_bundle(tmp_path / "a", MODEL, ["one"], weights, ORIGIN)
    with pytest.raises(UsageError, match="unet4d"):
        write_bundle(tmp_path / "b", "unet4d", ["one"], weights, ORIGIN)
    with pytest.raises(StorageError):
        write_bundle(bundle, MODEL, LABELS, weights, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_what_travels_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    weights = weights_of(build(MODEL, 3, seed=5))
    write_bundle(tmp_path / "bundle", MODEL, LABELS, weights | {OPERATORS: np.zeros((3, 3), np.float32)}, ORIGIN)
    assert set(torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)) == set(weights)


def test_a_network_whose_normalisation_learns_is_described_with_it() -> None:
    described = _inference("unet2d-small-affine", 3)["network_def"]
    network = UNet(**{name: value for name, value in described.items() if name != "_target_"})
    network.load_state_dict(build("unet2d-small-affine", 3, seed=0).state_dict())
    assert any(name.endswith("adn.N.weight") for name in network.state_dict())

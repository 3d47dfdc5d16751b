"""A network as a MONAI Bundle: a folder that `python -m monai.bundle run` runs, without anything of ours installed.

::

    BUNDLE/
        configs/metadata.json     what the network expects and gives
        configs/inference.json    from a folder of images to a folder of labels
        models/model.pt           the weights, as tensors only
        scripts/windows.py        a copy of :mod:`wardround.models.windows`
        scripts/attention.py      a copy of :mod:`wardround.models.attention`
        docs/README.md, LICENSE
"""

import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wardround.files import new_folder
from wardround.models import attention, windows
from wardround.models.catalogue import architecture, build
from wardround.models.weights import load_weights

_LICENSE = """\
The code in this bundle is part of Wardround and under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). Whose data the weights were learnt from decides who may use them; ask the
hospitals of the federation before you pass them on.
"""

_README = """\
# {name}

A segmentation network that hospitals learnt together, exported by Wardround {version}.

* network: `{model}`, {classes} classes: {labels}
* weights: SHA-256 `{digest}`{origin}
* input: one 3D image; output: a label map on the same grid

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --dataset_dir IMAGES --output_dir LABELS

`IMAGES` holds NIfTI files (`*.nii.gz`, `*.nii`). Start it in this folder; it needs `monai`, `nibabel` and `torch`.
`--device cpu` keeps it off a GPU.

For research use. It is not a medical device, and nobody has validated it for any clinical purpose.
"""


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Parameters
    ----------
    run
        Of the federation; empty for none.
    round
        After which the weights are.
    digest
        SHA-256 of the weights.
    """

    run: str
    round: int
    digest: str


def write_bundle(
    folder: Path, model: str, labels: Sequence[str], weights: Mapping[str, npt.NDArray[Any]], origin: Origin
) -> None:
    """Write a bundle; `folder` must not be there yet, and appears as a whole.

    Parameters
    ----------
    folder
        Its name is the bundle's.
    model
        A network of the catalogue; one of two axes labels an image slice by slice.
    labels
        Names of labels 1, 2, …
    weights
        Of that network with one class more than labels.
    origin
        Goes into the metadata.

    Raises
    ------
    UsageError
        If the network is not in the catalogue.
    PlanError
        If the weights are not that network's.
    StorageError
        If the folder is there, or cannot be written.
    """
    network = build(model, len(labels) + 1, seed=0)
    load_weights(network, weights)
    text = _README.format(
        name=folder.name,
        version=version("wardround"),
        model=model,
        classes=len(labels) + 1,
        labels=", ".join(["background", *labels]),
        digest=origin.digest,
        origin=f", after round {origin.round} of run `{origin.run}`" if origin.run else "",
    )
    with new_folder(folder) as new:
        for part in ("configs", "models", "scripts", "docs"):
            (new / part).mkdir()
        _write_json(new / "configs" / "metadata.json", _metadata(folder.name, model, labels, origin))
        _write_json(new / "configs" / "inference.json", _inference(model, len(labels) + 1))
        torch.save(network.state_dict(), new / "models" / "model.pt")
        (new / "scripts" / "__init__.py").write_text("", encoding="utf-8")
        for script in (windows, attention):
            (new / "scripts" / f"{script.__name__.rpartition('.')[2]}.py").write_text(
                inspect.getsource(script), encoding="utf-8"
            )
        (new / "docs" / "README.md").write_text(text, encoding="utf-8")
        (new / "LICENSE").write_text(_LICENSE, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _metadata(name: str, model: str, labels: Sequence[str], origin: Origin) -> dict[str, Any]:
    stride = architecture(model).stride
    channels = {str(n): label for n, label in enumerate(["background", *labels])}
    shape = [f"{stride}*n"] * architecture(model).dimensions
    return {
        "schema": (
            "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
        ),
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported on {datetime.now(UTC):%Y-%m-%d}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": version("nibabel")},
        "python_version": platform.python_version(),
        "name": name,
        "task": "segmentation",
        "description": f"Labels {', '.join(labels)} in 3D images; learnt by hospitals that kept their images",
        "authors": "the federation",
        "copyright": "of the federation",
        "wardround": {
            "version": version("wardround"),
            "model": model,
            "run": origin.run,
            "round": origin.round,
            "weights-sha256": origin.digest,
        },
        "intended_use": "For research use. It is not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "any",
                    "num_channels": 1,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(labels) + 1,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": channels,
                }
            },
        },
    }


def _inference(model: str, classes: int) -> dict[str, Any]:
    spec = architecture(model)
    network, imports = "@network_def", ["$import glob", "$import os", "$import torch", "$import scripts.windows"]
    if spec.attention is not None:
        place = f"{spec.attention}, {spec.dimensions}, {spec.channels[spec.attention]}"
        network = f"attend_after(@network_def, {place})"
        imports.append("$from scripts.attention import attend_after")
    return {
        "imports": imports,
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii')) + "
        "glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": spec.dimensions,
            "in_channels": 1,
            "out_channels": classes,
            "channels": list(spec.channels),
            "strides": [2] * (len(spec.channels) - 1),
            "num_res_units": spec.residual_units,
            "norm": ["instance", {"affine": True}] if spec.affine else "instance",
        },
        "network": f"${network}.to(@device)",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
                {"_target_": "EnsureTyped", "keys": "image", "device": "@device", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @images]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "scripts.windows.FittingInferer", "stride": spec.stride, "dimensions": spec.dimensions},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "label",
                    "output_dtype": "$torch.uint8",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "initialize": ["$torch.set_grad_enabled(False)", "$@network.load_state_dict(@weights)", "$@network.eval()"],
        "run": ["$[@postprocessing({**i, 'pred': @inferer(i['image'][None], @network)[0]}) for i in @dataset]"],
        "finalize": ["$torch.set_grad_enabled(True)"],
    }

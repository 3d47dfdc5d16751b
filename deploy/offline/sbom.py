"""A software bill of materials in CycloneDX 1.6, from the wheels themselves. The same wheels give the same bytes."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from wardround import __version__
from wardround.deploy.offline.wheels import Wheel

ROOT = "wardround"


def bill_of_materials(wheels: Sequence[Wheel]) -> str:
    """JSON that names every wheel with version, hash, licence, and what needs what."""
    references = {wheel.name: f"pkg:pypi/{wheel.name}@{wheel.version}" for wheel in wheels}
    main = next((wheel for wheel in wheels if wheel.name == ROOT), None)
    body: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "wardround-offline", "version": __version__}]},
        },
        "components": [_component(wheel, references) for wheel in wheels if wheel is not main],
        "dependencies": [
            {
                "ref": references[wheel.name],
                "dependsOn": [references[name] for name in wheel.requires if name in references and name != wheel.name],
            }
            for wheel in wheels
        ],
    }
    if main is not None:
        body["metadata"]["component"] = {**_component(main, references), "type": "application"}
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))}"
    return json.dumps(body, indent=2) + "\n"


def _component(wheel: Wheel, references: dict[str, str]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": references[wheel.name],
        "name": wheel.name,
        "version": wheel.version,
        "purl": references[wheel.name],
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    if wheel.licence:
        named = {"expression": wheel.licence} if wheel.is_expression else {"license": {"name": wheel.licence}}
        component["licenses"] = [named]
    return component

"""How Flower's processes are told to keep quiet, and to look elsewhere.

Flower reads its environment once, when it is imported, and unless told otherwise it sends usage data to its makers,
asks them for updates, and installs what an app wishes for. Whoever starts one of its processes, or becomes one, does it
with this environment.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

NOWHERE = "https://127.0.0.1:9"
"""Where Flower finds its makers' services: the port of this machine at which nobody answers."""


def environment(folder: Path, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a Flower process that lives in `folder`.

    Parameters
    ----------
    folder
        For unpacked apps and the like.
    inherited
        What it is built on, ours if None. Nothing that begins with ``FLWR_`` is taken over from it.
    """
    kept = {
        name: value
        for name, value in (os.environ if inherited is None else inherited).items()
        if not name.startswith("FLWR_")
    }
    return {
        **kept,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPERGRID_API_URL": NOWHERE,
        # Flower starts its own commands by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
    }


def become_quiet(folder: Path) -> None:
    """Give this process that environment. Call it before Flower is imported."""
    wanted = environment(folder)
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that speaks to this machine only: no proxy is to see that."""
    return {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}


def replace(module: ModuleType, name: str, new: Any) -> Any:
    """Put `new` where `module` looks for `name` when it runs, and return what stood there.

    Every name that is replaced stands in `tests/contract/test_flower.py`, which says so when Flower looks elsewhere.
    """
    former = getattr(module, name)
    setattr(module, name, new)
    return former

"""How the ClientApp finds its site, without importing anything heavy.

In a simulation the sites live in this process and are attached by name. Where Flower starts a fresh process instead,
the site is opened from its folder.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context

from wardround.errors import UsageError
from wardround.strategies.contract import Update, Weights
from wardround.strategies.plan import RoundPlan


class SiteLike(Protocol):
    """What the ClientApp needs of a site."""

    def train(self, plan: RoundPlan, weights: Weights) -> Update:
        """Learn for one round."""

    def evaluate(self, plan: RoundPlan, weights: Weights) -> dict[str, float | list[float]]:
        """Score weights on held-back cases."""

    def status(self) -> dict[str, float]:
        """Counts that a coordinator may know."""


_SITES: dict[str, SiteLike] = {}


def attach(name: str, site: SiteLike) -> None:
    """Let messages for the node with ``node_config["site"] == name`` reach `site`, in this process."""
    _SITES[name] = site


def detach_all() -> None:
    """Forget every attached site."""
    _SITES.clear()


def open_site(context: Context) -> SiteLike:
    """The site that `context` speaks for.

    Looked up as ``node_config["site"]`` among the attached ones; else opened from ``node_config["site-folder"]``; else
    from the list of folders in the JSON file ``run_config["sites-file"]`` at ``node_config["partition-id"]``. An opened
    site stays attached, so that a long-lived worker opens it once.

    Raises
    ------
    UsageError
        If the context names no site.
    """
    name = str(context.node_config.get("site", ""))
    if name in _SITES:
        return _SITES[name]
    folder = str(context.node_config.get("site-folder", ""))
    if not folder and "sites-file" in context.run_config and "partition-id" in context.node_config:
        folders: list[str] = json.loads(Path(str(context.run_config["sites-file"])).read_text())
        folder = folders[int(context.node_config["partition-id"])]
    if not folder:
        raise UsageError(
            "this node has no site", "its configuration names neither an attached site nor a folder", "set site-folder"
        )
    if folder not in _SITES:
        _SITES[folder] = _open(Path(folder))
    return _SITES[folder]


def _open(folder: Path) -> SiteLike:
    # Imported here: this pulls in torch, which the courier of a deployed site never needs.
    from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
    from wardround.client.cases.dataset import load_dataset
    from wardround.client.cases.nifti import read_labels
    from wardround.client.site import Site

    settings: dict[str, Any] = json.loads((folder / "site.json").read_text())
    annotator = None
    if "dataset" in settings:
        cases = load_dataset(Path(settings["dataset"])).cases

        def truth(case_id: str) -> Truth:
            path = cases[case_id].label
            assert path is not None
            return Truth(read_labels(path))

        annotator = SimulatedAnnotator(truth)
    return Site.open(folder, annotator, device=settings.get("device", "auto"))

"""How the ClientApp finds its site, without importing anything heavy.

Whoever owns sites in this process (a simulation, a worker of Flower's engine) attaches them by name; a node says whose
messages it carries.
"""

from typing import Protocol

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
    """The site that `context` speaks for: the one attached under ``node_config["site"]``.

    Raises
    ------
    UsageError
        If the context names no attached site.
    """
    name = str(context.node_config.get("site", ""))
    try:
        return _SITES[name]
    except KeyError:
        raise UsageError(
            "this node has no site", "its configuration names none that is attached in this process", "attach it first"
        ) from None

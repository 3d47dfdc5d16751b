"""The Flower ServerApp: settings of the run in, round loop, journal out.

Run configuration (``[tool.flwr.app.config]``): every field of :class:`wardround.strategies.plan.RoundPlan`, its name
with dashes, besides

==================== ================================================================================================
``output``           folder of the journal; a run that finds one there goes on with it
``strategy``         name in :mod:`wardround.strategies.catalogue`, ``fedavg`` if absent
``strategy-options`` a table of its options
``quorum``           sites that a round needs, 1 if absent
``evaluate-every``   rounds between evaluations; 0, if absent, means only after the last
==================== ================================================================================================

Anything that starts with ``site-`` is left for the sites.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError, WardroundError
from wardround.server.journal import Journal
from wardround.server.rounds import Event, LoopSettings, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan, plan_from_flat

logger = logging.getLogger(__name__)

_OPTION = "strategy-options."

app = ServerApp()


@dataclass(frozen=True)
class RunSettings:
    """A run configuration, read.

    Parameters
    ----------
    plan
        Of round 1; the others differ in their number only.
    loop
        How the rounds run.
    strategy
        Fresh.
    output
        Folder of the journal.
    """

    plan: RoundPlan
    loop: LoopSettings
    strategy: Strategy
    output: Path

    def plan_of(self, number: int) -> RoundPlan:
        """The plan of one round."""
        return self.plan.model_copy(update={"round": number})


def read_settings(config: Mapping[str, object]) -> RunSettings:
    """Read a run configuration.

    Raises
    ------
    PlanError, UsageError
        If a value is missing, unknown or cannot work; the message names it.
    """
    plan: dict[str, object] = {"run": "run", "seed": 0}
    loop: dict[str, object] = {"strategy": "fedavg", "output": "", "quorum": 1, "evaluate-every": 0}
    options: dict[str, object] = {}
    for name, value in config.items():
        if name.startswith(_OPTION):
            options[name.removeprefix(_OPTION).replace("-", "_")] = value
        elif name in loop:
            if type(value) is not type(loop[name]):
                raise PlanError(f"{name} cannot be used", f"it is {value!r}", f"give {type(loop[name]).__name__}")
            loop[name] = value
        elif not name.startswith("site-"):
            plan[name] = value
    if "round" in plan:
        raise PlanError("round cannot be set", "the loop counts the rounds itself", "remove it, and set rounds")
    if not loop["output"]:
        raise PlanError("the run has no folder for its journal", "output is not set", "set output to a folder")
    first = plan_from_flat({**plan, "round": 1})
    return RunSettings(
        first,
        LoopSettings(
            rounds=first.rounds,
            quorum=_whole(loop["quorum"]),
            deadline_s=first.deadline_s,
            evaluate_every=_whole(loop["evaluate-every"]),
        ),
        make_strategy(str(loop["strategy"]), **options),  # type: ignore[arg-type]  # make_strategy checks them
        Path(str(loop["output"])),
    )


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def initial_weights(plan: RoundPlan) -> Weights:
    """The weights before the first round: the catalogue's network, drawn from the plan's seed."""
    # Imported here: torch takes seconds, and a run configuration that cannot work is refused before.
    from wardround.models.catalogue import build
    from wardround.models.weights import weights_of

    return weights_of(build(plan.model, plan.labels, plan.seed))


def site_names(grid: Grid) -> dict[int, str]:
    """Names of the nodes that are online, by node id; a node without a name is called by its id."""
    return {node.node_id: node.name or str(node.node_id) for node in grid.get_nodes()}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes."""
    try:
        settings = read_settings(context.run_config)
        names: dict[int, str] = {}

        def name(node: int) -> str:
            if node not in names:
                names.update(site_names(grid))
            return names.get(node, str(node))

        with Journal(settings.output) as journal:
            run_rounds(
                grid,
                settings.strategy,
                settings.plan_of,
                initial_weights(settings.plan),
                journal,
                settings.loop,
                site_name=name,
                on_event=_log,
            )
    except WardroundError as error:
        logger.error("%s", error)
        raise


def _log(event: Event) -> None:
    if event.kind == "round-end":
        counts = ", ".join(f"{event.metrics[name]:.0f} {name}" for name in ("sites", "refused", "missing"))
        logger.info("round %d of %d closed: %s", event.round, event.rounds, counts)

"""The Flower ServerApp: settings of the run in, round loop, journal out.

Run configuration (``[tool.flwr.app.config]``): every field of :class:`wardround.strategies.plan.RoundPlan`, its name
with dashes, besides

====================== ==============================================================================================
``output``             folder of the journal; a run that finds one there goes on with it
``strategy``           name in :mod:`wardround.strategies.catalogue`, ``fedavg`` if absent; what it asks of the sites
                       are fields of the plan, where the configuration does not say otherwise
``strategy-options``   a table of its options
``weighting``          how much each site counts: a rule of :mod:`wardround.strategies.weighting`; ``examples`` if
                       absent
``weighting-options``  a table of its options
``quorum``             sites that a round needs, 1 if absent
``evaluate-every``     rounds between evaluations; 0, if absent, means only after the last
``late``               ``refuse``, if absent: a reply that comes after its round was closed is not looked for, and its
                       site is asked anew. ``use``: the site is left alone until it answers, and its update counts in
                       the round that is then open, τ rounds late, with its examples times (1 + τ)⁻ᵃ; fedmedian,
                       fedtrimmedavg and krum do not look at examples: there it counts as much as any other; dpfedavg,
                       scaffold and fednova take none, and fedbuff always uses them
``staleness-exponent`` *a* (Xie et al. 2019, FedAsync, polynomial staleness), 0.5 if absent
``max-staleness``      τ up to which a late reply is waited for, 8 if absent; fedbuff has both as options of its own
``quarantine-after``   refused replies in a row that put a site in quarantine, 3 if absent; 0 for never
``quarantine-rounds``  rounds that it then sits out, 2 if absent; it comes back on probation: the next refused reply
                       counts at once
``retries``            how often a round is tried again for which too few sites were there or answered, 3 if absent
``retry-wait-s``       seconds between two attempts, 30 if absent
``exchange-s``         seconds to wait in each of the short exchanges of secure aggregation, 300 if absent
``keep-rounds``        last rounds whose weights stay on disk, to go back to, 5 if absent
====================== ==============================================================================================

Quorum, deadline and everything from ``late`` on may differ where a run is resumed. Anything that starts with ``site-``
is left for the sites.

A run that ``wardround coordinator`` started has one setting only, ``run-folder``. All others are in ``request.json`` in
that folder, under ``settings``; the folder is the journal's as well. An error that ends such a run is written into
``error.json`` beside it: a run without that file ended by a fault, and may be started again.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError, WardroundError
from wardround.files import write_text
from wardround.server.buffered import check_unopposed
from wardround.server.grids import ParcelGrid
from wardround.server.journal import Journal
from wardround.server.rounds import Event, LoopSettings, run_rounds
from wardround.strategies.buffered import FedBuff
from wardround.strategies.catalogue import make_strategy, plan_fields
from wardround.strategies.central_privacy import check_central
from wardround.strategies.contract import Weights
from wardround.strategies.fit import check_asked
from wardround.strategies.local_keys import staying
from wardround.strategies.plan import RoundPlan, plan_from_flat
from wardround.strategies.secure.fit import check_summable
from wardround.strategies.weighting import Weighting, check_weighable, make_weighting

logger = logging.getLogger(__name__)

RUN_FOLDER = "run-folder"
REQUEST = "request.json"
ERROR = "error.json"

_OPTION, _WEIGHTING_OPTION = "strategy-options.", "weighting-options."
_DEFAULTS: Mapping[str, str | int | float] = {
    "strategy": "fedavg",
    "weighting": "examples",
    "output": "",
    "quorum": 1,
    "evaluate-every": 0,
    "late": "refuse",
    "staleness-exponent": 0.5,
    "max-staleness": 8,
    "quarantine-after": 3,
    "quarantine-rounds": 2,
    "retries": 3,
    "retry-wait-s": 30.0,
    "exchange-s": 300.0,
    "keep-rounds": 5,
}

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
    weighting
        How much each site counts.
    output
        Folder of the journal.
    keep
        Last rounds whose weights are kept.
    """

    plan: RoundPlan
    loop: LoopSettings
    strategy: Strategy
    weighting: Weighting
    output: Path
    keep: int

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
    loop: dict[str, Any] = dict(_DEFAULTS)
    options: dict[str, object] = {}
    weighting_options: dict[str, object] = {}
    for name, value in config.items():
        if name.startswith(_OPTION):
            options[name.removeprefix(_OPTION).replace("-", "_")] = value
        elif name.startswith(_WEIGHTING_OPTION):
            weighting_options[name.removeprefix(_WEIGHTING_OPTION).replace("-", "_")] = value
        elif name in loop:
            loop[name] = _of_type(name, value, type(_DEFAULTS[name]))
        elif name != RUN_FOLDER and not name.startswith("site-"):
            plan[name] = value
    if "round" in plan:
        raise PlanError("round cannot be set", "the loop counts the rounds itself", "remove it, and set rounds")
    if not loop["output"]:
        raise PlanError("the run has no folder for its journal", "output is not set", "set output to a folder")
    if loop["keep-rounds"] < 1:
        raise PlanError("keep-rounds cannot be used", "it is below 1", "keep the weights of one round at least")
    asked = plan_fields(loop["strategy"], **options)  # type: ignore[arg-type]  # it checks them
    first = plan_from_flat({**{name.replace("_", "-"): value for name, value in asked.items()}, **plan, "round": 1})
    strategy = make_strategy(loop["strategy"], **options)  # type: ignore[arg-type]  # make_strategy checks them
    weighting = make_weighting(loop["weighting"], **weighting_options)
    check_weighable(strategy, weighting, first)
    check_asked(strategy, first, loop["late"])
    if isinstance(strategy, FedBuff):
        check_unopposed(strategy, {name: loop[name] for name in config.keys() & loop.keys()})
    check_central(strategy, plain=weighting.plain, late=loop["late"], secure=first.secure)
    check_summable(first, strategy, weighting, loop["late"])
    return RunSettings(
        first,
        LoopSettings(
            rounds=first.rounds,
            quorum=loop["quorum"],
            deadline_s=first.deadline_s,
            evaluate_every=loop["evaluate-every"],
            late=loop["late"],
            staleness_exponent=loop["staleness-exponent"],
            max_staleness=loop["max-staleness"],
            quarantine_after=loop["quarantine-after"],
            quarantine_rounds=loop["quarantine-rounds"],
            retries=loop["retries"],
            retry_wait_s=loop["retry-wait-s"],
            exchange_s=loop["exchange-s"],
        ),
        strategy,
        weighting,
        Path(loop["output"]),
        loop["keep-rounds"],
    )


def _of_type(name: str, value: object, kind: type) -> object:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise PlanError(f"{name} cannot be used", f"it is {value!r}", f"give {kind.__name__}")
    return value


def read_request(folder: Path) -> dict[str, object]:
    """The run configuration that lies in the folder of a run.

    Raises
    ------
    PlanError
        If it cannot be read.
    """
    path = folder / REQUEST
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if not isinstance(settings, dict):
            raise TypeError("settings is no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"{path} cannot be used", f"it is missing or damaged ({type(error).__name__})", "start the run anew"
        ) from error
    return {**settings, "output": str(folder)}


def is_wanted(folder: Path) -> bool:
    """Whether the operator still wants the run in `folder`. A request that cannot be read now is no reason to stop."""
    try:
        return bool(json.loads((folder / REQUEST).read_text(encoding="utf-8"))["wanted"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def initial_weights(plan: RoundPlan) -> Weights:
    """The weights before the first round: the catalogue's network, drawn from the plan's seed.

    Arrays that stay at the sites are not among them; operators of sites' generators are, where these are shared, and
    control variates and the number of steps, where the plan has any.

    Raises
    ------
    PlanError
        If the plan's local keys do not fit the network.
    """
    # Imported here: torch takes seconds, and a run configuration that cannot work is refused before.
    from wardround.models.travelling import travelling

    return travelling(
        plan.model,
        plan.labels,
        plan.seed,
        operators=plan.share_knobs,
        control=plan.control_variates,
        steps=plan.normalised_steps > 0,
        staying=lambda names: staying(names, plan.local_keys),
    )


def site_names(grid: Grid) -> dict[int, str]:
    """Names of the nodes that are online, by node id; a node without a name is called by its id."""
    return {node.node_id: node.name or str(node.node_id) for node in grid.get_nodes()}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration describes."""
    folder = str(context.run_config.get(RUN_FOLDER, ""))
    with _telling(Path(folder) if folder else None):
        settings = read_settings(read_request(Path(folder)) if folder else context.run_config)
        names: dict[int, str] = {}

        def name(node: int) -> str:
            if node not in names:
                names.update(site_names(grid))
            return names.get(node, str(node))

        with Journal(settings.output, settings.keep) as journal:
            run_rounds(
                ParcelGrid(grid),
                settings.strategy,
                settings.plan_of,
                initial_weights(settings.plan),
                journal,
                settings.loop,
                site_name=name,
                on_event=_log,
                stop=lambda: bool(folder) and not is_wanted(Path(folder)),
                weighting=settings.weighting,
            )


@contextmanager
def _telling(folder: Path | None) -> Iterator[None]:
    """Log an error of ours, and leave it in the folder of the run for whoever looks after it."""
    if folder is not None:
        (folder / ERROR).unlink(missing_ok=True)
    try:
        yield
    except WardroundError as error:
        logger.error("%s", error)
        if folder is not None:
            about = {
                "error": type(error).__name__,
                "exit-code": error.exit_code,
                "problem": error.problem,
                "cause": error.cause,
                "fix": error.fix,
            }
            write_text(folder / ERROR, json.dumps(about))
        raise


def _log(event: Event) -> None:
    if event.kind == "round-end":
        counts = ", ".join(f"{event.metrics[name]:.0f} {name}" for name in ("sites", "refused", "missing"))
        logger.info("round %d of %d closed: %s", event.round, event.rounds, counts)

"""The same run on Flower's simulation engine: virtual nodes in Ray workers, on one machine or a cluster.

Workers are processes that come and go, and serve any site. A worker therefore opens a site from its folder when a
message for it arrives; what the site knows lies on disk, so that it does not matter which worker is next.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from wardround.client import door
from wardround.client.app import app
from wardround.deploy.progress import Progress
from wardround.errors import RoundError, UsageError
from wardround.server.exchange import Pace, wait_for_sites

if TYPE_CHECKING:
    from wardround.deploy.simulation import Arm

_WHO = "query.who"

# Seconds that Ray and its workers may take to start, imports included.
_START_S = 600.0


def require_ray() -> None:
    """Check that Ray is there.

    Raises
    ------
    UsageError
        If it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "the engine 'ray' is not installed", "Ray is an extra of Wardround", "pip install 'wardround[ray]'"
        )


def run_on_ray(
    arm: "Arm", *, listen: Callable[[Progress], None] | None = None, stop: Callable[[], bool] = lambda: False
) -> float:
    """Run one arm on Flower's simulation engine. Progress is told by round; a stop takes effect between replies.

    Returns
    -------
    float
        Seconds that evaluation took.

    Raises
    ------
    UsageError
        If Ray is not installed.
    WardroundError
        As :func:`wardround.deploy.simulation.run_arm`.
    """
    require_ray()
    # Nothing calls home: Ray would send usage statistics unless told not to before it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Imported here: Flower loads its engine, and warns that the next version will start it from its own command line.
    from flwr.simulation import run_simulation

    from wardround.deploy.simulation import run_loop

    server = ServerApp()
    raised: list[BaseException] = []
    evaluation: list[float] = []

    def heard(progress: Progress) -> None:
        if progress.phase == "evaluate":
            evaluation.append(time.monotonic())
        if listen is not None:
            listen(progress)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            run_loop(arm, grid, site_names(grid, arm.sites, stop).__getitem__, listen=heard, stop=stop)
        except BaseException as error:  # noqa: BLE001 - raised again below; Flower's thread would only log it
            raised.append(error)

    run_simulation(
        server,
        Courier(str(arm.folder)),
        num_supernodes=len(arm.sites),
        backend_config={
            "init_args": {"logging_level": "ERROR", "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": _gpu_share(arm)},
        },
    )
    if raised:
        raise raised[0]
    return evaluation[-1] - evaluation[0] if evaluation else 0.0


class Courier(ClientApp):
    """Wardround's ClientApp for a worker that may have to speak for any site of one run."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer for the site of the virtual node, opening it if this worker meets it for the first time."""
        from wardround.deploy.simulation import Arm, open_site

        arm = Arm.read(Path(self._folder))
        name = arm.sites[int(context.node_config["partition-id"])]
        if message.metadata.message_type == _WHO:
            return Message(RecordDict({"who": ConfigRecord({"site": name})}), reply_to=message)
        context.node_config["site"] = name
        if (self._folder, name) not in _OPENED:
            _OPENED.add((self._folder, name))
            door.attach(name, open_site(arm, name))
        return app(message, context)


# What this worker process has attached.
_OPENED: set[tuple[str, str]] = set()


def site_names(grid: Grid, sites: Iterable[str], stop: Callable[[], bool]) -> dict[int, str]:
    """Wait for all nodes and ask each which site it speaks for: Flower draws node ids at random.

    Raises
    ------
    RoundError
        If the nodes do not speak for these sites.
    """
    wanted = sorted(sites)
    nodes = wait_for_sites(grid, len(wanted), _START_S, str, Pace(), stop)
    questions = [Message(RecordDict(), node, _WHO) for node in nodes]
    names = {
        reply.metadata.src_node_id: str(reply.content.config_records["who"]["site"])
        for reply in grid.send_and_receive(questions, timeout=_START_S)
        if reply.has_content()
    }
    if sorted(names.values()) != wanted:
        raise RoundError("not every site has a node", "the simulation engine lost some", "see the run's log")
    return names


def _gpu_share(arm: "Arm") -> float:
    """An even share of one GPU for each site, where there is one and it is wanted."""
    import torch

    if arm.device == "cpu":
        return 0.0
    return 1.0 / len(arm.sites) if torch.cuda.is_available() else 0.0

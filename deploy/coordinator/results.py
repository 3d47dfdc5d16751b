"""What is made of a run that is over: weights to take away, and the way back to a former round."""

import datetime
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from wardround import __version__
from wardround.deploy.coordinator.follow import mean_dice
from wardround.deploy.coordinator.runs import OVER, Run
from wardround.errors import UsageError
from wardround.files import new_folder
from wardround.server.app import read_settings
from wardround.server.journal import Journal, RoundRecord, read_weights
from wardround.strategies.contract import NUM_EXAMPLES

WEIGHTS = "model.safetensors"
CARD = "card.json"
CARD_TEXT = "card.md"


def export(run: Run, out: Path, round: int | None, now: datetime.datetime) -> Path:
    """Write a model and its card into the new folder `out`; what travelled beside the model's weights is left out.

    Parameters
    ----------
    run
        Whose model.
    out
        Must not exist.
    round
        After which; the last one where it is None.
    now
        UTC.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If `out` exists, or the run has no such round.
    StorageError
        If the weights of that round are not kept, or the disk cannot hold them.
    """
    # Imported here: torch takes seconds, and no other command of the coordinator waits for it.
    from wardround.models.weights import network_weights

    if out.exists():
        raise UsageError(f"{out} exists", "nothing is ever overwritten", "choose another folder")
    record = _record(run, round)
    with new_folder(out) as folder:
        weights = network_weights(read_weights(run.folder, record.round))
        data = save({name: np.ascontiguousarray(array) for name, array in weights.items()})
        (folder / WEIGHTS).write_bytes(data)
        card = _card(run, record, hashlib.sha256(data).hexdigest(), now)
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (folder / CARD_TEXT).write_text(_text(card), encoding="utf-8")
    return out


def roll_back(run: Run, round: int) -> None:
    """Let a run begin again behind a former round. What came after it is kept beside the journal.

    Raises
    ------
    UsageError
        If the run is not over, or has no such round.
    StorageError
        If the weights of that round are not kept any more.
    """
    if run.phase not in OVER:
        raise UsageError(
            f"run {run.name} is {run.phase}",
            "the way back is for a run that is over",
            f"stop it first: `wardround coordinator stop {run.name}`",
        )
    rounds = run.rounds()
    if rounds and round == rounds[-1].round:
        raise UsageError(f"round {round} is the last one of run {run.name}", "there is nothing behind it", "leave it")
    _record(run, round)
    with Journal(run.folder) as journal:
        journal.roll_back(round)


def _record(run: Run, round: int | None) -> RoundRecord:
    rounds = run.rounds()
    if not rounds:
        raise UsageError(f"run {run.name} has closed no round", "there is no model yet", "wait for the first round")
    wanted = rounds[-1].round if round is None else round
    found = next((record for record in rounds if record.round == wanted), None)
    if found is None:
        raise UsageError(
            f"run {run.name} has no round {wanted}",
            f"it has closed {rounds[0].round} to {rounds[-1].round}",
            "give one of these",
        )
    return found


def _card(run: Run, record: RoundRecord, sha256: str, now: datetime.datetime) -> dict[str, object]:
    settings = run.request.settings
    evaluation = record.evaluation.sites if record.evaluation is not None else {}
    return {
        "name": run.name,
        "made": now.isoformat(timespec="seconds"),
        "wardround": __version__,
        "weights": {"file": WEIGHTS, "sha256": sha256, "format": "safetensors"},
        "network": {"model": settings["model"], "labels": settings["labels"], "seed": settings["seed"]},
        "round": record.round,
        "rounds": run.request.rounds,
        "plan": {"sha256": record.plan, "settings": dict(settings)},
        "stays-at-sites": list(read_settings({**settings, "output": "-"}).plan.local_keys),
        "sites": {
            site: {
                "cases-learnt-from": report.metrics.get(NUM_EXAMPLES),
                "test": dict(evaluation.get(site, {})),
            }
            for site, report in record.sites.items()
        },
        "dice": mean_dice(record),
    }


def _text(card: dict[str, object]) -> str:
    network, weights, sites = card["network"], card["weights"], card["sites"]
    assert isinstance(network, dict)
    assert isinstance(weights, dict)
    assert isinstance(sites, dict)
    dice = f"{card['dice']:.3f}" if card["dice"] is not None else "not measured"
    rows = "\n".join(
        f"| {site} | {_number(found['cases-learnt-from'])} | {_number(found['test'].get(NUM_EXAMPLES))} "
        f"| {_number(found['test'].get('dice'), 3)} |"
        for site, found in sites.items()
    )
    return f"""\
# {card["name"]}, round {card["round"]} of {card["rounds"]}

A segmentation network that hospitals trained together with Wardround {card["wardround"]}; no image left any of them.

- network `{network["model"]}`, {network["labels"]} labels with background
- weights `{weights["file"]}`, SHA-256 `{weights["sha256"]}`
- mean Dice over the sites' test cases: {dice}
- written {card["made"]}

| site | cases learnt from | test cases | Dice |
| --- | --- | --- | --- |
{rows}

The weights may hold traces of what they were trained on. They are for research; they are no medical device.

{_loading(card)}"""


def _loading(card: dict[str, object]) -> str:
    """How the weights are read; or why they are no network by themselves."""
    network, weights, staying = card["network"], card["weights"], card["stays-at-sites"]
    assert isinstance(network, dict)
    assert isinstance(weights, dict)
    assert isinstance(staying, list)
    if staying:
        return f"""\
**This is not a whole network.** Arrays that match {", ".join(f"`{pattern}`" for pattern in staying)} stay at each
site, which has its own: `wardround site export-model` gives a site's whole model.
"""
    return f"""\
```python
from pathlib import Path

from wardround.models.catalogue import build
from wardround.models.weights import load_arrays, load_weights

network = build({network["model"]!r}, {network["labels"]}, {network["seed"]})
load_weights(network, load_arrays(Path({weights["file"]!r})))
```
"""


def _number(value: object, places: int = 0) -> str:
    return f"{value:.{places}f}" if isinstance(value, int | float) else "–"

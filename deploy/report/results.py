"""What a run measured, as one typed value and as `results.json`.

::

    Results ── sites      name → SiteCounts
            └─ arms       one ArmResult per arm and seed
                 ├─ models        name → ModelResult → CaseScore per test case
                 ├─ rounds        RoundResult → SiteRound per site, refused sites with the reason
                 ├─ interactions  one per annotation step of a streamed case
                 └─ effort, seconds, bytes

A number that was not measured is NaN here and `null` in the file, so that the file is JSON for every reader.
Everything has a default: the file of an interrupted run is read like any other.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from wardround import files
from wardround.errors import DataError

FILE_NAME = "results.json"
GLOBAL = "global"


def _measure(value: Any) -> Any:
    return math.nan if value is None else value


Measure = Annotated[float, BeforeValidator(_measure)]
"""A float in which NaN stands for "not measured"; `null` in JSON."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True, protected_namespaces=())


class Machine(_Record):
    """Where the run took place. `load` is the one-minute load average at the start."""

    cores: int = 0
    memory_gb: Measure = math.nan
    python: str = ""
    torch: str = ""
    load: Measure = math.nan


class DatasetInfo(_Record):
    """The data set's name and its label names; the index in `labels` is the voxel value, 0 is background."""

    name: str = ""
    labels: tuple[str, ...] = ()


class SiteCounts(_Record):
    """How many cases a site streams and how many test cases count for it."""

    stream: int = 0
    tests: int = 0


class CaseScore(_Record):
    """The scores of one model on one test case.

    Attributes
    ----------
    case
        Identifier of the case.
    sites
        Names of the sites whose test case it is; one case may count for several.
    dice
        Label value (as text) → Dice, 0 … 1. A key that is no number ("whole") is a derived structure: it is shown,
        and left out of the mean over labels.
    hd95_mm, assd_mm
        Label value (as text) → 95 % Hausdorff distance and average symmetric surface distance in mm.
    """

    case: str
    sites: tuple[str, ...] = ()
    dice: dict[str, Measure] = Field(default_factory=dict)
    hd95_mm: dict[str, Measure] = Field(default_factory=dict)
    assd_mm: dict[str, Measure] = Field(default_factory=dict)


class ModelResult(_Record):
    """The test scores of one set of weights."""

    cases: tuple[CaseScore, ...] = ()


class Effort(_Record):
    """Annotation effort as a share of contouring every slice, 0 … 1; `strict` also charges viewing and clicks."""

    contour: Measure = math.nan
    strict: Measure = math.nan


class SiteRound(_Record):
    """What one site reported for one round.

    `kernel_ratio` is known where its plan asked for attentive similarity. Where a generator of its own was tested,
    `made` counts the pairs that may be learnt from, `made_nearer` is the probability that one is nearer to what the
    generator has learnt than a case that it has not seen, and `made_faithful` the Dice of what the site's network finds
    in made images with what they were made of.
    """

    loss: Measure = math.nan
    kernel_ratio: Measure = math.nan
    made: Measure = math.nan
    made_nearer: Measure = math.nan
    made_faithful: Measure = math.nan
    effort: Measure = math.nan
    bytes_up: int = 0
    bytes_down: int = 0
    cases: int = 0


class RoundResult(_Record):
    """One closed round. `refused` maps a site's name to the reason why its reply was left out."""

    round: int
    seconds: Measure = math.nan
    refused: dict[str, str] = Field(default_factory=dict)
    sites: dict[str, SiteRound] = Field(default_factory=dict)


class Interaction(_Record):
    """The state of one streamed case after `step` annotation rounds.

    Step 0 is the prediction before anything was drawn on the case: its `model_dice` is the prequential score.
    Efforts are shares of contouring the whole case; Dice is the mean over labels. `slices`, `scribbles` and `points`
    count what was drawn: whole slices, slices with strokes, clicks.
    """

    site: str
    case: str
    round: int
    step: int
    effort: Measure = math.nan
    strict_effort: Measure = math.nan
    proxy_dice: Measure = math.nan
    model_dice: Measure = math.nan
    slices: int = 0
    scribbles: int = 0
    points: int = 0


class Seconds(_Record):
    """Wall-clock seconds by phase, summed over sites and rounds."""

    predict: Measure = math.nan
    annotate: Measure = math.nan
    propagate: Measure = math.nan
    update: Measure = math.nan
    aggregate: Measure = math.nan
    evaluate: Measure = math.nan
    total: Measure = math.nan


class Bytes(_Record):
    """Bytes that left the sites (`up`) and reached them (`down`), summed over sites and rounds."""

    up: int = 0
    down: int = 0


class Checkpoint(_Record):
    """The test scores of the model after `round`, where a stream is scored on its way."""

    round: int
    cases: tuple[CaseScore, ...] = ()


class ArmResult(_Record):
    """One arm of the comparison under one seed.

    `models` holds `"global"`, or one entry per site name for an arm in which every site keeps its own model. In a
    stream, `family` is the arm without its budget, and `budget` counts the slices drawn on a case. `rejected` counts
    the cases whose updates were taken back.
    """

    arm: str
    seed: int = 0
    strategy: str = ""
    family: str = ""
    budget: int = 0
    models: dict[str, ModelResult] = Field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
    effort: Effort = Effort()
    updates: int = 0
    rejected: int = 0
    rounds: tuple[RoundResult, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    seconds: Seconds = Seconds()
    bytes: Bytes = Bytes()
    peak_memory_mb: Measure = math.nan


class Results(_Record):
    """Everything a run measured.

    `kind` is the command that made it, ``simulate`` or ``stream``; `groups` are the sites of a stream that is ordered
    by site, in that order.
    """

    version: str = ""
    kind: str = "simulate"
    created: str = ""
    command: str = ""
    seed_list: tuple[int, ...] = ()
    machine: Machine = Machine()
    settings: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetInfo = DatasetInfo()
    sites: dict[str, SiteCounts] = Field(default_factory=dict)
    groups: tuple[str, ...] = ()
    arms: tuple[ArmResult, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _version_is_text(cls, values: Any, info: ValidationInfo) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("version"), int | float):
            return {**values, "version": str(values["version"])}
        return values


def parse_results(record: Mapping[str, Any]) -> Results:
    """Check a plain record (as `json.load` gives it) and return it typed.

    Raises
    ------
    DataError
        If a field is missing or of another type. The message names the field, never its content.
    """
    try:
        return Results.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DataError(
            "the results of the run cannot be read",
            f"at {where}: {first['msg']}",
            "write them again with the same version of wardround",
        ) from None


def load_results(path: Path) -> Results:
    """Read `results.json`; `path` is the file, or the folder that holds it.

    Raises
    ------
    DataError
        If there is no such file, or if it is not what :func:`save_results` writes.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}", "the run has written no results yet", "give the output folder of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}", f"it is no readable JSON ({type(error).__name__})", "run the same command again"
        ) from None
    if not isinstance(record, dict):
        raise DataError(f"cannot read {path}", "it holds no JSON object", "run the same command again")
    return parse_results(record)


def save_results(results: Results | Mapping[str, Any], path: Path) -> Path:
    """Write `results.json` atomically and return its path; `path` is the file, or the folder to write it into.

    NaN and infinities become `null`. A plain record is checked as by :func:`parse_results` first.

    Raises
    ------
    DataError
        If a plain record does not fit the schema.
    StorageError
        If the disk is full or the folder is not writable; an older file is then still whole.
    """
    path = path / FILE_NAME if path.suffix != ".json" else path
    typed = results if isinstance(results, Results) else parse_results(results)
    text = json.dumps(_finite(typed.model_dump(mode="python")), allow_nan=False, ensure_ascii=False, indent=1)
    files.write_text(path, text + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "item"):
        return _finite(value.item())
    return str(value)

"""A whole federation for tests, made by the commands that users type: a coordinator and sites, each in its own process.

The sites hold the cases of a simulation that has run before, and take them in the order in which it streamed them:
what the federation learns can then be held against what the simulation learnt.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployment import eventually, free_ports

from wardround.client.home import SiteHome
from wardround.deploy.cli import run as command_line
from wardround.deploy.coordinator import runs
from wardround.server.home import CoordinatorHome
from wardround.server.journal import RoundRecord, read_rounds

PATIENCE_S = 900.0
"""For what takes seconds on a machine that does nothing else."""

_NOT_GIVEN = {"run", "round", "rounds", "seed", "model", "labels", "deadline_s"}


@dataclass(frozen=True)
class Reference:
    """A simulation that has run to its end.

    Parameters
    ----------
    out
        Its folder.
    """

    out: Path

    @property
    def data(self) -> Path:
        """The data set that it learnt from."""
        return self._arm / json.loads((self._arm / "arm.json").read_text())["data"]

    @property
    def plan(self) -> dict[str, Any]:
        return dict(json.loads((self._arm / "arm.json").read_text())["plan"])

    @property
    def sites(self) -> list[str]:
        return list(json.loads((self._arm / "arm.json").read_text())["sites"])

    def cases(self, site: str) -> tuple[list[list[str]], list[str]]:
        """What the site streamed in each round, and what it was tested on."""
        content = json.loads((self._arm / "sites" / site / "site.json").read_text())
        return content["schedule"], content["test"]

    def weights(self, round_: int) -> bytes:
        return (self._arm / "journal" / "rounds" / f"{round_:05d}" / "global.safetensors").read_bytes()

    def rounds(self) -> list[RoundRecord]:
        return read_rounds(self._arm / "journal")

    @property
    def _arm(self) -> Path:
        return self.out / "arms" / "federated-seed0"


def simulate(out: Path, *more: str, sites: int, rounds: int) -> Reference:
    """Run the simulation that a federation is held against, as small as it can be: on phantoms."""
    arguments = [*more, "--sites", str(sites), "--cases", str(rounds), "--tests", "1", "--shape", "24,24,24"]
    return _simulate(out, *arguments, "--rounds", str(rounds), "--effort", "4", "--plan", "updates_per_case=4")


def simulate_on(data: Path, out: Path, *, sites: int, rounds: int, cases: int, tests: int) -> Reference:
    """Run the same on real images: so many cases a site and round, and the plan that users have by default."""
    arguments = ["--data", str(data), "--sites", f"even:{sites}", "--cases", str(rounds * cases), "--tests", str(tests)]
    return _simulate(out, *arguments, "--rounds", str(rounds))


def _simulate(out: Path, *arguments: str) -> Reference:
    arguments = (*arguments, "--compare", "", "--device", "cpu", "--out", str(out))
    command = [sys.executable, "-m", "wardround.deploy.cli", "simulate", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Reference(out)


@dataclass(frozen=True)
class Where:
    """Where a process runs: what stands before its command, and what its environment has in addition."""

    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


HERE = Where()


class Federation:
    """A coordinator and sites that have joined it; nothing runs yet.

    Parameters
    ----------
    folder
        Where all of them live.
    reference
        Says which sites there are, and what they hold.
    init
        Options of `wardround coordinator init`.
    """

    def __init__(self, folder: Path, reference: Reference, init: Sequence[str]) -> None:
        self._serving: dict[str, tuple[subprocess.Popen[bytes], Where, Sequence[str]]] = {}
        self.folder = folder
        self.reference = reference
        self.home = CoordinatorHome(folder / "coordinator")
        self.coordinator("init", "--status-port", "0", *init)
        (bundle,) = self.home.bundle.glob("*.fab")
        self.sites = {name: self._join(name, bundle) for name in reference.sites}

    def coordinator(self, *arguments: str, code: int = 0) -> None:
        """A command of the coordinator."""
        given = ["coordinator", *arguments, "--home", str(self.home.path)]
        assert command_line(given) == code, given

    def site(self, name: str, *arguments: str, code: int = 0) -> None:
        """A command of a site."""
        given = ["site", *arguments, "--home", str(self.folder / name)]
        assert command_line(given) == code, given

    def run(self, name: str, *more: str, code: int = 0) -> None:
        """Run the plan of the reference, and watch it to its end."""
        plan = {key: value for key, value in self.reference.plan.items() if key not in _NOT_GIVEN and value is not None}
        fields = [f"{key}={_written(value)}" for key, value in plan.items()]
        arguments = ["--rounds", str(self.reference.plan["rounds"]), "--quorum", str(len(self.sites))]
        arguments += ["--labels", str(self.reference.plan["labels"]), "--deadline", str(PATIENCE_S)]
        plan_options = [word for one in fields for word in ("--plan", one)]
        self.coordinator("run", name, *arguments, *plan_options, *more, code=code)

    def state(self, name: str) -> runs.Run:
        """A run as it stands on disk."""
        return runs.find(self.home, name)

    def rounds(self, name: str) -> list[RoundRecord]:
        """The journal of a run."""
        return self.state(name).rounds()

    def weights(self, name: str, round_: int) -> bytes:
        """The global weights after a round."""
        return (self.home.run_folder(name) / "rounds" / f"{round_:05d}" / "global.safetensors").read_bytes()

    def end(self, name: str, number: int) -> None:
        """Send a signal to a process that serves, see it end, and start it again where it was."""
        process, where, arguments = self._serving[name]
        process.send_signal(number)
        process.wait(PATIENCE_S)
        self._serving[name] = (self._start(name, where, arguments), where, arguments)

    @contextmanager
    def serving(self, hub: Where = HERE, elsewhere: Mapping[str, Where] | None = None) -> Iterator[None]:
        """Everybody serves as long as the block lasts."""
        places = elsewhere or {}
        commands = {"coordinator": (hub, ["coordinator", "serve", "--home", str(self.home.path)])}
        for name, site in self.sites.items():
            commands[name] = (places.get(name, HERE), ["site", "serve", "--home", str(site.path)])
        try:
            for name, (where, arguments) in commands.items():
                self._serving[name] = (self._start(name, where, arguments), where, arguments)
            eventually(self._up, "a coordinator that serves", PATIENCE_S)
            yield
            for name, (process, *_) in self._serving.items():
                assert process.poll() is None, self.log(name)
        finally:
            for process, *_ in self._serving.values():
                process.terminate()
            for process, *_ in self._serving.values():
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._serving.clear()

    def log(self, name: str) -> str:
        """What a process said; nothing, if it has not begun."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _start(self, name: str, where: Where, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        command = [*where.prefix, sys.executable, "-m", "wardround.deploy.cli", *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **where.environment}
            )

    def _up(self) -> bool:
        for name, (process, *_) in self._serving.items():
            assert process.poll() is None, self.log(name)
        return self.home.is_serving() and "serving sites" in self.log("coordinator")

    def _join(self, name: str, bundle: Path) -> SiteHome:
        home = SiteHome(self.folder / name)
        invitation = self.folder / f"{name}.invitation.json"
        self.coordinator("invite", name, "--out", str(invitation))
        self.site(name, "init", str(invitation))
        schedule, tests = self.reference.cases(name)
        (most,) = {len(cases) for cases in schedule}
        _change(home.settings_file, 'device = "auto"', 'device = "cpu"')
        _change(home.settings_file, "cases-per-round = 20", f"cases-per-round = {most}")
        # One case a round stands behind the updates here; a real site asks for more.
        _change(home.policy, "min-cases = 5", "min-cases = 1")
        data = str(self.reference.data)
        streamed = [case for cases in schedule for case in cases]
        self.site(name, "import", data, *(word for case in streamed for word in ("--case", case)))
        self.site(name, "import", data, "--test", *(word for case in tests for word in ("--case", case)))
        self.site(name, "approve", "--file", str(bundle))
        self.coordinator("enrol", str(home.path / "enrolment.json"))
        return home


def local_options() -> list[str]:
    """Options of `init` for a coordinator on the loop-back interface."""
    public, runtime = free_ports(2)
    return [
        *("--name", "localhost", "--host", "127.0.0.1"),
        *("--port", str(public), "--runtime-port", str(runtime)),
    ]


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _written(value: object) -> str:
    """A field's value as somebody writes it on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Checks of a site, from what lies on its disk to what the coordinator says of it."""

import datetime
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from wardround.client import wire
from wardround.client.cases.dicom.archives import PullLimits
from wardround.client.gate.approvals import Approvals
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import check_usable, load_policy
from wardround.client.home import SiteHome
from wardround.client.secure import open_book
from wardround.deploy.doctor import line, machine, trust
from wardround.deploy.doctor.dialogue import ask, judge
from wardround.deploy.doctor.finding import Finding, bad, good, of_error
from wardround.deploy.doctor.store import store
from wardround.deploy.doctor.workbench import workbench
from wardround.deploy.provisioning.authority import certificate_facts
from wardround.deploy.provisioning.keys import read_private_key
from wardround.errors import WardroundError
from wardround.files import is_locked
from wardround.pages import count
from wardround.processes import Stamp

STALE_S = 180.0
"""A SuperNode that has not stamped for so long is stuck."""
_SOON_DAYS = 30.0


def site_doctor(path: Path) -> Iterator[Finding]:
    """Check the site whose home is `path`, one thing after the other."""
    home = SiteHome(path)
    try:
        settings = home.settings
    except WardroundError as error:
        yield of_error("settings", error)
        return
    yield good("settings", f"site {settings.name} of {settings.coordinator}")
    key = None
    found = machine.private("private key", [home.node_key])
    if found.ok:
        try:
            key = read_private_key(home.node_key)
        except WardroundError as error:
            found = of_error("private key", error)
    yield found
    yield _policy(home)
    yield machine.disk(home.path, machine.LEAST_FREE + (PullLimits().total_bytes if home.pacs else 0))
    yield _device(settings.device)
    yield store(home.site / "store")
    yield _ledger(home)
    yield _secure(home)
    yield _bundles(home)
    yield from _processes(home)
    yield from workbench(home)
    yield _authority(home)
    yield from _line(settings.coordinator, home.ca, key)


def _policy(home: SiteHome) -> Finding:
    try:
        policy = load_policy(home.policy)
        check_usable(policy, home.policy)
    except WardroundError as error:
        return of_error("policy", error)
    return good("policy", f"at least {count(policy.min_cases, 'case')} behind whatever leaves")


def _device(device: str) -> Finding:
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        built = torch.version.cuda
        return bad(
            "device",
            "no GPU can be used, and site.toml insists on one",
            "the driver is not loaded, or this user or container may not use it"
            if built
            else "the installed torch was built without CUDA",
            "see whether nvidia-smi finds it; in a container, pass the GPU on"
            if built
            else 'install torch with CUDA, or set device = "auto"',
        )
    if not there or device == "cpu":
        return good("device", "CPU")
    free, total = torch.cuda.mem_get_info()
    return good("device", f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")


def _ledger(home: SiteHome) -> Finding:
    try:
        seen = Ledger(home.ledger).verify()
    except WardroundError as error:
        return of_error("ledger", error)
    if seen.ok:
        return good("ledger", f"{count(seen.count, 'line')}, whole")
    return bad(
        "ledger",
        f"the ledger is not whole from line {seen.line or seen.count + 1} on",
        seen.problem,
        "a torn last line is mended when the agent starts; anything else: find out who changed it before you go on",
    )


def _secure(home: SiteHome) -> Finding:
    try:
        book = open_book(home.secure, Ledger(home.ledger))
    except WardroundError as error:
        return of_error("secure aggregation", error)
    return good("secure aggregation", f"{count(book.known, 'site')} known by a key since the first sum with it")


def _bundles(home: SiteHome) -> Finding:
    try:
        waiting = Approvals(home.path).pending()
    except WardroundError as error:
        return of_error("bundles", error)
    if not waiting:
        return good("bundles", "none waits for a decision")
    return bad(
        "bundles",
        f"{count(len(waiting), 'app bundle')} {'waits' if len(waiting) == 1 else 'wait'} for a decision",
        "the coordinator wants to run something that nobody here has approved: until then its messages are refused",
        "look at it and decide: wardround site approve --show",
    )


def _processes(home: SiteHome) -> Iterator[Finding]:
    try:
        participation, held = home.participation, is_locked(home.lock)
    except WardroundError as error:
        yield of_error("agent", error)
        return
    if not held:
        yield bad(
            "agent",
            "no agent is at work, so the site takes no part",
            "it was never started, was stopped, or has crashed",
            f"start it (wardround site serve, or its service); a crash left its reason in {home.logs} or the journal",
        )
        return
    try:
        about, _ = wire.ask(home.socket, {"op": "info"}, timeout=10)
    except WardroundError as error:
        yield bad("agent", "an agent is at work, but does not answer", error.problem, "restart it")
        return
    yield good("agent", f"at work, {_state(participation, about)}")
    if participation == "left":
        yield good("SuperNode", "not needed: the site has left")
        return
    alive = machine.is_alive(home.run / "supernode.pid")
    age = Stamp(home.run / "supernode.stamp").age()
    if alive and age < STALE_S:
        yield good("SuperNode", f"at work, last sign of life {age:.0f} s ago")
    else:
        yield bad(
            "SuperNode",
            "the SuperNode is stuck" if alive else "the SuperNode is not running",
            f"its last sign of life was {age:.0f} s ago" if alive else "it ends when it cannot reach the coordinator",
            f"see the checks of the line below and {home.logs / 'supernode.log'}; the agent starts it again by itself",
        )


def _state(participation: str, about: dict[str, Any]) -> str:
    running = about.get("running")
    return f"{participation}, busy with {running}" if running else participation


def _authority(home: SiteHome) -> Finding:
    try:
        facts = certificate_facts(home.ca.read_bytes())
    except OSError as error:
        return bad("authority", f"{home.ca} cannot be read", error.strerror or "", "take it from the invitation again")
    except WardroundError as error:
        return of_error("authority", error)
    days = facts.days_left(datetime.datetime.now(datetime.UTC))
    if days < _SOON_DAYS:
        return bad(
            "authority",
            "the certificate of the coordinator's authority " + ("has expired" if days < 0 else "expires soon"),
            f"it is valid until {facts.not_after:%Y-%m-%d}",
            "ask the coordinator's operator for a new invitation; check the clock of this machine first",
        )
    return good("authority", f"{facts.subject}, until {facts.not_after:%Y-%m-%d}, {facts.fingerprint[:23]}…")


def _line(url: str, authority: Path, key: ec.EllipticCurvePrivateKey | None) -> Iterator[Finding]:
    try:
        target = line.Target.of(url)
        address = line.resolve(target)
        yield good("name", f"{target.proxy.host if target.proxy else target.host} is {address}")
        with line.connect(target):
            way = f"through {target.proxy}" if target.proxy else "direct"
        yield good("proxy" if target.proxy else "connection", f"{target}, {way}")
        with trust.secure(target, authority) as secured:
            yield good("TLS", f"{secured.version()}, proved to be the coordinator")
            if key is not None:
                yield from judge(ask(secured, target, key))
    except line.Broken as broken:
        yield of_error(broken.step, broken)
    except (OSError, http.client.HTTPException) as error:
        yield bad(
            "coordinator",
            "the connection was cut while the coordinator was asked",
            type(error).__name__,
            "ask the operator whether the coordinator is up, and the network team whether connections are filtered",
        )

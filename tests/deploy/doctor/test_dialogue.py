"""What a coordinator says, and what follows from it: first one that is played, then a real SuperLink."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.version import package_version
from lines import certificate, fleet, serving

from wardround import __version__
from wardround.deploy.doctor import trust
from wardround.deploy.doctor.dialogue import ask, judge
from wardround.deploy.doctor.finding import Finding
from wardround.deploy.doctor.line import Target

KNOWN = int(ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL)
UNKNOWN = int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
VERSIONS = {"wardround-version": __version__, "flwr-package-version": package_version}


def findings(folder: Path, **answer: object) -> dict[str, Finding]:
    """Ask a coordinator that answers like that."""
    home = certificate(folder / "home")
    headers = answer.pop("headers", VERSIONS)
    handler = fleet(answer.pop("code", KNOWN), headers=headers, **answer)  # type: ignore[arg-type]
    with serving(handler, home / "tls") as port:
        target = Target("localhost", port)
        with trust.secure(target, home / "ca" / "ca.crt") as secured:
            return {
                finding.name: finding
                for finding in judge(ask(secured, target, ec.generate_private_key(ec.SECP384R1())))
            }


def test_all_is_well(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert list(found) == ["clock", "versions", "key"]
    assert all(finding.ok for finding in found.values())


@pytest.mark.parametrize(("skew", "ok"), [(0, True), (2, True), (30, False), (-60, True), (-400, False)])
def test_the_clock(tmp_path: Path, skew: float, ok: bool) -> None:
    """A site's clock may be minutes behind, but only seconds ahead: that is Flower's rule for signatures."""
    found = findings(tmp_path, skew=skew)["clock"]
    assert found.ok == ok
    assert ok or ("ahead of" if skew > 0 else "behind") in found.problem


@pytest.mark.parametrize(
    ("headers", "ok"),
    [
        ({}, True),
        (VERSIONS, True),
        ({**VERSIONS, "wardround-version": __version__ + ".post1"}, True),
        ({**VERSIONS, "wardround-version": "99.1.0"}, False),
        ({**VERSIONS, "flwr-package-version": "1.42.0"}, False),
    ],
)
def test_versions(tmp_path: Path, headers: dict[str, str], ok: bool) -> None:
    found = findings(tmp_path, headers=headers)["versions"]
    assert found.ok == ok
    assert ok or "there" in found.cause


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"code": UNKNOWN}, "does not know this site's key"),
        ({"code": None, "status": 401}, "does not accept this site's signature"),
        ({"code": 99_999}, "does not know"),
    ],
)
def test_the_key(tmp_path: Path, answer: dict[str, object], said: str) -> None:
    found = findings(tmp_path, **answer)["key"]
    assert not found.ok
    assert said in found.problem


@pytest.mark.parametrize("status", [200, 404, 502])
def test_something_else_answers(tmp_path: Path, status: int) -> None:
    found = findings(tmp_path, code=None, status=status)
    assert list(found) == ["coordinator"]
    assert "not a coordinator's Fleet API" in found["coordinator"].problem

"""What the coordinator says on the line: what time it is, which versions it runs, and whether it knows our key.

One request answers all three. It asks the Fleet API to activate this node with a heartbeat interval that nobody may
have: Flower finds the key before it looks at the interval, and changes nothing.
"""

import http.client
import json
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.version import package_version

from wardround import __version__
from wardround.client.clock import fault, skew
from wardround.deploy.doctor.finding import Finding, bad, good
from wardround.deploy.doctor.line import Target

ACTIVATE = "/v1/fleet/activate-node"
_LONGEST_ANSWER = 65_536


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, headers with lower-case names, body, and our clock minus the coordinator's."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    skew: float | None

    @property
    def code(self) -> int | None:
        """Flower's number of the error."""
        try:
            value = json.loads(self.body)["code"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return value if isinstance(value, int) else None


def ask(secured: ssl.SSLSocket, target: Target, key: ec.EllipticCurvePrivateKey) -> Answer:
    """Send the one request over a connection that is secured already.

    Raises
    ------
    OSError, http.client.HTTPException
        If no answer comes.
    """
    public = public_key_to_bytes(key.public_key())
    moment = datetime.now(UTC).isoformat()
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode("ascii"),
        TIMESTAMP_HEADER: moment,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, moment.encode("ascii"))).decode("ascii"),
    }
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = secured
    sent = time.time()
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=0).SerializeToString()
    connection.request("POST", ACTIVATE, body=body, headers=headers)
    response = connection.getresponse()
    content = response.read(_LONGEST_ANSWER)
    middle = (sent + time.time()) / 2
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, content, skew(found.get("date", ""), middle))


def judge(answer: Answer) -> Iterator[Finding]:
    """Clock, versions and key, from one answer."""
    if answer.code is None and answer.status != 401:
        yield bad(
            "coordinator",
            "what answers there is not a coordinator's Fleet API",
            f"it answered {answer.status} to a question of a site",
            "ask the operator whether the coordinator is up, and whether something stands before it",
        )
        return
    yield _clock(answer)
    yield _versions(answer)
    yield _key(answer)


def _clock(answer: Answer) -> Finding:
    if answer.skew is None:
        return good("clock", "the coordinator does not say what time it is")
    if problem := fault(answer.skew):
        return bad(
            "clock",
            problem,
            "one of the two is not set by a time server; requests are signed with the time, and refused when it is off",
            "set the clock (NTP: chrony or systemd-timesyncd); if it is right, tell the coordinator's operator",
        )
    return good("clock", f"{abs(answer.skew):.0f} s {'ahead' if answer.skew > 0 else 'behind'}")


def _versions(answer: Answer) -> Finding:
    theirs = {
        "flwr": (answer.headers.get("flwr-package-version"), package_version),
        "Wardround": (answer.headers.get("wardround-version"), __version__),
    }
    differing = [
        f"{name} {there} there, {here} here"
        for name, (there, here) in theirs.items()
        if there is not None and _minor(there) != _minor(here)
    ]
    if differing:
        return bad(
            "versions",
            "site and coordinator run versions that do not go together",
            "; ".join(differing),
            "install the coordinator's version here (its operator hands out the offline bundle), or have it updated",
        )
    silent = [name for name, (there, _) in theirs.items() if there is None]
    return good(
        "versions", f"not said: {', '.join(silent)}" if silent else f"Wardround {__version__}, flwr {package_version}"
    )


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _key(answer: Answer) -> Finding:
    if answer.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return good("key", "registered")
    if answer.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return bad(
            "key",
            "the coordinator does not know this site's key",
            "the enrolment was not entered there yet, or the site was evicted, or the key was made anew since",
            "send enrolment.json to the coordinator's operator (`wardround coordinator enrol`), or ask for another "
            "invitation",
        )
    if answer.status == 401:
        return bad(
            "key",
            "the coordinator does not accept this site's signature",
            "the clocks differ too much" if _clock(answer).ok is False else "the request was changed on the way",
            "see the check of the clock; if that is well, a proxy changes headers: ask the network team",
        )
    return bad(
        "key",
        "the coordinator gave an answer that a site does not know",
        f"HTTP {answer.status}, code {answer.code}",
        "compare the versions; ask the coordinator's operator to look into its log",
    )

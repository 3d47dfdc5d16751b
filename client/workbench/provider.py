"""The hospital's sign-in service (OpenID Connect): what is asked of it, and what of its answers is believed.

The authorization code flow with PKCE (RFC 7636). An identity token is believed if a key of the service signed it, with
an algorithm of public keys, for us, for this very sign-in, and not long ago. Only the configured issuer's own host is
asked: whatever address its answers name, no redirect is followed, and an answer has a length and a time limit.
"""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from wardround.client.workbench.signing import OidcSettings
from wardround.errors import AuthRefused, DataError

Reason = Literal[
    "not-reached", "expired", "cancelled", "not-valid", "no-role", "no-name", "disabled", "busy",
]  # fmt: skip
"""Why somebody does not get in; the page has words for each."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of public keys: no shared secret, and not none."""
LEEWAY_S = 60
"""By which the two clocks may differ."""
ANSWER_WITHIN_S = 10.0
LARGEST = 1 << 20
"""Bytes of an answer."""
_KEPT_S = 3600.0
_AGAIN_AFTER_S = 10.0
"""Until a service that was not reached, or whose keys were just read, is asked for them again."""


class SignInRefused(AuthRefused):
    """Somebody does not get in.

    Parameters
    ----------
    reason
        For the page.
    why
        For the log: what was wrong, and nothing of whom.
    """

    def __init__(self, reason: Reason, why: str = "") -> None:
        super().__init__("the sign-in service does not let you in", reason, "try again, or ask your administrator")
        self.reason: Reason = reason
        self.why = why or reason


@dataclass(frozen=True)
class Identity:
    """Whom the service vouches for.

    Parameters
    ----------
    subject
        Digest of who it is there; stays when the name changes.
    name
        As the service writes it; empty if it does not.
    groups
        That the service counts them among.
    """

    subject: str
    name: str
    groups: frozenset[str]


class Provider:
    """The sign-in service. It is asked for the first time when somebody signs in, so that a site starts without it.

    Parameters
    ----------
    settings
        Of site.toml.
    secret
        Of the workbench at the service; empty for none.
    ca
        PEM file of the authority that the service's certificate must come from; None for those of the system.
    clock
        Seconds, never going back.

    Raises
    ------
    DataError
        If `ca` cannot be used.
    """

    def __init__(
        self, settings: OidcSettings, secret: str, ca: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._description: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._failed_at = -_AGAIN_AFTER_S
        try:
            trust = ssl.create_default_context(cafile=ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise DataError(
                "the sign-in service's authority cannot be used", f"{ca}: {type(error).__name__}",
                "correct `ca` under [workbench.oidc] in site.toml",
            ) from error  # fmt: skip
        self._client = httpx.Client(
            transport=_OnlyIssuer(settings.issuer, httpx.HTTPTransport(verify=trust, trust_env=False)),
            timeout=ANSWER_WITHIN_S / 2,
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    @property
    def redirect(self) -> str:
        """Where the service sends people back to."""
        return f"{self._settings.url.rstrip('/')}/oidc/callback"

    def check(self) -> None:
        """See whether the service answers as it should when somebody signs in.

        Raises
        ------
        SignInRefused
            If it does not.
        """
        self._endpoint("authorization_endpoint")
        self._endpoint("token_endpoint")
        try:
            self._key_set()
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise SignInRefused("not-valid", "its keys cannot be read") from error

    def address(self, state: str, nonce: str, verifier: str) -> str:
        """Where a browser is sent to sign in.

        Parameters
        ----------
        state, nonce, verifier
            Random; the first two come back, the third stays here.

        Raises
        ------
        SignInRefused
            If the service does not answer, or not as it should.
        """
        return str(
            add_params_to_uri(
                self._endpoint("authorization_endpoint"),
                [
                    ("response_type", "code"),
                    ("client_id", self._settings.client_id),
                    ("redirect_uri", self.redirect),
                    ("scope", " ".join(dict.fromkeys(("openid", *self._settings.scopes)))),
                    ("state", state),
                    ("nonce", nonce),
                    ("code_challenge", create_s256_code_challenge(verifier)),
                    ("code_challenge_method", "S256"),
                ],
            )
        )

    def identity(self, code: str, nonce: str, verifier: str) -> Identity:
        """Whom a code that came back stands for.

        Raises
        ------
        SignInRefused
            If the service does not know it, or what it answers cannot be believed.
        """
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect, "code_verifier": verifier,
        }  # fmt: skip
        auth = None
        methods = self._describe().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if self._secret and "client_secret_basic" in methods:
            auth = (quote(self._settings.client_id, safe=""), quote(self._secret, safe=""))
        else:
            form |= {"client_id": self._settings.client_id} | ({"client_secret": self._secret} if self._secret else {})
        answer = self._ask("POST", self._endpoint("token_endpoint"), data=form, auth=auth)
        token, bearer = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str) or not isinstance(bearer, str):
            raise SignInRefused("not-valid", "no identity token came for the code")
        claims = self._believed(token, nonce, bearer)
        claims = self._more(claims, bearer)
        name, groups = claims.get(self._settings.name_claim), _found(claims, self._settings.roles_claim)
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        subject = hashlib.sha256(f"{self._settings.issuer}\0{claims['sub']}".encode()).hexdigest()
        return Identity(
            subject, name if isinstance(name, str) else "", frozenset(one for one in listed if isinstance(one, str))
        )

    def _believed(self, token: str, nonce: str, bearer: str) -> dict[str, Any]:
        try:
            try:
                found = jwt.decode(token, self._key_set(), algorithms=ALGORITHMS)
            except InvalidKeyIdError:  # The service has a new key.
                found = jwt.decode(token, self._key_set(anew=True), algorithms=ALGORITHMS)
            wanted = {
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
            }
            params = {"nonce": nonce, "client_id": self._settings.client_id, "access_token": bearer}
            claims = CodeIDToken(dict(found.claims), found.header, wanted, params)
            claims.validate(leeway=LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise SignInRefused("not-valid", f"an identity token is refused: {type(error).__name__}") from error
        return dict(claims)

    def _more(self, claims: dict[str, Any], bearer: str) -> dict[str, Any]:
        """What the service says of the same person elsewhere, where the token leaves something out."""
        said = claims.get(self._settings.name_claim), _found(claims, self._settings.roles_claim)
        where = self._describe().get("userinfo_endpoint")
        if None not in said or not isinstance(where, str) or _origin(where) != _origin(self._settings.issuer):
            return claims
        more = self._ask("GET", where, headers={"authorization": f"Bearer {bearer}"})
        if more.get("sub") != claims["sub"]:
            raise SignInRefused("not-valid", "the service speaks of somebody else than its token")
        return more | claims

    def _endpoint(self, name: str) -> str:
        found = self._describe().get(name)
        if not isinstance(found, str) or _origin(found) != _origin(self._settings.issuer):
            raise SignInRefused("not-valid", f"the service's {name} is missing, or at another host")
        return found

    def _describe(self) -> Mapping[str, Any]:
        with self._lock:
            now = self._clock()
            if self._description is not None and now - self._description[0] < _KEPT_S:
                return self._description[1]
            if now - self._failed_at < _AGAIN_AFTER_S:
                raise SignInRefused("not-reached")
            self._failed_at = now
            issuer = self._settings.issuer
            found = self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != issuer:
                raise SignInRefused("not-valid", "the service calls itself otherwise than `issuer` in site.toml")
            self._description, self._failed_at = (now, found), -_AGAIN_AFTER_S
            return found

    def _key_set(self, *, anew: bool = False) -> KeySet:
        where = self._endpoint("jwks_uri")
        with self._lock:
            now = self._clock()
            if self._keys is None or now - self._keys[0] > (_AGAIN_AFTER_S if anew else _KEPT_S):
                self._keys = (now, KeySet.import_key_set(self._ask("GET", where)))  # type: ignore[arg-type]
            return self._keys[1]

    def _ask(self, method: str, where: str, **more: Any) -> dict[str, Any]:
        try:
            headers = {"accept": "application/json", "accept-encoding": "identity"} | more.pop("headers", {})
            answer = self._client.request(method, where, headers=headers, **more)
            found = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise SignInRefused("not-reached", f"the service does not answer: {type(error).__name__}") from error
        except (ValueError, RecursionError) as error:
            raise SignInRefused("not-valid", "the service does not answer in JSON") from error
        if not isinstance(found, dict):
            raise SignInRefused("not-valid", f"the service answers {answer.status_code}")
        return found


class _OnlyIssuer(httpx.BaseTransport):
    """Asks one host, and reads answers of a certain length within a certain time."""

    def __init__(self, issuer: str, inner: httpx.BaseTransport) -> None:
        self._origin = _origin(issuer)
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        if _origin(str(request.url)) != self._origin:
            raise httpx.UnsupportedProtocol("another host than the issuer's")
        ends = time.monotonic() + ANSWER_WITHIN_S
        response = self._inner.handle_request(request)
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise httpx.DecodingError("a packed answer was not asked for")
            content = b"".join(_within(response, ends))
        finally:
            response.close()
        return httpx.Response(response.status_code, headers=response.headers, content=content)

    def close(self) -> None:
        """End its connections."""
        self._inner.close()


def _within(response: httpx.Response, ends: float) -> Iterator[bytes]:
    length = 0
    for part in response.iter_raw():
        length += len(part)
        if length > LARGEST or time.monotonic() > ends:
            raise httpx.ReadTimeout("an answer has no end")
        yield part


def _origin(address: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(address)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return ("", "", None)
    return parts.scheme, (parts.hostname or "").lower(), port


def _found(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the names that lead to it."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found

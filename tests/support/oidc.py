"""A real OpenID provider on a port of this machine, and what a wicked one would answer.

The provider is that of the package ``oidc-provider-mock``: whoever asks for an account gets it, everything else is done
as the protocol says. ``wicked`` may change what it answers on the way.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


Answers = Callable[[str, Any], Any]
"""Takes a path and what is answered as JSON there, and says what is answered instead."""


@dataclass
class Issuer:
    """A provider that answers.

    Parameters
    ----------
    url
        Of the issuer.
    asked
        Paths that it was asked for.
    change
        Set by a test: changes answers.
    key
        One more key that the provider stands for, so that a test can sign with it.
    """

    url: str
    asked: list[str] = field(default_factory=list)
    change: Answers | None = None
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "ours", "use": "sig"}))

    def put(self, subject: str, **claims: Any) -> None:
        """Say who somebody is."""
        httpx.put(f"{self.url}/users/{subject}", json=claims).raise_for_status()

    def sign_in(self, where: str, subject: str) -> str:
        """Let somebody sign in on the provider's page at `where`; the way back is returned."""
        answer = httpx.post(where, data={"sub": subject}, follow_redirects=False)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def signed(self, claims: dict[str, Any], **header: Any) -> str:
        """An identity token with a key that the provider stands for."""
        return jwt.encode({"alg": "RS256", "kid": "ours"} | header, claims, self.key)


@contextmanager
def issuer(port: int = 0) -> Iterator[Issuer]:
    """A provider that answers as long as the block lasts."""
    from oidc_provider_mock import app

    real = app()
    found = Issuer("")

    def served(environ: dict[str, Any], begin: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        found.asked.append(path)
        kept: list[Any] = []
        parts = list(
            real(environ, lambda status, headers, *more: kept.extend((status, headers)) or (lambda data: None))
        )
        body, (status, headers) = b"".join(parts), kept
        if dict(headers).get("Content-Type", "").startswith("application/json"):
            content = json.loads(body)
            if found.change is not None:
                if path == "/jwks":
                    content["keys"].append(found.key.as_dict(private=False))
                content = found.change(path, content)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            headers = [one for one in headers if one[0] != "Content-Length"] + [("Content-Length", str(len(body)))]
        begin(status, headers)
        return [body]

    server = make_server("localhost", port, served, server_class=_Server, handler_class=_Quiet)
    found.url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def query(address: str) -> dict[str, str]:
    """What stands behind the question mark."""
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}

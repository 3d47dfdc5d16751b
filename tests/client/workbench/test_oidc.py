"""Signing in with the hospital's own service: a real provider, and what a wicked one or a thief would try."""

import base64
import json
import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from oidc import Answers, Issuer, issuer, query
from workbench import FakeStudio, Workbench, password, workbench

from wardround.client.home import SiteHome
from wardround.client.workbench import oidc, provider
from wardround.client.workbench.settings import endpoint
from wardround.client.workbench.signing import OidcSettings, RolesSettings
from wardround.errors import DataError, StorageError

GROUPS = {"ada": ["doctors", "wardround-admins"], "eva": ["wardround-doctors"], "Rita.R@example.org": ["reviewers"]}


def settings(of: str, *more: str) -> str:
    return "\n".join(
        [
            "[workbench.oidc]", f'issuer = "{of}"', 'client-id = "wardround"', 'url = "http://localhost:9"',
            'title = "Hospital account"', *more, "[workbench.oidc.roles]", 'annotator = ["wardround-doctors"]',
            'reviewer = ["reviewers"]', 'admin = ["wardround-admins"]',
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[Issuer]:
    with issuer() as found:
        for name, groups in GROUPS.items():
            found.put(name, preferred_username=name, groups=groups)
        found.put("stranger", preferred_username="stranger", groups=["cooks"])
        found.put("ann", preferred_username="ann", groups=["wardround-admins"])
        found.put("other-eva", preferred_username="eva", groups=["wardround-admins"])
        found.put("reserved", preferred_username="imported", groups=["reviewers"])
        found.put("nameless", groups=["reviewers"])
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, service: Issuer) -> Iterator[Workbench]:
    def prepare(home: SiteHome) -> None:
        home.keys.mkdir(exist_ok=True)
        home.oidc_secret.write_text("a secret of two\n")
        home.oidc_secret.chmod(0o600)

    path = tmp_path_factory.mktemp("oidc") / "home"
    with workbench(path, studio=FakeStudio, settings=settings(service.url), prepare=prepare) as found:
        yield found


@pytest.fixture
def bench(served: Workbench, service: Issuer) -> Iterator[Workbench]:
    """One bench for all tests; whoever signed in with the service is forgotten after each."""
    service.change = None
    yield served
    service.change = None
    for one in served.accounts.views():
        if one.source == "oidc":
            served.accounts.remove(one.name)


def back(browser: httpx.Client, address: str) -> httpx.Response:
    """The browser follows the way back; the provider knows the workbench by another address than the test."""
    return browser.get("/oidc/callback", params=query(address))


def signed_in(bench: Workbench, service: Issuer, subject: str) -> tuple[httpx.Client, str]:
    browser = bench.client()
    where = browser.get("/oidc/start").headers["location"]
    answer = back(browser, service.sign_in(where, subject))
    assert answer.status_code == 303
    return browser, answer.headers["location"]


def test_who_has_a_role_gets_in_and_no_further(bench: Workbench, service: Issuer) -> None:
    stranger = bench.client()
    offered = stranger.get("/api/v1/entrance").json()
    assert offered == {"passwords": True, "oidc": {"title": "Hospital account", "start": "/oidc/start"}}
    for subject, name, roles in (
        ("ada", "ada", ["admin", "annotator", "reviewer"]),
        ("eva", "eva", ["annotator"]),
        ("Rita.R@example.org", "rita.r", ["annotator", "reviewer"]),
    ):
        browser, where = signed_in(bench, service, subject)
        assert where == "/"
        assert browser.get("/api/v1/me").json() == {"name": name, "roles": roles, "change_password": False}
        assert browser.get("/api/v1/cases").status_code == 200
        assert browser.get("/api/v1/accounts").status_code == (200 if "admin" in roles else 403)
        changed = browser.post("/api/v1/logout", headers={"sec-fetch-site": "cross-site"})
        assert changed.status_code == 403, "a foreign page signs somebody out"
    assert bench.client("ann").get("/api/v1/me").status_code == 200, "local accounts stay"


def test_what_is_sent_to_the_service_is_what_the_protocol_asks_for(bench: Workbench, service: Issuer) -> None:
    browser = bench.client()
    first, second = browser.get("/oidc/start"), bench.client().get("/oidc/start")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/oidc" in cookie
    sent, other = query(first.headers["location"]), query(second.headers["location"])
    assert first.headers["location"].startswith(f"{service.url}/oauth2/authorize?")
    assert (sent["response_type"], sent["code_challenge_method"]) == ("code", "S256")
    assert sent["redirect_uri"] == "http://localhost:9/oidc/callback"
    assert sent["scope"].split() == ["openid", "profile"]
    for secret in ("state", "nonce", "code_challenge"):
        assert len(sent[secret]) >= 43
        assert sent[secret] != other[secret]


def test_a_code_state_or_cookie_that_is_not_this_browsers_is_worth_nothing(bench: Workbench, service: Issuer) -> None:
    browser = bench.client()
    way = query(service.sign_in(browser.get("/oidc/start").headers["location"], "ada"))
    thief = bench.client()
    assert back(thief, f"/?code={way['code']}&state={way['state']}").headers["location"].endswith("refused=expired")
    thief.get("/oidc/start")
    for wrong in (way, way | {"state": "made-up"}, {"code": way["code"]}, {}):
        answer = thief.get("/oidc/callback", params=wrong)
        assert answer.headers["location"] == "/login.html?refused=expired"
        assert thief.get("/api/v1/me").status_code == 401
        thief.get("/oidc/start")
    forged = base64.urlsafe_b64encode(
        json.dumps({"state": "s", "nonce": "n", "verifier": "v", "until": 1e12}).encode()
    ).decode()
    thief.cookies.clear()
    answer = thief.get("/oidc/callback?code=x&state=s", headers={"cookie": f"{oidc.COOKIE}={forged}.{'0' * 64}"})
    assert answer.headers["location"] == "/login.html?refused=expired"
    # The thief's tries have not used the code up: it was never asked for.
    assert browser.get("/oidc/callback", params=way).headers["location"] == "/"


def test_a_way_back_is_good_once_and_not_for_long(
    bench: Workbench, service: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = bench.client()
    start = browser.get("/oidc/start")
    way = query(service.sign_in(start.headers["location"], "eva"))
    kept = {"cookie": f"{oidc.COOKIE}={start.cookies[oidc.COOKIE]}"}
    assert browser.get("/oidc/callback", params=way).headers["location"] == "/"
    again = bench.client()
    assert again.get("/oidc/callback", params=way, headers=kept).headers["location"].endswith("refused=expired")
    # The same code in a sign-in of somebody else: the provider has given it away, and PKCE would not fit.
    again.get("/oidc/start")
    own = again.get("/oidc/start").headers["location"]
    answer = again.get("/oidc/callback", params={"code": way["code"], "state": query(own)["state"]})
    assert answer.headers["location"].endswith("refused=not-valid")
    monkeypatch.setattr(oidc, "WITHIN_S", -1.0)
    late = bench.client()
    late.get("/oidc/start")
    cookie = late.get("/oidc/start")
    sent = {"cookie": cookie.headers["set-cookie"].partition(";")[0]}
    state = query(cookie.headers["location"])["state"]
    answer = late.get("/oidc/callback", params={"code": "x", "state": state}, headers=sent)
    assert answer.headers["location"].endswith("refused=expired")


def _none(claims: dict[str, Any], _: Issuer) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, ""])


def _by_us(**changes: Any) -> Any:
    return lambda claims, of: of.signed({key: one for key, one in (claims | changes).items() if one is not None})


def _by_a_stranger(claims: dict[str, Any], of: Issuer) -> str:
    key = RSAKey.generate_key(2048, {"kid": "ours"})
    return jwt.encode({"alg": "RS256", "kid": "ours"}, claims, key)


def _by_the_public_key(claims: dict[str, Any], of: Issuer) -> str:
    """The old trick: the public key, taken for a shared secret."""
    return jwt.encode({"alg": "HS256", "kid": "ours"}, claims, OctKey.import_key(of.key.as_pem(private=False)))


def _cut(claims: dict[str, Any], of: Issuer) -> str:
    head, _, signature = of.signed(claims).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "ada"}).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


WRONG: dict[str, Any] = {
    "unsigned": _none,
    "signed by a stranger": _by_a_stranger,
    "signed with the public key": _by_the_public_key,
    "changed after it was signed": _cut,
    "another nonce": _by_us(nonce="another"),
    "no nonce": _by_us(nonce=None),
    "for somebody else": _by_us(aud="another-client"),
    "for us and others, and not to us": _by_us(aud=["wardround", "another-client"], azp="another-client"),
    "for us and others, to nobody": _by_us(aud=["wardround", "another-client"]),
    "of another issuer": _by_us(iss="https://evil.example"),
    "expired": _by_us(exp=int(time.time()) - 3600),
    "without an end": _by_us(exp=None),
    "from the future": _by_us(iat=int(time.time()) + 3600),
    "of nobody": _by_us(sub=None),
    "not for this access token": _by_us(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "no token": lambda claims, of: "nonsense",
    "no text": lambda claims, of: 7,
}


def asked(service: Issuer, subject: str = "eva", secret: str = "of two") -> provider.Identity:
    """Whom the service vouches for, without a workbench."""
    of = OidcSettings(issuer=service.url, client_id="wardround", url="http://localhost:9", roles=RolesSettings())
    one = provider.Provider(of, secret, None)
    try:
        way = query(service.sign_in(one.address("state", "nonce", "verifier" * 6), subject))
        assert way["state"] == "state"
        return one.identity(way["code"], "nonce", "verifier" * 6)
    finally:
        one.close()


def with_token(service: Issuer, make: Any, more: Answers = lambda path, content: content) -> Answers:
    """Answers with another identity token."""

    def change(path: str, content: Any) -> Any:
        if path != "/oauth2/token":
            return more(path, content)
        claims = json.loads(base64.urlsafe_b64decode(content["id_token"].split(".")[1] + "=="))
        return content | {"id_token": make(claims, service)}

    return change


@pytest.fixture
def wicked(service: Issuer) -> Iterator[Issuer]:
    yield service
    service.change = None


@pytest.mark.parametrize("what", WRONG)
def test_a_token_that_is_not_as_it_should_be_is_not_believed(wicked: Issuer, what: str) -> None:
    wicked.change = with_token(wicked, _by_us())
    assert asked(wicked).name == "eva"
    wicked.change = with_token(wicked, WRONG[what])
    with pytest.raises(provider.SignInRefused) as refused:
        asked(wicked)
    assert refused.value.reason == "not-valid"


def test_a_service_with_a_new_key_is_asked_for_it(wicked: Issuer) -> None:
    now = [0.0]
    of = OidcSettings(issuer=wicked.url, client_id="wardround", url="http://localhost:9", roles=RolesSettings())
    one = provider.Provider(of, "of two", None, clock=lambda: now[0])

    def identity() -> provider.Identity:
        way = query(wicked.sign_in(one.address("state", "nonce", "verifier" * 6), "eva"))
        return one.identity(way["code"], "nonce", "verifier" * 6)

    assert identity().name == "eva"
    wicked.change = with_token(wicked, _by_us())
    with pytest.raises(provider.SignInRefused):
        identity()  # The keys were read just now, and are not asked for with every token that somebody makes up.
    now[0] += 60
    assert identity().name == "eva"
    one.close()


def test_groups_that_the_token_leaves_out_are_asked_for(wicked: Issuer) -> None:
    wicked.change = with_token(wicked, _by_us(groups=None))
    assert asked(wicked).groups == {"wardround-doctors"}
    wicked.change = with_token(
        wicked, _by_us(groups=None), lambda path, said: said | ({"sub": "ada"} if path == "/userinfo" else {})
    )
    with pytest.raises(provider.SignInRefused) as refused:
        asked(wicked)
    assert "somebody else" in refused.value.why
    with issuer() as other:
        elsewhere = {"userinfo_endpoint": f"{other.url}/userinfo"}
        wicked.change = with_token(
            wicked, _by_us(groups=None), lambda path, said: said | (elsewhere if "configuration" in path else {})
        )
        assert asked(wicked).groups == frozenset()
        assert other.asked == []


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
def test_nobody_but_the_issuer_is_asked(wicked: Issuer, name: str) -> None:
    with issuer() as other:
        wicked.change = lambda path, said: said | ({name: f"{other.url}/x"} if "configuration" in path else {})
        with pytest.raises(provider.SignInRefused) as refused:
            asked(wicked)
        assert refused.value.reason == "not-valid"
        assert other.asked == []


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b"{" * 100_000, b'{"issuer": "https://evil.example"}', b" " * (provider.LARGEST + 1)]
)
def test_a_service_that_answers_nonsense_lets_nobody_in(wicked: Issuer, answer: bytes) -> None:
    wicked.change = lambda path, content: answer
    with pytest.raises(provider.SignInRefused) as refused:
        asked(wicked)
    assert refused.value.reason in ("not-valid", "not-reached")


def test_a_service_that_does_not_work_is_not_asked_again_at_once(wicked: Issuer) -> None:
    of = OidcSettings(
        issuer=f"{wicked.url}/nowhere", client_id="wardround", url="http://localhost:9", roles=RolesSettings()
    )
    one = provider.Provider(of, "", None)
    with pytest.raises(provider.SignInRefused) as refused:
        one.address("s", "n", "v" * 48)
    assert refused.value.reason == "not-valid"
    with pytest.raises(provider.SignInRefused) as again:
        one.address("s", "n", "v" * 48)
    assert again.value.reason == "not-reached"
    one.close()


@pytest.mark.parametrize(
    ("subject", "reason"),
    [("stranger", "no-role"), ("ann", "no-name"), ("reserved", "no-name"), ("nameless", "no-name")],
)
def test_who_has_no_role_or_a_name_of_another_is_refused_plainly(
    bench: Workbench, service: Issuer, subject: str, reason: str
) -> None:
    browser, where = signed_in(bench, service, subject)
    assert where == f"/login.html?refused={reason}"
    assert browser.get("/api/v1/me").status_code == 401
    assert bench.client("ann").get("/api/v1/me").json()["roles"] == ["annotator"]
    assert subject == "ann" or subject not in bench.home.accounts.read_text()


def test_a_name_belongs_to_who_had_it_first_and_an_administrator_can_shut_it_out(
    bench: Workbench, service: Issuer
) -> None:
    eva, _ = signed_in(bench, service, "eva")
    assert signed_in(bench, service, "other-eva")[1].endswith("refused=no-name")
    adm = bench.client("adm")
    line = next(one for one in adm.get("/api/v1/accounts").json()["accounts"] if one["name"] == "eva")
    assert line == {"name": "eva", "role": "annotator", "disabled": False, "one_time": False, "source": "oidc"}
    for what, body in (("role", {"role": "admin"}), ("reset", {})):
        answer = adm.post(f"/api/v1/accounts/eva/{what}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "managed-elsewhere")
    own = {"old": "x" * 12, "new": "some other words"}
    assert eva.post("/api/v1/password", json=own, headers={"sec-fetch-site": "same-origin"}).status_code == 409
    given = {"name": "eva", "password": ""}
    assert bench.client().post("/api/v1/login", json=given).status_code == 401
    adm.post("/api/v1/accounts/eva/disabled", json={"disabled": True})
    assert eva.get("/api/v1/me").status_code == 401
    assert signed_in(bench, service, "eva")[1].endswith("refused=disabled")


def test_a_role_follows_the_groups_at_the_next_sign_in(bench: Workbench, service: Issuer) -> None:
    service.put("mia", preferred_username="mia", groups=["wardround-admins"])
    before, _ = signed_in(bench, service, "mia")
    assert "admin" in before.get("/api/v1/me").json()["roles"]
    service.put("mia", preferred_username="mia", groups="wardround-doctors")
    after, _ = signed_in(bench, service, "mia")
    assert after.get("/api/v1/me").json()["roles"] == ["annotator"]
    assert before.get("/api/v1/me").status_code == 401, "a session with the old role goes on"


def test_a_site_starts_without_its_service_and_local_accounts_work(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio, settings=settings("http://localhost:9")) as bench:
        browser = bench.client()
        assert browser.get("/oidc/start").headers["location"] == "/login.html?refused=not-reached"
        given = {"name": "ann", "password": password("ann")}
        assert browser.post("/api/v1/login", json=given).status_code == 200


def test_where_passwords_are_off_nobody_signs_in_by_one(tmp_path: Path) -> None:
    text = settings("http://localhost:9", "passwords = false")
    with workbench(tmp_path / "home", studio=FakeStudio, settings=text) as bench:
        assert bench.client().get("/api/v1/entrance").json()["passwords"] is False
        given = {"name": "ann", "password": password("ann")}
        answer = bench.client().post("/api/v1/login", json=given)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no-passwords")
        form = {"username": "ann", "password": password("ann")}
        assert bench.client().post("/auth/token", data=form).status_code == 403


def test_where_there_is_no_service_there_is_no_way_to_it(tmp_path: Path) -> None:
    with workbench(tmp_path / "home", studio=FakeStudio) as bench:
        assert bench.client().get("/api/v1/entrance").json() == {"passwords": True, "oidc": None}
        assert {bench.client().get(f"/oidc/{way}").status_code for way in ("start", "callback")} == {404}


def test_who_says_no_at_the_service_comes_back_to_our_page(bench: Workbench) -> None:
    browser = bench.client()
    state = query(browser.get("/oidc/start").headers["location"])["state"]
    answer = browser.get("/oidc/callback", params={"error": "access_denied", "state": state})
    assert answer.headers["location"] == "/login.html?refused=cancelled"


def test_settings_that_would_not_be_safe_are_refused(tmp_path: Path) -> None:
    def open_to_all(home: SiteHome) -> None:
        home.keys.mkdir(exist_ok=True)
        home.oidc_secret.write_text("a secret of two\n")
        home.oidc_secret.chmod(0o644)

    text = settings("http://localhost:9")
    with (
        pytest.raises(StorageError, match="read by others"),
        workbench(tmp_path / "a", studio=FakeStudio, settings=text, prepare=open_to_all),
    ):
        pass
    for name, wrong in (("b", settings("http://sso.example.org")), ("c", settings("http://localhost:9", 'ca = "no"'))):
        with pytest.raises(DataError), workbench(tmp_path / name, studio=FakeStudio, settings=wrong):
            pass


def test_no_line_of_the_log_names_who_signs_in(
    bench: Workbench, service: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.put("canary-subject", preferred_username="canary.name", groups=["canary-group", "reviewers"])
    _, where = signed_in(bench, service, "canary-subject")
    assert where == "/"
    service.put("canary-other", preferred_username="canary.name", groups=["canary-group"])
    _, where = signed_in(bench, service, "canary-other")
    assert where.endswith("no-role")
    lines = [one for one in caplog.records if one.name.startswith(("wardround", "uvicorn", "asyncio", "authlib"))]
    assert any("a sign-in is refused: no-role" in one.getMessage() for one in lines)
    assert [one for one in lines if "canary" in one.getMessage() or "code=" in one.getMessage()] == []


VIEW = "/ohif/viewer?StudyInstanceUIDs=1.2&x=%26"


@pytest.mark.parametrize(
    ("asked", "led"),
    [
        (VIEW, VIEW),
        ("", ""),
        ("/", ""),
        ("/api/v1/site", ""),
        ("https://evil.example/ohif/", ""),
        ("//evil.example/ohif/", ""),
        ("/\\evil.example/ohif/", ""),
        ("/ohif/\\evil.example", ""),
        ("/ohif/\r\nset-cookie: a=b", ""),
        ("/ohif/" + "x" * 2000, ""),
    ],
)
def test_who_was_on_the_way_to_the_viewer_is_led_there_and_nowhere_else(
    bench: Workbench, service: Issuer, asked: str, led: str
) -> None:
    browser = bench.client()
    start = browser.get("/oidc/start", params={"next": asked})
    assert "evil" not in start.headers["location"]
    assert "ohif" not in start.headers["location"], "the service need not know which study somebody wants to see"
    assert len(start.headers["set-cookie"]) < 4096
    where = back(browser, service.sign_in(start.headers["location"], "eva")).headers["location"]
    assert query(where) == ({"next": led} if led else {})
    assert urlsplit(where)[:3] == ("", "", "/login.html" if led else "/")
    state = query(browser.get("/oidc/start", params={"next": asked}).headers["location"])["state"]
    answer = browser.get("/oidc/callback", params={"error": "access_denied", "state": state})
    assert query(answer.headers["location"]) == {"refused": "cancelled"} | ({"next": led} if led else {})


def test_another_name_at_the_service_opens_no_second_account(bench: Workbench, service: Issuer) -> None:
    service.put("zoe", preferred_username="zoe", groups=["wardround-doctors"])
    signed_in(bench, service, "zoe")
    service.put("zoe", preferred_username="zoe.the.second", groups=["wardround-doctors"])
    browser, where = signed_in(bench, service, "zoe")
    assert (where, browser.get("/api/v1/me").json()["name"]) == ("/", "zoe")
    bench.accounts.set_disabled("zoe", True)
    assert signed_in(bench, service, "zoe")[1].endswith("refused=disabled")


def test_the_cookie_of_a_journey_is_for_encrypted_ways_only_where_there_is_one(tmp_path: Path, service: Issuer) -> None:
    given = 'host = "0.0.0.0"\n' + settings(service.url)
    with workbench(tmp_path / "home", studio=FakeStudio, settings=given) as bench:
        trust = ssl.create_default_context(cafile=endpoint(bench.home).certificate)
        said = bench.client(verify=trust).get("/oidc/start").headers["set-cookie"].lower()
        assert "secure" in said.split("; ")


def test_a_service_can_be_checked_without_anybody_signing_in(wicked: Issuer) -> None:
    of = OidcSettings(issuer=wicked.url, client_id="wardround", url="http://localhost:9", roles=RolesSettings())

    def check() -> None:
        one = provider.Provider(of, "", None)
        try:
            one.check()
        finally:
            one.close()

    check()
    for wrong in ({"keys": "none"}, {"keys": [{"kty": "nonsense"}]}, {}):
        wicked.change = lambda path, said, wrong=wrong: wrong if path == "/jwks" else said
        with pytest.raises(provider.SignInRefused) as refused:
            check()
        assert refused.value.reason == "not-valid"
        with pytest.raises(provider.SignInRefused):
            asked(wicked)

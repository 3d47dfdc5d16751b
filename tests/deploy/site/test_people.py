"""`wardround site account`: passwords come by prompt or pipe, and nowhere else."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from living import make_home

from wardround.client.home import SiteHome
from wardround.client.workbench.accounts import Accounts
from wardround.deploy.cli import run
from wardround.errors import AuthRefused, UsageError

WORD = "a few words do well"
Account = Callable[..., int]


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "home", cases=0, tests=0)


@pytest.fixture
def account(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> Account:
    def command(*arguments: str, piped: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        return run(["site", "account", *arguments, "--home", str(home.path)])

    return command


def test_an_account_is_made_changed_and_removed(
    home: SiteHome, account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts = Accounts(home.accounts)
    assert account("list") == 0
    assert account("add", "ann", piped=f"{WORD}\n") == 0
    assert accounts.verify("ann", WORD)[0].roles == {"annotator"}
    assert account("role", "ann", "reviewer") == 0
    assert "reviewer" in accounts.verify("ann", WORD)[0].roles
    assert account("password", "ann", piped=f"{WORD} indeed") == 0
    with pytest.raises(AuthRefused):
        accounts.verify("ann", WORD)
    accounts.verify("ann", f"{WORD} indeed")
    assert account("list") == 0
    said = capsys.readouterr()
    assert "ann" in said.out
    assert WORD not in said.out + said.err
    assert account("remove", "ann", "--yes") == 0
    assert accounts.listing() == ()


def test_an_account_is_shut_and_opened_again_and_the_list_says_whose_password_it_has(
    home: SiteHome, account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts = Accounts(home.accounts)

    def lines() -> dict[str, list[str]]:
        capsys.readouterr()
        assert account("list") == 0
        return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}

    account("add", "ann", piped=WORD)
    accounts.invite("ben", "reviewer")
    accounts.from_provider("eva", "digest", "admin")
    expected = {"ann": ["annotator", "own"], "ben": ["reviewer", "one-time"], "eva": ["admin", "hospital's"]}
    assert lines() == expected
    for name in ("ann", "eva"):
        assert account("disable", name) == 0
    assert lines() == {name: said + ["disabled"] * (name != "ben") for name, said in expected.items()}
    with pytest.raises(AuthRefused):
        accounts.verify("ann", WORD)
    with pytest.raises(AuthRefused):
        accounts.from_provider("eva", "digest", "admin")
    for name in ("ann", "eva"):
        assert account("enable", name) == 0
    assert lines() == expected
    accounts.verify("ann", WORD)
    assert account("role", "eva", "annotator") == UsageError.exit_code, "the service says so, at each sign-in"
    assert account("password", "eva", piped=WORD) == UsageError.exit_code


@pytest.mark.parametrize(
    ("arguments", "piped"),
    [
        (("add", "ann"), ""),
        (("add", "ann"), "short\n"),
        (("add", "Ann"), WORD),
        (("add", "ann", "--role", "root"), WORD),
        (("add", "ann", "--password", WORD), ""),
        (("add", "ann", WORD), ""),
        (("remove", "bob", "--yes"), ""),
        (("role", "bob", "admin"), ""),
        (("disable", "bob"), ""),
        (("enable", "bob"), ""),
    ],
)
def test_what_cannot_be_done_is_said(home: SiteHome, account: Account, arguments: tuple[str, ...], piped: str) -> None:
    assert account(*arguments, piped=piped) == UsageError.exit_code
    assert Accounts(home.accounts).listing() == ()


def test_a_folder_that_is_no_home_gets_no_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(WORD))
    assert run(["site", "account", "add", "ann", "--home", str(tmp_path)]) == 3
    assert list(tmp_path.iterdir()) == []

"""Accounts: one file, hashes, and no hint about who has one."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argon2
import pytest

from wardround.client.workbench.accounts import Accounts
from wardround.client.workbench.patience import TooManyTries
from wardround.errors import AuthRefused, StorageError, UsageError

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
WORD = "a few words do well"


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path / "accounts.json", hasher=QUICK)


def test_name_and_password_give_the_person_with_all_that_the_role_includes(accounts: Accounts) -> None:
    accounts.add("ann", WORD, "annotator")
    accounts.add("rev", WORD, "reviewer")
    accounts.add("adm", WORD, "admin")
    assert accounts.verify("ann", WORD)[0].roles == {"annotator"}
    assert accounts.verify("rev", WORD)[0].roles == {"annotator", "reviewer"}
    assert accounts.verify("adm", WORD)[0].roles == {"annotator", "reviewer", "admin"}
    assert accounts.listing() == (("adm", "admin"), ("ann", "annotator"), ("rev", "reviewer"))


def test_the_default_hash_is_argon2id_with_the_memory_of_rfc_9106(tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    Accounts(path).add("ann", WORD, "annotator")
    hashed = json.loads(path.read_text())["accounts"]["ann"]["hash"]
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert WORD not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "password"), [("ann", "another few words"), ("bob", WORD), ("", WORD), ("ann", "")])
def test_whoever_is_refused_is_told_the_same(accounts: Accounts, name: str, password: str) -> None:
    accounts.add("ann", WORD, "annotator")
    with pytest.raises(AuthRefused) as refused:
        accounts.verify(name, password)
    assert (refused.value.problem, refused.value.cause) == ("name and password do not fit", "")


def test_an_unknown_name_costs_the_same_work(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.add("ann", WORD, "annotator")
    looked_at: list[str] = []
    original = argon2.PasswordHasher.verify

    def verify(self: Any, hashed: str, password: str) -> Any:
        looked_at.append(hashed)
        return original(self, hashed, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    for name in ("ann", "nobody", "another"):
        with pytest.raises(AuthRefused):
            accounts.verify(name, "wrong wrong wrong")
    assert len(looked_at) == 3
    assert len({hashed.rsplit("$", 2)[0] for hashed in looked_at}) == 1, "other parameters take another time"


def test_too_many_wrong_passwords_make_even_the_right_one_wait(accounts: Accounts) -> None:
    accounts.add("ann", WORD, "annotator")
    for name in ("ann", "nobody"):
        for _ in range(5):
            with pytest.raises(AuthRefused):
                accounts.verify(name, "wrong wrong wrong", "10.0.0.1")
        with pytest.raises(TooManyTries):
            accounts.verify(name, WORD, "10.0.0.1")


@pytest.mark.parametrize(
    "name", ["", "Ann", "../ann", "a/b", "ann\n", "1ann", "a" * 33, "imported", "reference", "wardround", "änn", "."]
)
def test_a_name_that_could_be_a_path_or_another_author_is_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(UsageError):
        accounts.add(name, WORD, "annotator")
    assert accounts.listing() == ()


@pytest.mark.parametrize("password", ["short", "", "a" * 40, "x" * 300 + "yz1", "aaaabbbb"])
def test_a_password_that_is_easily_guessed_is_refused(accounts: Accounts, password: str) -> None:
    with pytest.raises(UsageError) as refused:
        accounts.add("ann", password, "annotator")
    assert not password or password not in str(refused.value)


def test_a_password_is_the_same_however_the_keyboard_writes_it(accounts: Accounts) -> None:
    accounts.add("ann", "scho\u0308ne Gru\u0308ße Nr. 1", "annotator")
    accounts.verify("ann", "sch\u00f6ne Gr\u00fc\u00dfe Nr. 1")


def test_a_name_is_given_once(accounts: Accounts) -> None:
    accounts.add("ann", WORD, "annotator")
    with pytest.raises(UsageError, match="already"):
        accounts.add("ann", "another few words", "admin")
    assert accounts.verify("ann", WORD)[0].roles == {"annotator"}


CHANGES: dict[str, Callable[[Accounts], None]] = {
    "password": lambda accounts: accounts.set_password("ann", "another few words"),
    "role": lambda accounts: accounts.set_role("ann", "reviewer"),
    "removed": lambda accounts: accounts.remove("ann"),
    "made anew": lambda accounts: (accounts.remove("ann"), accounts.add("ann", WORD, "annotator"))[1],  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_process_sees_every_change_at_once(accounts: Accounts, tmp_path: Path, change: str) -> None:
    accounts.add("ann", WORD, "annotator")
    server = Accounts(tmp_path / "accounts.json", hasher=QUICK)
    before = server.find("ann")
    assert before is not None
    CHANGES[change](accounts)
    after = server.find("ann")
    assert after is None or after[1] != before[1], "sessions from before would live on"
    assert (after is None) == (change == "removed")


@pytest.mark.parametrize("change", ["remove", "set_password", "set_role"])
def test_an_account_that_is_not_there_cannot_be_changed(accounts: Accounts, change: str) -> None:
    accounts.add("ann", WORD, "annotator")
    given = {"remove": (), "set_password": (WORD,), "set_role": ("admin",)}[change]
    with pytest.raises(UsageError, match="no such account"):
        getattr(accounts, change)("bob", *given)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"format": 2, "accounts": {}}',
        '{"accounts": {"../x": {"role": "admin", "hash": "", "serial": ""}}}',
        '{"accounts": {"ann": {"role": "root", "hash": "", "serial": ""}}}',
    ],
)  # fmt: skip
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    (tmp_path / "accounts.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        Accounts(tmp_path / "accounts.json", hasher=QUICK).verify("ann", WORD)


def test_an_account_with_a_hash_that_is_none_is_shut(tmp_path: Path) -> None:
    account = {"role": "admin", "hash": "plain text", "serial": "0"}
    (tmp_path / "accounts.json").write_text(json.dumps({"accounts": {"ann": account}}))
    with pytest.raises(AuthRefused):
        Accounts(tmp_path / "accounts.json", hasher=QUICK).verify("ann", "plain text")


def test_a_full_disk_leaves_the_accounts_as_they_were(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.add("ann", WORD, "annotator")

    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "")

    monkeypatch.setattr("wardround.client.workbench.roster.write_text", full)
    with pytest.raises(StorageError):
        accounts.remove("ann")
    accounts.verify("ann", WORD)


def test_what_an_administrator_does_while_somebody_chooses_a_password_holds(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.add("ann", WORD, "annotator")
    real = accounts._hashed
    once = []

    def meanwhile(name: str, password: str) -> str:
        monkeypatch.undo()
        once.append(accounts.reset("ann"))
        return real(name, password)

    monkeypatch.setattr(accounts, "_hashed", meanwhile)
    with pytest.raises(AuthRefused, match="changed meanwhile"):
        accounts.change_password("ann", WORD, "another few words")
    assert accounts.verify("ann", once[0])[0].must_change
    with pytest.raises(AuthRefused):
        accounts.verify("ann", "another few words")


def test_who_is_called_otherwise_at_the_service_is_the_same_person_here(accounts: Accounts) -> None:
    accounts.add("ann", WORD, "annotator")
    assert accounts.from_provider("eva", "digest of eva", "annotator")[0].name == "eva"
    assert accounts.from_provider("mrs.eva", "digest of eva", "reviewer")[0].roles == {"annotator", "reviewer"}
    assert accounts.from_provider("No Name", "digest of eva", "annotator")[0].name == "eva"
    assert [one.name for one in accounts.views()] == ["ann", "eva"]
    for name, subject in (("eva", "digest of another"), ("ann", "digest of another"), ("No Name", "digest of another")):
        with pytest.raises(UsageError):
            accounts.from_provider(name, subject, "admin")
    accounts.set_disabled("eva", True)
    with pytest.raises(AuthRefused, match="disabled"):
        accounts.from_provider("another.name", "digest of eva", "annotator")
    assert [one.name for one in accounts.views()] == ["ann", "eva"]

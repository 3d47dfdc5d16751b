import datetime
import json
import threading
from pathlib import Path

import pytest

from wardround.deploy.coordinator.registry import Member, Registry
from wardround.deploy.provisioning import (
    Authority,
    Enrolment,
    Invitation,
    make_enrolment,
    make_invitation,
    make_node_key,
    read_enrolment,
)
from wardround.errors import AuthRefused, StorageError, UsageError

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("ca"), "fed.example.org", NOW)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "sites")


@pytest.fixture
def invited(authority: Authority, registry: Registry) -> Invitation:
    return invite(authority, registry)


def invite(authority: Authority, registry: Registry, site: str = "north", *, renew: bool = False) -> Invitation:
    invitation, _ = make_invitation(authority, "https://fed.example.org:8443", site, NOW)
    registry.invite(invitation, NOW, renew=renew)
    return invitation


def answer(invitation: Invitation, folder: Path) -> Enrolment:
    path = folder / f"{invitation.site}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_enrolment(invitation, make_node_key(folder / "keys")))
    return read_enrolment(path)


def register(registry: Registry, node: int = 2**63 + 1, site: str = "north") -> Member:
    registry.registered(registry.get(site), node, NOW)
    return registry.get(site)


def test_a_site_comes_in(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    assert registry.get("north").state == "invited"
    enrolment = answer(invited, tmp_path)
    member = registry.enrol(enrolment, NOW)
    assert (member.state, member.public_key) == ("enrolled", enrolment.public_key)
    assert register(registry).state == "registered"
    assert [found.name for found in registry.members()] == ["north"]
    assert set(registry.get("north").times or {}) == {"invited-at", "enrolled-at", "registered-at"}


def test_nodes_of_64_bits_survive_the_file(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    registry.enrol(answer(invited, tmp_path), NOW)
    assert register(registry, 2**64 - 1).node_id == 2**64 - 1


def test_the_token_itself_is_not_kept(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    assert invited.token not in (tmp_path / "sites" / "north.json").read_text()


def test_an_invitation_is_good_once(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    first = answer(invited, tmp_path / "a")
    registry.enrol(first, NOW)
    # The very same file again is a slip of the hand, not an attack.
    assert registry.enrol(first, NOW).state == "enrolled"
    with pytest.raises(AuthRefused, match="answered before"):
        registry.enrol(answer(invited, tmp_path / "b"), NOW)


def test_who_was_not_invited_does_not_come_in(
    authority: Authority, registry: Registry, invited: Invitation, tmp_path: Path
) -> None:
    stranger, _ = make_invitation(authority, "https://fed.example.org:8443", "south", NOW)
    with pytest.raises(AuthRefused, match="nobody invited"):
        registry.enrol(answer(stranger, tmp_path), NOW)
    other, _ = make_invitation(authority, "https://fed.example.org:8443", "north", NOW)
    with pytest.raises(AuthRefused, match="another invitation"):
        registry.enrol(answer(other, tmp_path), NOW)


def test_an_invitation_that_has_expired_is_not_answered(
    registry: Registry, invited: Invitation, tmp_path: Path
) -> None:
    with pytest.raises(AuthRefused, match="expired"):
        registry.enrol(answer(invited, tmp_path), NOW + 15 * DAY)


def test_two_sites_do_not_share_a_key(authority: Authority, registry: Registry, tmp_path: Path) -> None:
    registry.enrol(answer(invite(authority, registry, "north"), tmp_path), NOW)
    with pytest.raises(AuthRefused, match="same key"):
        registry.enrol(answer(invite(authority, registry, "south"), tmp_path), NOW)


def test_a_key_is_renewed_while_the_old_one_stays_good(
    authority: Authority, registry: Registry, invited: Invitation, tmp_path: Path
) -> None:
    registry.enrol(answer(invited, tmp_path / "old"), NOW)
    register(registry, 7)
    with pytest.raises(UsageError, match="--renew"):
        invite(authority, registry)
    again = invite(authority, registry, renew=True)
    assert registry.get("north").state == "registered"
    member = registry.enrol(answer(again, tmp_path / "new"), NOW)
    assert (member.state, member.node_id, member.retired) == ("enrolled", None, (7,))
    registry.forgotten("north", 7)
    assert registry.get("north").retired == ()


def test_an_evicted_site_needs_a_new_invitation(
    authority: Authority, registry: Registry, invited: Invitation, tmp_path: Path
) -> None:
    first = answer(invited, tmp_path / "old")
    registry.enrol(first, NOW)
    register(registry, 7)
    assert registry.evict("north", NOW).retired == (7,)
    assert registry.evict("north", NOW).state == "evicted"
    with pytest.raises(AuthRefused):
        registry.enrol(first, NOW)
    again = invite(authority, registry)
    with pytest.raises(AuthRefused, match="evicted"):
        registry.enrol(answer(again, tmp_path / "old"), NOW)
    assert registry.enrol(answer(again, tmp_path / "new"), NOW).state == "enrolled"


def test_an_eviction_withdraws_an_open_invitation(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    registry.evict("north", NOW)
    with pytest.raises(AuthRefused):
        registry.enrol(answer(invited, tmp_path), NOW)


def test_what_the_superlink_said_too_late_is_not_noted(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    member = registry.enrol(answer(invited, tmp_path), NOW)
    registry.evict("north", NOW)
    registry.registered(member, 7, NOW)
    assert registry.get("north").state == "evicted"


def test_an_unknown_site_is_named(registry: Registry, invited: Invitation) -> None:
    with pytest.raises(UsageError, match="north"):
        registry.evict("south", NOW)


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', "[]"])
def test_a_damaged_file_is_named(registry: Registry, invited: Invitation, tmp_path: Path, content: str) -> None:
    (tmp_path / "sites" / "north.json").write_text(content)
    with pytest.raises(StorageError, match="north"):
        registry.members()


def test_a_state_that_nobody_knows_is_damage(registry: Registry, invited: Invitation, tmp_path: Path) -> None:
    path = tmp_path / "sites" / "north.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "king"}))
    with pytest.raises(StorageError):
        registry.get("north")


def test_nothing_is_lost_when_two_write_at_once(authority: Authority, registry: Registry, tmp_path: Path) -> None:
    names = [f"site-{number}" for number in range(8)]
    threads = [threading.Thread(target=invite, args=(authority, registry, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [member.name for member in registry.members()] == names

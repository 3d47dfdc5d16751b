import datetime
from pathlib import Path

import pytest

from wardround.deploy.coordinator.admission import Admission
from wardround.deploy.coordinator.control import Node
from wardround.deploy.coordinator.registry import Registry
from wardround.deploy.provisioning import Enrolment, Invitation, make_node_key
from wardround.deploy.provisioning.keys import public_key_pem
from wardround.errors import AuthRefused, ConnectionFailed

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)


class SuperLink:
    """Remembers nodes as a SuperLink does."""

    def __init__(self) -> None:
        self.known: dict[int, Node] = {}
        self.next = 1
        self.refused: set[str] = set()
        self.down = False

    def register(self, name: str, public_key: bytes) -> int:
        self.check()
        if name in self.refused:
            raise AuthRefused("no")
        node, self.next = self.next, self.next + 1
        self.known[node] = Node(node, name, "registered", public_key, 0)
        return node

    def unregister(self, node: int) -> None:
        self.check()
        self.known.pop(node, None)

    def nodes(self) -> list[Node]:
        self.check()
        return list(self.known.values())

    def check(self) -> None:
        if self.down:
            raise ConnectionFailed("down")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "sites")


def enrol(registry: Registry, folder: Path, site: str) -> None:
    token = f"{site}-{folder.name}"
    invitation = Invitation("https://a:1", b"", site, token, NOW)
    registry.invite(invitation, NOW, renew=True)
    registry.enrol(Enrolment(site, make_node_key(folder / site).public, token), NOW)


def admission(registry: Registry, link: SuperLink) -> Admission:
    return Admission(registry, link, lambda: NOW)


def test_an_enrolled_site_is_let_in(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    enrol(registry, tmp_path, "north")
    admission(registry, link).step()
    member = registry.get("north")
    assert (member.state, member.node_id) == ("registered", 1)
    assert link.known[1].name == "north"
    assert link.known[1].public_key.startswith(b"-----BEGIN PUBLIC KEY-----")


def test_nothing_is_done_twice(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    enrol(registry, tmp_path, "north")
    ours = admission(registry, link)
    ours.step()
    ours.step()
    admission(registry, link).step()
    assert list(link.known) == [1]


def test_a_site_that_only_was_invited_is_not_let_in(registry: Registry) -> None:
    link = SuperLink()
    registry.invite(Invitation("https://a:1", b"", "north", "token", NOW), NOW, renew=False)
    admission(registry, link).step()
    assert link.known == {}


def test_an_evicted_site_is_cut_off(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    enrol(registry, tmp_path, "north")
    ours = admission(registry, link)
    ours.step()
    registry.evict("north", NOW)
    ours.step()
    assert link.known == {}
    assert registry.get("north").retired == ()


def test_a_renewed_key_replaces_the_old_one(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    ours = admission(registry, link)
    enrol(registry, tmp_path / "old", "north")
    ours.step()
    old = link.known[1].public_key
    enrol(registry, tmp_path / "new", "north")
    ours.step()
    ours.step()
    assert list(link.known) == [2]
    assert link.known[2].public_key != old
    assert registry.get("north").node_id == 2


def test_a_superlink_that_lost_its_database_learns_all_sites_again(registry: Registry, tmp_path: Path) -> None:
    enrol(registry, tmp_path, "north")
    enrol(registry, tmp_path, "south")
    admission(registry, SuperLink()).step()
    fresh = SuperLink()
    fresh.next = 10
    admission(registry, fresh).step()
    assert [registry.get(name).node_id for name in ("north", "south")] == [10, 11]


def test_a_database_from_before_an_eviction_lets_nobody_in_again(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    for site in ("north", "south", "east"):
        enrol(registry, tmp_path / "old", site)
    admission(registry, link).step()
    backup = dict(link.known)
    registry.evict("north", NOW)
    enrol(registry, tmp_path / "new", "south")
    ours = admission(registry, link)
    ours.step()
    ours.step()
    assert {node.name for node in link.known.values()} == {"east", "south"}
    good = {node.public_key for node in link.known.values()}
    link.known = backup
    restarted = admission(registry, link)
    restarted.step()
    restarted.step()
    assert {node.public_key for node in link.known.values()} == good
    assert len(link.known) == 2


def test_a_site_that_the_superlink_knows_and_the_registry_not_yet_keeps_its_key(
    registry: Registry, tmp_path: Path
) -> None:
    """Killed in between: its key would be burnt if it were turned away."""
    link = SuperLink()
    enrol(registry, tmp_path, "north")
    link.register("north", public_key_pem(registry.get("north").public_key))
    admission(registry, link).step()
    assert 1 in link.known


def test_one_site_that_is_refused_does_not_hold_up_the_others(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    link.refused.add("north")
    enrol(registry, tmp_path, "north")
    enrol(registry, tmp_path, "south")
    admission(registry, link).step()
    assert registry.get("north").state == "enrolled"
    assert registry.get("south").state == "registered"


def test_while_the_superlink_is_down_nothing_is_lost(registry: Registry, tmp_path: Path) -> None:
    link = SuperLink()
    ours = admission(registry, link)
    ours.step()
    enrol(registry, tmp_path, "north")
    link.down = True
    with pytest.raises(ConnectionFailed):
        ours.step()
    link.down = False
    ours.step()
    assert registry.get("north").state == "registered"

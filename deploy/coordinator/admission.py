"""Tells the SuperLink who may connect, until it agrees with the registry."""

import datetime
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from wardround.deploy.coordinator.control import Node
from wardround.deploy.coordinator.registry import Member, Registry
from wardround.deploy.provisioning.keys import public_key_pem
from wardround.errors import AuthRefused

log = logging.getLogger(__name__)


class Door(Protocol):
    """What is needed of the SuperLink; see :class:`wardround.deploy.coordinator.control.Control`."""

    def register(self, name: str, public_key: bytes) -> int:
        """Let the holder of a key connect."""

    def unregister(self, node: int) -> None:
        """Let a node connect no more."""

    def nodes(self) -> list[Node]:
        """All nodes that ever were."""


class Admission:
    """Makes the SuperLink agree with the registry. Call :meth:`step` again and again.

    Parameters
    ----------
    registry
        Who may take part.
    door
        The SuperLink.
    now
        UTC.
    """

    def __init__(
        self,
        registry: Registry,
        door: Door,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._registry = registry
        self._door = door
        self._now = now
        self._compared = False

    def step(self) -> None:
        """Pass on what has changed.

        Raises
        ------
        ConnectionFailed, AuthRefused
            If the SuperLink cannot be asked; the next step tries again.
        StorageError
            If the registry cannot be read or written.
        """
        members = self._registry.members()
        if not self._compared:
            # Once is enough: a database that was lost, or restored from a backup, comes with a new start.
            known = {node.id: node for node in self._door.nodes() if node.status != "unregistered"}
            for member in members:
                if member.state == "registered" and member.node_id not in known:
                    self._register(member)
            self._turn_away(members, known.values())
            self._compared = True
        for member in members:
            for node in member.retired:
                self._door.unregister(node)
                self._registry.forgotten(member.name, node)
                log.info("site %s may not connect as node %d any more", member.name, node)
            if member.state == "enrolled" and not member.retired:
                self._register(member)

    def _turn_away(self, members: Iterable[Member], nodes: Iterable[Node]) -> None:
        """A database from before an eviction, or before a new key, would let in who may not come in any more."""
        good = {public_key_pem(member.public_key) for member in members if member.state in ("enrolled", "registered")}
        for node in nodes:
            if node.public_key not in good:
                self._door.unregister(node.id)
                log.warning("node %d has a key that is no site's; it may not connect any more", node.id)

    def _register(self, member: Member) -> None:
        try:
            node = self._door.register(member.name, public_key_pem(member.public_key))
        except AuthRefused as error:
            log.error("%s", error)
            return
        self._registry.registered(member, node, self._now())
        log.info("site %s may connect as node %d", member.name, node)

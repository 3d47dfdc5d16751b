"""Hosts of their own, and a bad line between them: the kernel drops packets, and the cable is pulled."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import namespaces
import pytest
from faults import Ground
from federation import Federation, Reference

pytestmark = pytest.mark.long

HUB, SITES = "10.79.0.2", ("10.79.0.11", "10.79.0.12")
LOSS = """
table inet bad {{
    chain inbound {{
        type filter hook input priority -10
        iifname "outer" {which} counter drop
    }}
    chain outbound {{
        type filter hook output priority -10
        oifname "outer" {which} counter drop
    }}
}}
"""
"""These packets are lost in either direction, and nobody is told."""
SOME, ALL = "numgen random mod 100 < 3", ""


@contextmanager
def losing(host: namespaces.Host, which: str) -> Iterator[None]:
    """A host that loses packets as long as the block lasts."""
    host.run("nft", "-f", "-", given=LOSS.format(which=which))
    try:
        yield
        lost = re.findall(r"packets (\d+)", host.run("nft", "list", "table", "inet", "bad"))
        assert len(lost) == 2
        assert all(map(int, lost))
    finally:
        host.run("nft", "delete", "table", "inet", "bad")


class Far:
    """A federation whose sites are on other hosts than its coordinator."""

    def __init__(self, ground: Ground, hosts: dict[str, namespaces.Host]) -> None:
        self.ground = ground
        self.hosts = hosts


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, reference: Reference, _nothing_stands: None) -> Iterator[Far]:
    if why_not := namespaces.why_not():
        pytest.skip(why_not)
    options = ["--name", HUB, "--port", "8443", "--runtime-port", "8444"]
    federation = Federation(tmp_path_factory.mktemp("far"), reference, options)
    with ExitStack() as stack:
        switch = stack.enter_context(namespaces.switch(f"wc{os.getpid()}"))
        hosts = {"coordinator": switch.host("hub", f"{HUB}/24")}
        for name, address in zip(reference.sites, SITES, strict=True):
            hosts[name] = switch.host(name.replace("_", "-"), f"{address}/24")
            hosts[name].wall()
        places = {name: host.prefix for name, host in hosts.items()}
        yield Far(stack.enter_context(Ground(federation, places=places)), hosts)


def test_packets_are_lost(far: Far) -> None:
    """The kernels send them again, later and later, and every part waits for them."""
    with ExitStack() as stack:
        for name in far.ground.federation.reference.sites:
            stack.enter_context(losing(far.hosts[name], SOME))
        course = far.ground.start("lossy")
        course.finish()
    course.check()


def test_the_cable_is_pulled(far: Far) -> None:
    """No packet says that the line is gone, as it is when a router loses its power."""
    site = far.hosts[far.ground.federation.reference.sites[0]]
    course = far.ground.start("pulled")
    course.reach(far.ground.federation.reference.plan["rounds"], "mid-upload", "supernode")
    with losing(site, ALL):
        time.sleep(60)
    course.back = time.monotonic()
    course.finish()
    course.check()

"""Hosts of their own for tests: Linux network namespaces, joined by virtual cables. Root is needed.

::

      hub ──┐
    north ──┤ switch      every host's inbound connections can be dropped by its own packet filter
    south ──┤
    proxy ──┘
      └────── east        a host that reaches nobody but the proxy
"""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

FILTER = """
table inet wall {
    chain inbound {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
    }
}
"""
"""What a hospital's firewall does: answers to what was asked from inside may come in, and nothing else."""


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Parameters
    ----------
    name
        Its name on this machine.
    """

    name: str

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run there."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str, given: str | None = None) -> str:
        """Run a command there that must succeed."""
        return _run(*self.prefix, *command, given=given)

    def reaches(self, address: str, port: int, patience: float = 2.0) -> str:
        """What comes of a connection from there: ``open``, ``refused``, ``silence`` or ``unreachable``."""
        code = (
            "import socket, sys\n"
            "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))\n"
            "except ConnectionRefusedError: print('refused')\n"
            "except TimeoutError: print('silence')\n"
            "except OSError: print('unreachable')\n"
            "else: print('open')\n"
        )
        return self.run(sys.executable, "-S", "-c", code, address, str(port), str(patience)).strip()

    def wall(self) -> None:
        """Drop every connection from outside."""
        self.run("nft", "-f", "-", given=FILTER)


class Switch:
    """Hosts that are made as they are asked for, and removed together."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._hosts: list[Host] = []
        self._ports = 0
        self._switch = self.host("switch")
        _run("ip", "-n", self._switch.name, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch.name, "link", "set", "bridge", "up")

    def host(self, name: str, address: str | None = None) -> Host:
        """A new host, plugged into the switch if it has an address such as ``10.77.0.2/24``."""
        host = Host(f"{self._mark}-{name}")
        _run("ip", "netns", "add", host.name)
        self._hosts.append(host)
        _run("ip", "-n", host.name, "link", "set", "lo", "up")
        if address is not None:
            self._ports += 1
            port = f"port{self._ports}"
            self.cable(host, "outer", address, self._switch, port)
            _run("ip", "-n", self._switch.name, "link", "set", port, "master", "bridge")
        return host

    def cable(  # noqa: PLR0917
        self, one: Host, device: str, address: str, other: Host, end: str, other_address: str = ""
    ) -> None:
        """Join two hosts."""
        _run("ip", "link", "add", device, "netns", one.name, "type", "veth", "peer", "name", end, "netns", other.name)
        for host, name, ip in ((one, device, address), (other, end, other_address)):
            if ip:
                _run("ip", "-n", host.name, "addr", "add", ip, "dev", name)
            _run("ip", "-n", host.name, "link", "set", name, "up")

    def close(self) -> None:
        """Remove every host."""
        for host in reversed(self._hosts):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


@contextmanager
def switch(mark: str) -> Iterator[Switch]:
    """A switch that is removed at the end, with all hosts. `mark` keeps their names apart from others'."""
    made = Switch(mark)
    try:
        yield made
    finally:
        made.close()


def why_not() -> str:
    """Why hosts cannot be made here; empty where they can."""
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not installed"
    name = f"wr-try-{threading.get_ident()}"
    try:
        _run("ip", "netns", "add", name)
    except AssertionError:
        return "network namespaces cannot be made: that takes root"
    try:
        Host(name).wall()
    except AssertionError:
        return "the kernel has no packet filter in a namespace"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return ""


def _run(*command: str, given: str | None = None) -> str:
    answer = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
    return answer.stdout

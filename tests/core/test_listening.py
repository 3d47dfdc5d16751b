"""A port is taken, or somebody is told why not and what to do; TLS is a modern one."""

import socket
import ssl

import pytest

from wardround.errors import ConnectionFailed
from wardround.listening import bind, modern


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with bind("127.0.0.1", 0, who="the page", fix="choose another") as first:
        first.listen()
        port = first.getsockname()[1]
        assert not first.get_inheritable()
        with pytest.raises(ConnectionFailed, match=f"the page cannot listen on 127.0.0.1:{port}") as refused:
            bind("127.0.0.1", port, who="the page", fix="choose another")
    assert refused.value.fix == "choose another"


def test_an_address_of_either_family_is_taken() -> None:
    with bind("127.0.0.1", 0, who="it", fix="") as four:
        assert four.family == socket.AF_INET
    if socket.has_ipv6:
        with bind("::1", 0, who="it", fix="") as six:
            assert six.family == socket.AF_INET6


def test_old_tls_is_not_spoken() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    modern(context)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    modern(None)

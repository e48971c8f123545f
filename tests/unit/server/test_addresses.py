"""Free ports are found; for a port that cannot be used, the message names the option that changes it."""

from __future__ import annotations

import os
import socket

import pytest

from florence2.errors import ServerError
from florence2.server.addresses import choose_addresses


def test_port_0_means_a_free_port():
    """Choose three different ports that can be bound."""
    chosen = choose_addresses("localhost", 0, 0, 0)
    assert chosen.host == "127.0.0.1"
    ports = {chosen.http_port, chosen.grpc_port, chosen.metrics_port}
    assert len(ports) == 3
    for port in ports:
        socket.create_server((chosen.host, port)).close()


def test_clients_reach_all_addresses_over_the_loopback():
    """Treat 0.0.0.0 as an address only for listening, and as public."""
    everywhere = choose_addresses("0.0.0.0", 0, 0, 0)
    assert everywhere.client_host == "127.0.0.1" and not everywhere.is_loopback
    assert choose_addresses("localhost", 0, 0, 0).is_loopback


def test_taken_port_is_reported_with_its_option():
    """Tell the user which of the three to change."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is already in use; choose another with --metrics-port"):
            choose_addresses("127.0.0.1", 0, 0, port)


def test_just_closed_port_is_free():
    """Allow a server to restart at once, while its last connections are still closing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listening.accept()[0]:
            pass
    assert choose_addresses("127.0.0.1", port, 0, 0).http_port == port


@pytest.mark.parametrize(
    ("host", "ports", "words"),
    [
        ("127.0.0.1", (9000, 9000, 0), "port 9000 is given twice; choose another with --grpc-port"),
        ("127.0.0.1", (70000, 0, 0), "port 70000 does not exist; --http-port takes 1 to 65535"),
        ("127.0.0.1", (-1, 0, 0), "port -1 does not exist"),
        ("no-such-host.invalid", (0, 0, 0), "cannot listen on no-such-host.invalid: .*; choose another with --host"),
        ("192.0.2.1", (0, 0, 0), "cannot listen on 192.0.2.1"),
        ("::1", (0, 0, 0), "cannot listen on ::1"),
    ],
)
def test_unusable_addresses_are_refused_in_a_sentence(host, ports, words):
    """Report at once, in words, what the system would report late or as a number."""
    with pytest.raises(ServerError, match=words):
        choose_addresses(host, *ports)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_low_port_is_for_root():
    """Ports below 1024 are reserved."""
    with pytest.raises(ServerError, match="only root may listen on port 80; choose one from 1024 on with --http-port"):
        choose_addresses("127.0.0.1", 80, 0, 0)

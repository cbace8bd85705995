import socket

import pytest

from macmesh_rdma.addresses import split_address
from macmesh_rdma.errors import LocalAddressError, LocalLaneStateError
from macmesh_rdma.ring.reserved_port import ReservedPort, require_loopback


@pytest.mark.parametrize("host", ["192.168.1.7", "0.0.0.0", "::", "example.org", "localhost", ""])  # noqa: S104  refused
def test_only_loopback_addresses_are_taken(host: str) -> None:
    with pytest.raises(LocalAddressError, match="loopback"):
        require_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1"])
def test_loopback_addresses(host: str) -> None:
    assert require_loopback(host) == host


def test_a_reserved_port_is_given_to_nobody_else_but_can_be_bound_again() -> None:
    with ReservedPort("127.0.0.1") as reserved, ReservedPort("127.0.0.1") as other:
        assert reserved.address != other.address
        host, port = split_address(reserved.address)
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((host, port))
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            listener.listen()
            with socket.create_connection((host, port), timeout=5) as client:
                accepted, _ = listener.accept()
                accepted.close()
                assert client.getpeername() == (host, port)


def test_port_on_a_foreign_address_is_refused() -> None:
    with pytest.raises(LocalAddressError, match="cannot bind"):
        ReservedPort("192.0.2.1")


def test_ring_refuses_a_single_stage_and_foreign_hosts() -> None:
    from macmesh_rdma.ring.lane import open_ring  # noqa: PLC0415  imports mlx

    def never(_: str) -> None:
        raise AssertionError

    with ReservedPort("127.0.0.1") as reserved:
        with pytest.raises(LocalLaneStateError, match="one stage"):
            open_ring([reserved.address], 0, reserved, on_stall=never, timeout_seconds=1)
        with pytest.raises(LocalAddressError, match="loopback"):
            open_ring([reserved.address, "192.168.1.2:9"], 0, reserved, on_stall=never, timeout_seconds=1)

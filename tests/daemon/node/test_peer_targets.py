"""One gRPC target from the addresses of a peer."""

import pytest

from macmesh_daemon.node.peers import grpc_target


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["10.0.0.1:1"], "ipv4:10.0.0.1:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[fe80::1%en0]:1"], "ipv6:[fe80::1%en0]:1"),
        (["10.0.0.1:1", "[fd00::1]:1", "10.0.0.2:1"], "ipv4:10.0.0.1:1,10.0.0.2:1"),
        (["[fd00::1]:1", "10.0.0.1:1"], "ipv6:[fd00::1]:1"),
        (["mac.local:1", "10.0.0.1:1"], "dns:///mac.local:1"),
    ],
)
def test_all_addresses_of_the_first_family_are_tried(addresses: list[str], target: str) -> None:
    assert grpc_target(addresses) == target


def test_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one address"):
        grpc_target([])

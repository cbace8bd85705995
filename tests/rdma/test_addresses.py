import pytest

from macmesh_rdma.addresses import split_address
from macmesh_rdma.errors import LocalAddressError


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    for bad in ("127.0.0.1", "127.0.0.1:", ":80", "a:b", "a:0", "a:65536"):
        with pytest.raises(LocalAddressError, match="host:port"):
            split_address(bad)

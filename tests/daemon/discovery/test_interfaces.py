import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.discovery import InterfaceAddress, choose_interfaces
from macmesh_daemon.discovery.interfaces import read_interfaces

MAC = (
    InterfaceAddress("lo0", "127.0.0.1", 1),
    InterfaceAddress("lo0", "::1", 1),
    InterfaceAddress("lo0", "fe80::1", 1),
    InterfaceAddress("en0", "192.168.1.5", 11),
    InterfaceAddress("en0", "fe80::10", 11),
    InterfaceAddress("bridge0", "169.254.7.7", 12),
    InterfaceAddress("bridge100", "192.168.64.1", 13),
    InterfaceAddress("awdl0", "fe80::20", 14),
    InterfaceAddress("llw0", "fe80::21", 15),
    InterfaceAddress("utun3", "100.64.0.9", 16),
    InterfaceAddress("anpi0", "fe80::22", 17),
    InterfaceAddress("vmenet0", "10.9.9.9", 18),
)


def test_a_mac_uses_its_networks_and_the_thunderbolt_bridge() -> None:
    choice = choose_interfaces(MAC, ())
    assert choice.texts == ("169.254.7.7", "192.168.1.5")
    assert not choice.is_ipv6


def test_ipv6_is_used_where_there_is_no_ipv4() -> None:
    choice = choose_interfaces([item for item in MAC if not item.is_ipv4], ())
    assert choice.texts == ("fe80::10",)
    assert choice.is_ipv6


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (["127.0.0.1"], ("127.0.0.1",)),
        (["en0"], ("192.168.1.5",)),
        (["utun3", "192.168.1.5"], ("192.168.1.5", "100.64.0.9")),
        (["en9"], ()),
    ],
)
def test_the_configuration_has_the_last_word(wanted: list[str], texts: tuple[str, ...]) -> None:
    assert choose_interfaces(MAC, wanted).texts == texts


@given(st.permutations(MAC))
def test_the_order_of_the_system_does_not_matter(order: list[InterfaceAddress]) -> None:
    assert choose_interfaces(order, ()) == choose_interfaces(MAC, ())


def test_this_machine_has_a_loopback_interface() -> None:
    assert "127.0.0.1" in {item.address for item in read_interfaces()}

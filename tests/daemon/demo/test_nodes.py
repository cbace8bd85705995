"""The configuration files that the demo writes."""

import tomllib

from macmesh_daemon.demo.nodes import free_ports, toml_of


def test_flat_values_survive_toml() -> None:
    values = {"a": 'x\\y "z"', "b": 3, "c": 1.5, "d": True, "e": ["127.0.0.1", "ü"]}

    assert tomllib.loads(toml_of(values)) == values


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5

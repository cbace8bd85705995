"""What macOS's tools say about RDMA over Thunderbolt. The samples follow the tools' known formats."""

import contextlib
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_rdma.jaccl.facts import (
    HARDWARE_PORTS,
    IBV_DEVINFO,
    PROFILER,
    RDMA_CTL,
    RdmaFacts,
    facts_from,
    rdma_facts,
    run_command,
)
from macmesh_rdma.jaccl.ibv import parse_ibv_devices, parse_ibv_devinfo, parse_rdma_ctl
from macmesh_rdma.jaccl.thunderbolt import (
    ThunderboltFormatError,
    ThunderboltPort,
    interface_of,
    parse_hardware_ports,
    parse_thunderbolt,
)

RECORDED = Path(__file__).parent / "recorded"
DEVINFO = (RECORDED / "ibv_devinfo.txt").read_text()
OUTPUTS = {
    RDMA_CTL: "enabled\n",
    IBV_DEVINFO: DEVINFO,
    PROFILER: (RECORDED / "thunderbolt.json").read_text(),
    HARDWARE_PORTS: (RECORDED / "hardware_ports.txt").read_text(),
}
OURS = "0A3248FD-13DA-4F5B-9167-7C469F3542"
THEIRS = "88F10ACA-5CAA-4F5D-8361-03EED54ACB"


def test_devices_are_listed() -> None:
    assert parse_ibv_devices((RECORDED / "ibv_devices.txt").read_text()) == (
        "rdma_en3",
        "rdma_en4",
        "rdma_en5",
    )
    empty = "device              node GUID\n------          ----------------\n"
    assert parse_ibv_devices(empty) == ()


def test_devices_in_detail() -> None:
    devices = parse_ibv_devinfo(DEVINFO)
    assert [(device.name, device.interface, device.transport) for device in devices] == [
        (f"rdma_en{number}", f"en{number}", "Thunderbolt") for number in (3, 4, 5)
    ]
    assert [device.port.state for device in devices if device.port] == [
        "PORT_ACTIVE",
        "PORT_ACTIVE",
        "PORT_DOWN",
    ]
    assert devices[0].limit("max_qp") == 10
    assert devices[0].limit("max_mr") == 100
    assert devices[0].limit("max_mr_size") is None
    first = devices[0].port
    assert first is not None
    assert first.link_layer == "Thunderbolt"
    assert first.gids[1].ipv4_mapped == ipaddress.IPv4Address("169.254.10.1")
    assert [device.port.has_ipv4_gid for device in devices if device.port] == [True, True, False]
    assert devices[2].port is not None
    assert devices[2].port.gids == ()


@settings(max_examples=30)
@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    parse_ibv_devices(text)
    parse_ibv_devinfo("hca_id: x\nport: 1\n" + text)
    parse_hardware_ports(text)
    parse_rdma_ctl(text)
    with contextlib.suppress(ThunderboltFormatError):
        parse_thunderbolt(text)


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["SPThunderboltDataType", "_items", "domain_uuid_key", "receptacle_1_tag", "x"]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_can_be_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"SPThunderboltDataType": [value]})):
        with contextlib.suppress(ThunderboltFormatError):
            parse_thunderbolt(text)


def test_thunderbolt_ports() -> None:
    ports = parse_thunderbolt(OUTPUTS[PROFILER])
    interfaces = parse_hardware_ports(OUTPUTS[HARDWARE_PORTS])
    assert ports[3] == ThunderboltPort("1", f"{OURS}00", 80.0, (f"{THEIRS}00",))
    assert ports[1] == ThunderboltPort("3", f"{OURS}02")
    assert ports[0] == ThunderboltPort("4", f"{OURS}03", 80.0, (), ("Envoy Ultra",))
    assert [interface_of(port, interfaces) for port in ports] == ["", "en5", "en4", "en3"]


async def recorded(command: Sequence[str]) -> str:
    return OUTPUTS[tuple(command)]


async def test_facts_of_a_node() -> None:
    facts = await rdma_facts(recorded, macos_build="25C56", mlx_version="0.32.4", platform="darwin")
    assert [(end.device, end.domain_uuid, end.peer_uuids) for end in facts.ends] == [
        ("rdma_en3", f"{OURS}00", (f"{THEIRS}00",)),
        ("rdma_en4", f"{OURS}01", (f"{THEIRS}01",)),
        ("rdma_en5", f"{OURS}02", ()),
    ]
    assert [end.refused for end in facts.ends] == [
        "",
        "",
        "nothing is connected to Thunderbolt port 3, no Mac",
    ]
    assert (facts.max_queue_pairs, facts.max_memory_regions, facts.refused) == (10, 100, "")
    assert RdmaFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    with pytest.raises(ValueError, match="no RDMA facts"):
        RdmaFacts.from_json({"ends": [{}]})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("PORT_ACTIVE (4)", "PORT_INIT (2)", "rdma_en3 is in state PORT_INIT, not PORT_ACTIVE"),
        ("0000:0000:0000:0000:0000:ffff:a9fe:0a01", "fe80::1", "rdma_en3 has no GID for IPv4"),
        ("fe80:0000:0000:0000:3494:7cff:fecd:0503", "::", "rdma_en3 has no link-local GID"),
        ('"80 Gb/s"', '"40 Gb/s"', "the link runs at 40 Gb/s"),
        ("		port:	1", "		spare:	1", "rdma_en3 has no port"),
    ],
)
async def test_each_fact_that_decides(old: str, new: str, told: str) -> None:
    async def changed(command: Sequence[str]) -> str:
        text = OUTPUTS[tuple(command)]
        assert old in DEVINFO + OUTPUTS[PROFILER]
        return text.replace(old, new)

    facts = await rdma_facts(changed, macos_build="", mlx_version="", platform="darwin")
    assert facts.ends[0].refused.startswith(told)


async def test_nodes_without_rdma_say_why() -> None:
    async def refuse(command: Sequence[str]) -> str:
        raise FileNotFoundError(command[0])

    async def disabled(_command: Sequence[str]) -> str:
        return "disabled\n"

    async def garbage(command: Sequence[str]) -> str:
        return "enabled" if tuple(command) == RDMA_CTL else "nonsense"

    told = [
        (await rdma_facts(runner, macos_build="", mlx_version="", platform=platform)).refused
        for runner, platform in [
            (recorded, "linux"),
            (refuse, "darwin"),
            (disabled, "darwin"),
            (garbage, "darwin"),
        ]
    ]
    assert "macOS only" in told[0]
    assert "rdma_ctl" in told[1]
    assert "not enabled" in told[2]
    assert "no list of Thunderbolt ports" in told[3]
    assert "no RDMA device" in facts_from([], parse_thunderbolt(OUTPUTS[PROFILER]), {}).refused
    assert "belongs to" in facts_from(parse_ibv_devinfo(DEVINFO), [], {}).refused


async def test_commands_are_run() -> None:
    assert await run_command(["echo", "enabled"]) == "enabled\n"
    with pytest.raises(OSError, match="exit status 1"):
        await run_command(["false"])
    with pytest.raises(OSError, match="no-such"):
        await run_command(["/no-such-program"])

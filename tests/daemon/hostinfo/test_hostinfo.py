import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh.v1 import types_pb2
from macmesh_daemon.config import Config
from macmesh_daemon.hostinfo import (
    LocalProbeError,
    NodeFacts,
    bandwidth_gb_per_s,
    capped,
    collect_facts,
    linux_usable_bytes,
    metal_usable_bytes,
    published_bandwidth_gb_per_s,
)
from macmesh_daemon.hostinfo.facts import facts_of_mac
from macmesh_daemon.hostinfo.linux import limited_ram_bytes, parse_cpu_name
from macmesh_daemon.hostinfo.macos import MacFacts, facts_from, parse_has_battery
from macmesh_daemon.hostinfo.probe import BandwidthRecord, parse_record, read_record, write_record
from macmesh_daemon.hostinfo.probe_main import measure_gb_per_s

GIB = 1 << 30

SYSCTL_MACBOOK = """machdep.cpu.brand_string: Apple M4 Max
hw.memsize: 137438953472
hw.ncpu: 16
iogpu.wired_limit_mb: 0
hw.model: Mac16,5
"""
SYSCTL_STUDIO = """machdep.cpu.brand_string: Apple M3 Ultra
hw.memsize: 549755813888
hw.ncpu: 32
iogpu.wired_limit_mb: 480000
hw.model: Mac15,14
"""
GPU = """+-o AGXAcceleratorG16X  <class AGXAcceleratorG16X, id 0x100000412, registered, matched, active>
    {
      "IOClass" = "AGXAcceleratorG16X"
      "gpu-core-count" = 40
      "model" = "Apple M4 Max"
    }
"""
BATTERY_MACBOOK = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22741091)\t100%; charged; 0:00 remaining present: true
"""
BATTERY_STUDIO = "Now drawing from 'AC Power'\n"
BATTERY_UPS = """Now drawing from 'AC Power'
 -Back-UPS ES 700G (id=41746432)\t100%; charged; 0:00 remaining present: true
"""


def test_the_facts_mirror_the_wire_contract() -> None:
    # What is told later, once it is known.
    later = {"rdma_json"}
    told = {f.name for f in types_pb2.NodeFacts.DESCRIPTOR.fields}
    assert set(NodeFacts.__dataclass_fields__) == told - later
    assert later < told


def test_a_macbook_is_read_from_what_macos_prints() -> None:
    mac = facts_from(SYSCTL_MACBOOK, GPU, BATTERY_MACBOOK)
    assert mac == MacFacts("Apple M4 Max", 128 * GIB, 16, 0, "Mac16,5", 40, portable=True)
    facts = facts_of_mac(mac, usable_cap_bytes=0)
    assert (facts.chip, facts.ram_bytes, facts.cpu_count) == ("Apple M4 Max", 128 * GIB, 16)
    assert facts.usable_bytes == 96 * GIB
    assert facts.table_bandwidth_gb_per_s == 546.0
    assert facts.portable


def test_a_mac_studio_with_a_raised_limit_uses_the_limit() -> None:
    mac = facts_from(SYSCTL_STUDIO, "", BATTERY_STUDIO)
    assert not mac.portable
    facts = facts_of_mac(mac, usable_cap_bytes=0)
    assert facts.usable_bytes == 480_000 << 20
    assert facts.table_bandwidth_gb_per_s == 819.0
    assert facts_of_mac(mac, usable_cap_bytes=27 * 10**9).usable_bytes == 27 * 10**9


def test_an_uninterruptible_power_supply_is_no_battery() -> None:
    assert parse_has_battery(BATTERY_MACBOOK)
    assert not parse_has_battery(BATTERY_UPS)


@given(st.text(), st.text(), st.text())
def test_any_output_is_read_without_failing(sysctl: str, gpu: str, battery: str) -> None:
    facts = facts_of_mac(facts_from(sysctl, gpu, battery), usable_cap_bytes=0)
    assert facts.ram_bytes >= facts.usable_bytes >= 0


@pytest.mark.parametrize(
    ("ram", "limit_mb", "usable"),
    [
        (24 * GIB, 0, 16 * GIB),
        (36 * GIB, 0, 24 * GIB),
        (48 * GIB, 0, 36 * GIB),
        (128 * GIB, 0, 96 * GIB),
        (128 * GIB, 122_880, 120 * GIB),
        (16 * GIB, 999_999, 16 * GIB),
    ],
)
def test_metal_wires_two_thirds_or_three_quarters_or_what_is_set(
    ram: int, limit_mb: int, usable: int
) -> None:
    assert metal_usable_bytes(ram, limit_mb) == usable


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_usable_memory_never_exceeds_memory_or_the_cap(ram: int, cap: int) -> None:
    usable = linux_usable_bytes(ram)
    assert ram // 2 <= usable <= ram
    assert 0 <= capped(usable, cap) <= usable
    assert capped(usable, 0) == usable
    if cap:
        assert capped(usable, cap) <= cap


@pytest.mark.parametrize(
    ("chip", "cores", "bandwidth"),
    [
        ("Apple M1", 8, 68.25),
        ("Apple M1 Ultra", 64, 800.0),
        ("Apple M3 Max", 0, 300.0),
        ("Apple M3 Max", 30, 300.0),
        ("Apple M3 Max", 40, 400.0),
        ("Apple M4 Max", 32, 410.0),
        ("Apple M4 Max", 40, 546.0),
        ("Apple M99", 400, 0.0),
        ("", 0, 0.0),
    ],
)
def test_the_chip_table(chip: str, cores: int, bandwidth: float) -> None:
    assert published_bandwidth_gb_per_s(chip, cores) == bandwidth


def test_linux_names_its_processor() -> None:
    assert parse_cpu_name("processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t: x\n") == "AMD EPYC 9B14"
    assert parse_cpu_name("") == ""


@pytest.mark.parametrize(("limit", "ram"), [("max\n", 64), ("32\n", 32), ("128", 64), ("", 64), ("-1", 64)])
def test_a_control_group_limits_the_memory(limit: str, ram: int) -> None:
    assert limited_ram_bytes(64, limit) == ram


def test_copying_is_measured_in_plausible_bytes_per_second() -> None:
    rate = measure_gb_per_s(8 << 20, threads=2, seconds=0.05)
    assert 0.05 < rate < 10_000


@pytest.mark.process
async def test_daemons_of_one_machine_measure_once_and_agree(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "a", probe_cache_dir=tmp_path / "shared", usable_bytes=3 * 10**9)
    other = Config(data_dir=tmp_path / "b", probe_cache_dir=tmp_path / "shared")
    first, second = await asyncio.gather(collect_facts(config), collect_facts(other))
    assert first.problems == second.problems == ()
    facts = first.facts
    assert facts.bandwidth_gb_per_s == second.facts.bandwidth_gb_per_s > 0
    assert facts.host_id == second.facts.host_id != ""
    assert 0 < facts.ram_bytes <= psutil.virtual_memory().total
    assert facts.usable_bytes <= 3 * 10**9
    assert facts.cpu_count >= 1
    assert facts.macmesh_version
    assert facts.mlx_version
    assert facts.mlx_lm_version
    kept = json.loads((tmp_path / "shared" / "bandwidth.json").read_text())
    assert kept["bandwidth_gb_per_s"] == facts.bandwidth_gb_per_s


async def test_a_kept_measurement_is_used_and_one_of_another_machine_is_not(tmp_path: Path) -> None:
    write_record(tmp_path / "bandwidth.json", BandwidthRecord("this", 123.4))
    refuse = (sys.executable, "-c", "raise SystemExit('measured again')")
    assert await bandwidth_gb_per_s(tmp_path, "this", command=refuse) == 123.4
    with pytest.raises(LocalProbeError, match="measured again"):
        await bandwidth_gb_per_s(tmp_path, "other", command=refuse)


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('MemoryError: no room')", "exit status 1.*no room"),
        ("print('{}')", "printed no result"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
        ("import time; time.sleep(60)", "took more than 0.5 s"),
    ],
)
async def test_a_failed_measurement_says_why(tmp_path: Path, program: str, words: str) -> None:
    with pytest.raises(LocalProbeError, match=words):
        await bandwidth_gb_per_s(
            tmp_path,
            "key",
            deadline_seconds=0.5 if "sleep" in program else 30,
            command=(sys.executable, "-c", program),
        )
    assert read_record(tmp_path / "bandwidth.json", "key") is None


async def test_a_failed_measurement_is_a_line_and_not_the_end(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    report = await collect_facts(Config(data_dir=tmp_path, probe_cache_dir=blocked / "folder"))
    assert report.facts.bandwidth_gb_per_s == 0
    assert report.facts.ram_bytes > 0
    (line,) = report.problems
    assert "bandwidth" in line


async def test_without_the_probe_nothing_is_measured(tmp_path: Path) -> None:
    report = await collect_facts(Config(data_dir=tmp_path, bandwidth_probe=False))
    assert report.facts.bandwidth_gb_per_s == 0
    assert report.problems == ()
    assert not (tmp_path / "bandwidth.json").exists()


WRONG_RATES = ("-1", "0", "NaN", "Infinity", "true", '"5"', "1e9", "null")
WRONG_RECORDS = [
    "{" + f'"version": 1, "key": "k", "bandwidth_gb_per_s": {rate}' + "}" for rate in WRONG_RATES
]


@given(st.text() | st.sampled_from(WRONG_RECORDS))
def test_a_broken_record_is_none(text: str) -> None:
    assert parse_record(text, "k") is None


@given(st.floats(0.1, 99_999))
def test_a_record_survives_the_way(rate: float) -> None:
    record = BandwidthRecord("k", rate)
    assert parse_record(record.to_json(), "k") == record
    assert parse_record(record.to_json(), "another") is None

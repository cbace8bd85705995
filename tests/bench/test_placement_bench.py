"""The yardstick of the placement benchmark is the rule that it says it is, and its judge is right."""

import json
from itertools import product
from types import ModuleType

import pytest

from bench_scripts import load_script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("placement")


def test_the_proportional_split(bench: ModuleType) -> None:
    assert bench.proportional_split([8_000, 2_900], 10) == [7, 3]
    assert bench.proportional_split([50, 50], 5) == [3, 2]
    assert bench.proportional_split([1000, 1000, 1], 10) == [4, 5, 1]
    case = bench.TightCase((8_000, 2_900), 10, 1_000, 0)
    assert not bench.proportional_accepts(case, layer_bytes=case.layer_bytes)
    assert bench.split_exists(case)
    assert bench.planner_accepts(bench.TightCase((8_000_999, 2_900_000), 10, 1_000_000, 0))


def test_the_judge_agrees_with_every_composition(bench: ModuleType) -> None:
    found = set()
    for free in product((30, 71, 100), repeat=3):
        for layers in (5, 7, 9):
            case = bench.TightCase(free, layers, 30, 0)
            some = any(
                sum(counts) == layers and all(30 * count <= f for count, f in zip(counts, free, strict=True))
                for counts in product(range(layers + 1), repeat=3)
            )
            assert bench.split_exists(case) is some
            found.add(some)
    assert found == {True, False}


def test_a_short_run_prints_what_it_promises(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--json", "--only", "tight", "--cases", "60", "--jobs", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "macmesh-bench-placement/1"
    assert [(row["cache_counted"], row["fill"]) for row in found["tight"]] == [
        (cache, fill) for cache in (False, True) for fill in ([0.85, 0.95], [0.95, 1.0])
    ]
    assert sum(row["cases"] for row in found["tight"]) == 120
    assert all(row["planner_rejects"] == 0 for row in found["tight"])
    assert any(row["proportional_rejects"] for row in found["tight"])
    assert bench.main(["--only", "tight", "--cases", "20", "--jobs", "1"]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert "proportional_rejects_percent" in header


def test_percentiles_are_by_nearest_rank(bench: ModuleType) -> None:
    assert bench.percentile(list(range(1, 101)), 0.99) == 99
    assert bench.percentile([3, 1, 2], 0.99) == 3
    assert bench.percentile([5], 0.5) == 5

"""The bench of links over RDMA devices runs, and nothing in it is faster than its model."""

import pytest

from bench_scripts import load_script


@pytest.mark.process
def test_a_case_stays_within_the_model() -> None:
    bench = load_script("verbs_fabric")
    case = bench.Case(bench.STOCK, gigabytes_per_second=2.0, latency_us=50.0, slowdown=1, rounds=3)
    found = bench.run_case(case)
    for name, size_bytes in bench.SIZES.items():
        row = found[name]
        assert row["limit_us"] == pytest.approx(50 + size_bytes / 2000, abs=0.1)
        assert row["limit_us"] - 0.1 <= row["least_us"] <= row["one_way_us"]
        assert 0 <= row["stream_gb_per_s"] <= 2.001
    assert (found["regions"], found["queue_pairs"], found["dropped_for_want_of_a_receive"]) == (1, 8, 0)
    # Two buffers of each size to send from and as many to receive into; of the smallest 4, 4 for reports and 6.
    assert found["pool_bytes"] == 2 * 2 * 4096 * (2**8 - 1) + (2 * 2 + 4 + 2) * 4096

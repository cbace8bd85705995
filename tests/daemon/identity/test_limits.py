"""Counters that bound what strangers cost: virtual time, bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.identity.limits import BucketPerAddress, FailureLimiter, TokenBucket, address_key


def test_one_address_is_the_whole_network_of_an_ipv6_host() -> None:
    assert address_key("fe80::1%en0") == address_key("fe80::2%en1") == "fe80::/64"
    assert address_key("2001:db8::1") != address_key("2001:db8:1::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1")


def test_five_failures_a_minute_per_address() -> None:
    limiter = FailureLimiter()
    for second in range(5):
        assert limiter.wait_seconds("a", second) == 0
        limiter.failed("a", second)
    assert limiter.wait_seconds("a", 5) == 55
    assert limiter.wait_seconds("b", 5) == 0
    assert limiter.wait_seconds("a", 60.5) == 0


def test_twenty_failures_a_minute_in_total() -> None:
    limiter = FailureLimiter()
    for number in range(20):
        limiter.failed(f"host {number}", 0.0)
    assert limiter.wait_seconds("a new one", 10.0) == 50.0
    assert limiter.wait_seconds("a new one", 60.0) == 0.0


@given(st.lists(st.floats(0, 3), max_size=300), st.floats(1, 50), st.integers(1, 40))
def test_a_bucket_never_gives_more_than_its_rate(steps: list[float], rate: float, burst: int) -> None:
    bucket, now, given_out = TokenBucket(rate, burst), 0.0, 0
    for step in steps:
        now += step
        given_out += bucket.take(now)
    assert given_out <= burst + now * rate + 1e-6


def test_buckets_of_addresses_take_bounded_memory() -> None:
    buckets = BucketPerAddress(1, 1, capacity=8)
    assert all(buckets.take(str(number), 0.0) for number in range(1000))
    assert len(buckets) == 8
    assert not buckets.take("999", 0.0)

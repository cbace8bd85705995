"""How often strangers may try: pure counters with the time handed in, and bounded memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque

#: Wrong tokens that one address may show within a minute.
TRIES_PER_ADDRESS = 5
#: Wrong tokens that all addresses together may show within a minute.
TRIES_IN_TOTAL = 20
WINDOW_SECONDS = 60.0

_IPV6_NETWORK_BITS = 64


def address_key(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of an IPv6 one, which is one host's to vary."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))
    return str(address)


class TokenBucket:
    """Permits ``rate_per_second`` on average and ``burst`` at once."""

    def __init__(self, rate_per_second: float, burst: float) -> None:
        self._rate = rate_per_second
        self._burst = burst
        self._level = burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Take one, where there is one."""
        if self._at is not None:
            self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class BucketPerAddress:
    """A bucket for each of the addresses seen last; older ones are forgotten."""

    def __init__(self, rate_per_second: float, burst: float, *, capacity: int = 256) -> None:
        self._rate, self._burst, self._capacity = rate_per_second, burst, capacity
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> bool:
        """Take one from the address's bucket, where there is one."""
        bucket = self._buckets.setdefault(key, TokenBucket(self._rate, self._burst))
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return bucket.take(now)


class FailureLimiter:
    """Refuses whoever failed too often within a minute, before the next try is looked at.

    Only failures count: machines that come with good tokens never wait for each other. Memory is bounded by
    the total, since nothing is tried and nothing recorded beyond it.
    """

    def __init__(
        self,
        *,
        per_address: int = TRIES_PER_ADDRESS,
        in_total: int = TRIES_IN_TOTAL,
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        self._per_address, self._in_total, self._window = per_address, in_total, window_seconds
        self._failures: deque[tuple[float, str]] = deque()

    def wait_seconds(self, key: str, now: float) -> float:
        """How long the address must wait before its next try; 0 where it may try now."""
        while self._failures and self._failures[0][0] <= now - self._window:
            self._failures.popleft()
        own = [at for at, who in self._failures if who == key]
        waits = [0.0]
        if len(own) >= self._per_address:
            waits.append(own[-self._per_address] + self._window - now)
        if len(self._failures) >= self._in_total:
            waits.append(self._failures[0][0] + self._window - now)
        return max(waits)

    def failed(self, key: str, now: float) -> None:
        """Count a failure."""
        self._failures.append((now, key))

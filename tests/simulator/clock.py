"""A node's own clock."""

_ROUNDING_SECONDS = 1e-6


class NodeClock:
    """Runs at its own rate from its own beginning, and may jump. Real time is the simulation's."""

    def __init__(self, offset: float = 0.0) -> None:
        self._offset = offset
        self._rate = 1.0

    def local(self, now: float) -> float:
        """What the clock shows at the real time ``now``."""
        return now if self._rate == 1.0 and not self._offset else self._offset + now * self._rate

    def run_at(self, rate: float, now: float) -> None:
        """Go on from here at another rate."""
        self._offset = self.local(now) - now * rate
        self._rate = rate

    def jump(self, seconds: float) -> None:
        """Show another time from now on."""
        self._offset += seconds

    def real(self, local: float) -> float:
        """The real time at which the clock surely shows ``local``, if nothing happens to it."""
        if self._rate == 1.0 and not self._offset:
            return local
        return (local - self._offset) / self._rate + _ROUNDING_SECONDS

"""What a scenario is given, and how groups of scenarios are declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from faults.results import Figure, LocalOutcomeWrongError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from faults.cluster import Cluster
    from faults.network import Lan
    from faults.results import Result


@dataclass(slots=True)
class World:
    """A group's cluster, and the scenario that runs on it.

    Attributes:
        folder: For whatever the group needs on disk.
        cluster: The cluster under test.
        lan: Its network; None on loopback.
        others: Further clusters on the same network.
        mounts: File systems of the group's own.
        result: Of the scenario that runs.
    """

    folder: Path
    cluster: Cluster
    result: Result
    lan: Lan | None = None
    others: list[Cluster] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)

    @property
    def network(self) -> Lan:
        """The network of a group that has one."""
        assert self.lan is not None
        return self.lan

    def measure(
        self,
        what: str,
        value: float,
        *,
        target: float | None = None,
        limit: float | None = None,
        unit: str = "s",
    ) -> None:
        """Note a figure."""
        self.result.figures.append(Figure(what, round(value, 4), unit, target, limit))

    def holds(self, what: str, is_so: object, but: object = "") -> None:
        """Note what must be; `but` is told where it is not.

        Raises:
            LocalOutcomeWrongError: It is not so.
        """
        if not is_so:
            raise LocalOutcomeWrongError(f"not so: {what}; {but}")
        self.result.holds.append(what)


@dataclass(frozen=True, slots=True)
class Group:
    """Scenarios that share a cluster, in the order in which they can.

    Attributes:
        name: Its name.
        set_up: Starts the cluster.
        scenarios: By name. The docstring of each says what is done and what must come of it.
        needs: Programs without which it cannot run.
        unprivileged: It needs no namespaces: loopback suffices.
    """

    name: str
    set_up: Callable[[World], Awaitable[None]]
    scenarios: dict[str, Callable[[World], Awaitable[None]]]
    needs: tuple[str, ...] = ()
    unprivileged: bool = False

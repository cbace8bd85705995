"""Hypothesis looks for a short way to break a small cluster, and shrinks what it finds."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from simulator.parts import wanted_model
from simulator.world import World

NODES = st.sampled_from("abcd")


class Cluster(RuleBasedStateMachine):
    """Four nodes, the fourth of which may come late; the checker is the invariant."""

    world: World

    @initialize(seed=st.integers(0, 1000), count=st.integers(2, 4))
    def found(self, seed: int, count: int) -> None:
        self.world = World(seed, count)

    def node(self, name: str) -> str:
        return name if name in self.world.nodes else "a"

    @rule(name=NODES, power=st.booleans())
    def crash(self, name: str, power: bool) -> None:
        self.world.crash(self.node(name), power=power)

    @rule(name=NODES)
    def boot(self, name: str) -> None:
        if self.world.nodes[self.node(name)].machine is None:
            self.world.boot(self.node(name))

    @rule(at=st.integers(0, 4))
    def cut(self, at: int) -> None:
        names = "".join(self.world.nodes)
        self.world.cut(names[:at], names[at:])

    @rule(source=NODES, sink=NODES)
    def cut_one_way(self, source: str, sink: str) -> None:
        self.world.network.cut.add((source, sink))

    @rule()
    def mend(self) -> None:
        self.world.network.cut = set()
        self.world.introduce_all()

    @rule(name=NODES, frozen=st.booleans())
    def sleep(self, name: str, frozen: bool) -> None:
        self.world.sleep(self.node(name), frozen=frozen)

    @rule(name=NODES, told=st.booleans())
    def wake(self, name: str, told: bool) -> None:
        self.world.come_back(self.world.nodes[self.node(name)], told=told)

    @rule(name=NODES, model=st.sampled_from("mk"))
    def load(self, name: str, model: str) -> None:
        self.world.load(wanted_model(model), self.world.coordinator() or self.node(name))

    @rule(name=NODES)
    def recover(self, name: str) -> None:
        self.world.recover(self.node(name))

    @rule(tenths=st.integers(1, 30))
    def run_on(self, tenths: int) -> None:
        self.world.run(tenths / 10)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.heal()
            self.world.run_until(self.world.agreed, 30)
            self.world.insist(wanted_model("final"), 60)
            self.world.run_until(self.world.ready, 60)
            self.world.check_nothing_is_left_open()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)

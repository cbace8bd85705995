"""Random orders of events: each token is delivered once, in order, and there is exactly one end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests import Ask, Finish, RequestMachine, RequestSettings
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev

STOP = 0
SETTINGS = RequestSettings(patience_seconds=20, retry_seconds=1, longest_retry_seconds=4, most_lost_plans=3)
ENDS = (fx.Finished, fx.Cancelled, fx.Failed)


def truth(index: int) -> int:
    """The token at a position, whichever run generates it; the first `STOP` is far away."""
    return (index * 7 + 3) % 23


class World:
    """A head for each run, that tells its tokens in order; old heads go on telling theirs."""

    def __init__(self, max_tokens: int, brought: int) -> None:
        ask = Ask("r", (1, 2), "d", max_tokens, frozenset({STOP}))
        self.machine = RequestMachine(
            ask, now=0.0, settings=SETTINGS, generated=[truth(i) for i in range(brought)]
        )
        self.now = 0.0
        self.brought = brought
        self.delivered = [truth(i) for i in range(brought)]
        self.ends: list[fx.Effect] = []
        self.runs: dict[int, fx.Run] = {}
        self.told: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.seq = 0

    def step(self, event: ev.Event) -> None:
        live = self.machine.run
        effects = self.machine.step(event, self.now)
        if isinstance(event, ev.Token | ev.Queued | ev.RunFailed) and event.run != live:
            assert effects == [], "a run that was given up is believed"
        if self.ends:
            assert effects == []
        for effect in effects:
            assert not self.ends, "something after the end"
            match effect:
                case fx.Run():
                    # Behind the log, for a plan that is ready, and never beside another run that is believed.
                    assert list(effect.generated_token_ids) == self.delivered
                    assert effect.number not in self.runs
                    self.runs[effect.number] = effect
                    self.told[effect.number] = len(effect.generated_token_ids)
                case fx.CancelRun():
                    self.cancelled.add(effect.number)
                case fx.Deliver():
                    assert effect.index == len(self.delivered)
                    assert effect.token_id == truth(effect.index)
                    assert self.machine.log.token_ids[effect.index] == effect.token_id
                    self.delivered.append(effect.token_id)
                case fx.Finished() | fx.Cancelled() | fx.Failed():
                    self.ends.append(effect)
        assert self.machine.log.token_ids == self.delivered
        assert self.machine.ended == bool(self.ends)

    def tell(self, which: int) -> None:
        """One token of a run, live or given up; a live run that is over tells no more."""
        if not self.runs:
            return
        run = self.runs[sorted(self.runs)[which % len(self.runs)]]
        index = self.told[run.number]
        if index >= run.max_tokens or (index and truth(index - 1) == STOP):
            return
        self.told[run.number] = index + 1
        finish = None
        if truth(index) == STOP:
            finish = Finish.STOP
        elif index + 1 == run.max_tokens:
            finish = Finish.LENGTH
        self.step(ev.Token(run.number, index, truth(index), -0.5, finish))

    def act(self, kind: str, which: int) -> None:
        match kind:
            case "token":
                self.tell(which)
            case "repeat" if self.machine.run is not None and self.told[self.machine.run] > 0:
                index = which % self.told[self.machine.run]
                self.step(ev.Token(self.machine.run, index, truth(index)))
            case "ready":
                self.seq += which % 2
                self.step(ev.PlanReady(Epoch(1, 1, self.seq), "h", 60, "d"))
            case "pending":
                epoch = None if which % 3 == 0 else Epoch(1, 1, self.seq + which % 2)
                self.step(ev.PlanPending(epoch, "NOT_READY", "loading", "d"))
            case "lost" if self.runs:
                reason = ("WORKER_FAILED", "EPOCH_CHANGED", "RESOURCE_EXHAUSTED")[which % 3]
                self.step(ev.RunFailed(sorted(self.runs)[which % len(self.runs)], reason, "lost"))
            case "time":
                self.now += which
                self.step(ev.Tick())
            case "queued" if self.runs:
                self.step(ev.Queued(max(self.runs), 1 + which, None))
            case "gone":
                self.step(ev.ClientGone())


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["token"] * 6, "repeat", "ready", "ready", "pending", "lost", "lost", "time", "queued"]
        ),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    max_tokens=st.integers(0, 25),
    brought=st.integers(0, 12),
    actions=ACTIONS,
    leaves=st.booleans(),
)
def test_each_token_is_delivered_once_in_order_and_there_is_one_end(
    max_tokens: int, brought: int, actions: list[tuple[str, int]], leaves: bool
) -> None:
    world = World(max_tokens, min(brought, max_tokens or brought))
    for kind, which in [("ready", 1), *actions]:
        world.act(kind, which)
    if leaves:
        world.act("gone", 0)
    # From here on the cluster is well: whatever has not ended comes to its last token.
    world.seq += 1
    world.step(ev.PlanReady(Epoch(1, 1, world.seq), "h", 60, "d"))
    for _ in range(100):
        if world.machine.run is not None:
            world.tell(sorted(world.runs).index(world.machine.run))
    assert len(world.ends) == 1
    [end] = world.ends
    if isinstance(end, fx.Finished):
        last = world.delivered[-1]
        assert (end.finish is Finish.STOP) == (last == STOP)
    assert world.machine.next_deadline() is None
    assert isinstance(end, ENDS)


@settings(max_examples=100, deadline=None)
@given(actions=ACTIONS)
def test_a_request_that_nothing_runs_ends_when_its_patience_does(actions: list[tuple[str, int]]) -> None:
    world = World(30, 0)
    for kind, which in [("pending", 1), *actions]:
        world.act(kind, which)
    if world.machine.run is not None:
        world.step(ev.RunFailed(world.machine.run, "EPOCH_CHANGED", "lost"))
    world.step(ev.PlanPending(None, "NO_QUORUM", "nobody is there", "d"))
    if world.ends:
        return
    deadline = world.machine.next_deadline()
    assert deadline is not None
    assert deadline <= world.now + SETTINGS.patience_seconds
    world.now = deadline
    world.step(ev.Tick())
    [end] = world.ends
    assert isinstance(end, fx.Failed)
    assert end.reason == "NO_QUORUM"

"""Clients of the simulated cluster: what happens to them does happen, and a broken request is seen."""

from collections import Counter

import pytest

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests import Finish
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from simulator.checker import InvariantBrokenError
from simulator.options import draw
from simulator.parts import wanted_model
from simulator.run import run
from simulator.serving.clients import Client
from simulator.serving.desk import Live
from simulator.world import World


def _served(tokens: int = 30) -> tuple[World, Client]:
    world = World("serving", 3)
    world.start(wanted_model("m"))
    client = world.serving.submit(world.nodes["b"], tokens=tokens, stops=False)
    world.run_until(lambda: len(client.tokens) >= 3, 5)
    return world, client


def _live(client: Client) -> Live:
    assert client.conn is not None
    assert client.conn.live is not None
    return client.conn.live


def test_requests_end_in_every_way_and_go_on_in_both() -> None:
    ends: Counter[str] = Counter()
    accepted = resumed = replayed = 0
    for seed in range(40, 60):
        outcome = run(draw(seed))
        ends.update(dict(outcome.ends))
        accepted, resumed, replayed = (
            a + b for a, b in zip((accepted, resumed, replayed), outcome.requests, strict=True)
        )

    assert min(accepted, resumed, replayed) > 0
    assert {"finished", "cancelled"} <= set(ends)
    assert any(name.startswith("failed") for name in ends)


def test_a_cluster_without_clients_lives_through_the_same_as_ever() -> None:
    options = next(draw(seed) for seed in range(20) if not draw(seed).requests)

    assert run(options).requests == (0, 0, 0)


def test_a_request_comes_to_its_tokens_across_the_end_of_its_api_node_and_of_a_worker() -> None:
    world, client = _served()
    world.crash("b")
    world.run_until(lambda: client.node.node_id != "b" and client.conn is not None, 2)
    world.run_until(lambda: bool(client.end), 30)

    assert client.end == "finished"
    assert client.truth is not None
    assert client.tokens == [client.truth.at(i) for i in range(30)]
    world.run_until(lambda: world.serving.is_quiet, 10)


@pytest.mark.parametrize(
    ("deliver", "what"),
    [
        (lambda live: fx.Deliver(len(live.delivered), 1, 0.0, None), "before it is logged"),
        (lambda live: fx.Deliver(0, live.delivered[0], 0.0, None), "token 0 is sent after"),
    ],
)
def test_the_checker_sees_a_token_too_early_or_twice(deliver: object, what: str) -> None:
    world, client = _served()
    live = _live(client)
    assert callable(deliver)

    with pytest.raises(InvariantBrokenError, match=what):
        world.serving.checker.on_deliver(live, deliver(live), None, None)


def test_the_checker_sees_a_token_of_an_older_epoch() -> None:
    world, client = _served()
    live = _live(client)
    newer = ev.PlanPending(Epoch(9, 9, 9), "NOT_READY", "loading", live.digest)
    token = live.truth.at(len(live.delivered))
    live.machine.log.token_ids.append(token)

    with pytest.raises(InvariantBrokenError, match=r"the plan is 9\.9\.9"):
        world.serving.checker.on_deliver(
            live, fx.Deliver(len(live.delivered), token, 0.0, None), Epoch(1, 1, 1), newer
        )


@pytest.mark.parametrize(
    ("run_", "what"),
    [
        (fx.Run(2, Epoch(1, 1, 1), "a", (), (), 30), "beside another"),
        (fx.Run(2, Epoch(9, 9, 9), "a", (), (), 30), "begins behind 0 tokens"),
    ],
)
def test_the_checker_sees_a_wrong_run(run_: fx.Run, what: str) -> None:
    world, client = _served()
    live = _live(client)
    if run_.epoch != Epoch(1, 1, 1):
        live.run = None

    with pytest.raises(InvariantBrokenError, match=what):
        world.serving.checker.on_run(live, run_, is_own_plan=False)


def test_the_checker_sees_a_run_under_a_plan_that_is_not_committed() -> None:
    world, client = _served()
    live = _live(client)
    live.run = None
    wrong = fx.Run(2, Epoch(9, 9, 9), "a", live.wish.prompt, tuple(live.delivered), 30)

    with pytest.raises(InvariantBrokenError, match="not committed"):
        world.serving.checker.on_run(live, wrong, is_own_plan=False)


def test_the_checker_sees_a_second_end_and_a_run_that_goes_on() -> None:
    world, client = _served()
    live = _live(client)
    checker = world.serving.checker
    with pytest.raises(InvariantBrokenError, match="is not cancelled"):
        checker.on_end(live, fx.Finished(Finish.STOP), 1.0)
    live.end = fx.Cancelled()
    with pytest.raises(InvariantBrokenError, match="a second end"):
        checker.on_end(live, fx.Finished(Finish.STOP), 1.0)
    with pytest.raises(InvariantBrokenError, match="after its end"):
        checker.on_step(live, ev.ClientGone(), None, [fx.Cancelled()], 1.0)


def test_the_checker_sees_what_a_client_must_not_get() -> None:
    world, client = _served()
    checker = world.serving.checker
    with pytest.raises(InvariantBrokenError, match="token 0 came after"):
        checker.on_token(client, 0, client.tokens[0])
    with pytest.raises(InvariantBrokenError, match="came as -1"):
        checker.on_token(client, len(client.tokens), -1)
    with pytest.raises(InvariantBrokenError, match="finished with"):
        checker.on_client_end(client, "finished")

"""The sync client against a fake daemon on a real Unix socket."""

import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macmesh
from macmesh.errors import (
    LocalArgumentError,
    LocalClosedError,
    LocalDaemonNotRunningError,
    LocalDeadlineError,
    RemoteBusyError,
    RemoteInternalError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from macmesh.reasons import Reason
from macmesh.testing import GenerateScript, ThreadedFakeDaemon, scenes
from macmesh.v1 import cluster_pb2, inference_pb2
from macmesh.wire_errors import wire_failure

WAIT_SECONDS = 120.0


@pytest.fixture
def client(threaded: ThreadedFakeDaemon) -> Iterator[macmesh.Client]:
    with macmesh.Client(threaded.target) as client:
        yield client


def test_status_is_the_daemons(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.status = scenes.degraded()
    assert client.status() == scenes.degraded()


def test_stage_stats_are_the_daemons(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    client.complete("x")
    assert client.stage_stats() == threaded.script.stage_stats(5)
    assert [m.stats.steps for m in client.stage_stats().stages] == [5, 5, 5]


def test_generate_streams_typed_chunks(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    with client.generate("tell me", seed=7, max_tokens=3, stop=["\n"], temperature=0.5) as generation:
        chunks = list(generation)
    assert [c.text for c in chunks] == ["Once", " upon", " a"]
    assert [c.token_ids for c in chunks] == [(100,), (101,), (102,)]
    assert chunks[0].logprobs == (-0.5,)
    assert chunks[0].request == macmesh.RequestFacts("r1", 7, "MiniMax-M2.5-5bit", "1.3.2")
    assert chunks[-1].finish_reason is macmesh.FinishReason.LENGTH
    assert [c.finish_reason for c in chunks[:-1]] == [None, None]
    assert generation.facts.usage == macmesh.Usage(2, 3, 0.25, 0.5)
    assert generation.facts.usage.decode_tokens_per_second == 4.0
    (_, request), *_ = threaded.calls
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert (request.text, request.max_tokens, list(request.stop)) == ("tell me", 3, ["\n"])
    assert (request.sampling.seed, request.sampling.temperature) == (7, 0.5)


def test_complete_joins_the_pieces(client: macmesh.Client) -> None:
    done = client.complete(messages=[{"role": "user", "content": "tell me a story"}])
    assert done.text == "Once upon a time."
    assert done.token_ids == (100, 101, 102, 103, 104)
    assert done.finish_reason == "stop"
    assert done.usage.prompt_tokens == 4
    assert done.request.seed == 4711


def test_token_ids_reach_the_daemon(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    client.complete(token_ids=[5, 6, 7], ignore_eos=True)
    request = threaded.calls[0][1]
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert list(request.tokens.token_ids) == [5, 6, 7]
    assert request.ignore_eos


def test_closing_the_generation_cancels_the_call(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(hold_after=2)
    with client.generate("x") as generation:
        assert [c.text for c in itertools.islice(generation, 2)] == ["Once", " upon"]
    assert threaded.cancelled.wait(WAIT_SECONDS)
    with pytest.raises(LocalClosedError):
        next(generation)


def test_dropping_the_generation_cancels_the_call(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(hold_after=1)
    generation = client.generate("x")
    next(generation)
    del generation
    gc.collect()
    assert threaded.cancelled.wait(WAIT_SECONDS)


def test_closing_from_another_thread_ends_the_wait(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(hold_after=1)
    generation = client.generate("x")
    next(generation)
    threading.Timer(0.05, generation.close).start()
    with pytest.raises(LocalClosedError):
        next(generation)


def test_first_token_deadline(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.generate = GenerateScript(hold_after=0)
    with pytest.raises(LocalDeadlineError, match=r"nothing came for 0\.5 s"):
        next(client.generate("x", first_token_timeout_seconds=0.5))
    assert threaded.cancelled.wait(WAIT_SECONDS)


def test_idle_deadline_counts_from_the_last_token(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(hold_after=3)
    generation = client.generate("x", idle_timeout_seconds=0.5)
    assert len(list(itertools.islice(generation, 3))) == 3
    with pytest.raises(TimeoutError):
        next(generation)
    assert threaded.cancelled.wait(WAIT_SECONDS)


def test_total_deadline(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.generate = GenerateScript(hold_after=1)
    with pytest.raises(LocalDeadlineError, match=r"Generate .* within 0\.2 s"):
        client.complete("x", timeout_seconds=0.2)


def test_unary_deadline(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.held = {"GetStatus"}
    with pytest.raises(LocalDeadlineError) as caught:
        client.status(timeout_seconds=0.1)
    assert caught.value.reason == Reason.DEADLINE_EXCEEDED
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_refusal_carries_reason_and_metadata(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.failures["LoadModel"] = wire_failure(
        Reason.DOES_NOT_FIT, "the model needs 12 GB more", {"deficit_bytes": 12_000_000_000}
    )
    with pytest.raises(RemoteRefusedError) as caught:
        client.load("m")
    error = caught.value
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.DOES_NOT_FIT)
    assert error.metadata == {"deficit_bytes": "12000000000"}
    assert error.message == str(error) == "the model needs 12 GB more"
    assert not error.is_transient


@pytest.mark.parametrize(
    ("reason", "kind", "transient"),
    [
        (Reason.MODEL_NOT_FOUND, RemoteNotFoundError, False),
        (Reason.RESOURCE_EXHAUSTED, RemoteBusyError, True),
        (Reason.NO_QUORUM, RemoteUnavailableError, True),
        (Reason.INTERNAL, RemoteInternalError, False),
    ],
)
def test_each_code_has_its_class(
    threaded: ThreadedFakeDaemon,
    client: macmesh.Client,
    reason: Reason,
    kind: type[macmesh.MacmeshError],
    transient: bool,
) -> None:
    threaded.script.failures["GetStatus"] = wire_failure(reason, "so it is")
    with pytest.raises(kind) as caught:
        client.status()
    assert caught.value.is_transient is transient


def test_a_failure_in_the_stream_keeps_what_came(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(
        fail_after=2, failure=wire_failure(Reason.WORKER_FAILED, "stage 1 ended", {"stage": 1})
    )
    generation = client.generate("x")
    assert [chunk.text for chunk in itertools.islice(generation, 2)] == ["Once", " upon"]
    with pytest.raises(RemoteUnavailableError, match="stage 1 ended") as caught:
        next(generation)
    assert caught.value.metadata == {"stage": "1"}


def test_a_stream_that_ends_without_a_reason_is_a_fault(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(drop_end=True)
    with pytest.raises(RemoteInternalError, match="without a finish reason"):
        client.complete("x")


def test_load_reports_progress_and_returns_when_ready(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    steps: list[macmesh.LoadProgress] = []
    last = client.load("m", context_tokens=4096, slots=2, objective="latency", on_progress=steps.append)
    assert [s.phase for s in steps] == [
        "profiling",
        "planning",
        "preparing",
        "committed",
        "loading",
        "loading",
        "loading",
        "connecting",
        "ready",
    ]
    assert steps[0].epoch == ""
    assert last.epoch == "1.3.2"
    assert last.deployment is not None
    assert last.deployment.layer_count == 62
    assert (steps[4].loaded_bytes, steps[4].total_bytes) == (0, 107 * scenes.GB)
    request = threaded.calls[0][1]
    assert isinstance(request, cluster_pb2.LoadModelRequest)
    assert (request.model_id, request.context_tokens, request.slots) == ("m", 4096, 2)


def test_a_load_that_ends_early_is_a_fault(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.load = scenes.load_steps()[:3]
    with pytest.raises(RemoteInternalError, match="preparing"):
        client.load("m")


def test_plan_and_unload(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.plan = cluster_pb2.PlanModelResponse(feasible=False, result_json='{"deficit": 5}')
    result = client.plan("m", context_tokens=10, stage_count=3)
    assert (result.feasible, result.result) == (False, {"deficit": 5})
    request = threaded.calls[0][1]
    assert isinstance(request, cluster_pb2.PlanModelRequest)
    assert request.stage_count == 3
    assert client.unload() == "1.3.3"


def test_plan_options_travel_and_wrong_ones_do_not(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    client.plan("m", excluded_nodes=["a"], required_nodes=["b"], head_node="c", kv_bits=8, prefill_share=0.5)
    request = threaded.calls[0][1]
    assert isinstance(request, cluster_pb2.PlanModelRequest)
    assert (list(request.excluded_nodes), list(request.required_nodes)) == (["a"], ["b"])
    assert (request.head_node, request.kv_bits, request.prefill_share) == ("c", 8, 0.5)
    for wrong in ({"excluded_nodes": "a"}, {"required_nodes": [""]}, {"prefill_share": 1.0}, {"kv_bits": -1}):
        with pytest.raises(LocalArgumentError):
            client.plan("m", **wrong)
    assert len(threaded.calls) == 1


def test_a_plan_that_is_not_json_is_a_fault(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.plan = cluster_pb2.PlanModelResponse(feasible=True, result_json="[1]")
    with pytest.raises(RemoteInternalError):
        client.plan("m")


def test_watch_gives_status_then_events(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    with client.watch() as updates:
        assert next(updates) == scenes.ready()
        threaded.daemon.push_event("coordinator elected", node="studio", term=4)
        event = next(updates)
        assert isinstance(event, macmesh.ClusterEvent)
        assert (event.event, event.facts) == ("coordinator elected", {"node": "studio", "term": 4})
        assert event.time.tzinfo is not None
        threaded.daemon.push_status(scenes.idle())
        assert next(updates) == scenes.idle()
    assert threaded.cancelled.wait(WAIT_SECONDS)


def test_no_socket_means_not_running(socket_file: Path) -> None:
    with macmesh.Client(socket_file) as client, pytest.raises(LocalDaemonNotRunningError) as caught:
        client.status()
    assert "macmeshd is not running: there is no socket" in str(caught.value)
    assert caught.value.metadata == {"socket": str(socket_file)}


def test_a_dead_daemons_socket_means_not_running(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    client.status()
    threaded.stop()
    with pytest.raises(LocalDaemonNotRunningError):
        client.status()


def test_a_daemon_that_restarts_is_found_again(socket_file: Path) -> None:
    with macmesh.Client(socket_file) as client:
        with ThreadedFakeDaemon(socket_file):
            client.status()
        with ThreadedFakeDaemon(socket_file) as second:
            second.script.status = scenes.idle()
            deadline = threading.Event()
            for _ in range(1000):
                try:
                    assert client.status().serving_state == "idle"
                    break
                except macmesh.MacmeshError as error:
                    assert error.is_transient  # noqa: PT017  every failure on the way is looked at
                    deadline.wait(0.05)
            else:
                pytest.fail("the client never came back")


def test_a_daemon_lost_in_the_stream(threaded: ThreadedFakeDaemon) -> None:
    threaded.script.generate = GenerateScript(hold_after=1)
    with macmesh.Client(threaded.target, timeouts=macmesh.Timeouts(generate_resume=0)) as client:
        generation = client.generate("x")
        next(generation)
        threaded.stop()
        with pytest.raises(macmesh.MacmeshError) as caught:
            next(generation)
    assert caught.value.code in {"UNAVAILABLE", "CANCELLED"}


def test_a_closed_client_says_so(threaded: ThreadedFakeDaemon) -> None:
    client = macmesh.Client(threaded.target)
    generation = client.generate("x", idle_timeout_seconds=5)
    client.close()
    client.close()
    with pytest.raises(LocalClosedError):
        client.status()
    with pytest.raises(LocalClosedError):
        list(generation)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "x", "token_ids": [1]},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"prompt": "x", "temperature": -1.0},
        {"prompt": "x", "top_p": 1.5},
        {"prompt": "x", "seed": -1},
        {"prompt": "x", "stop": "abc"},
        {"prompt": "x", "stop": [""]},
        {"prompt": "x", "max_tokens": -1},
        {"token_ids": [2**32]},
    ],
)
def test_bad_arguments_never_leave_the_process(
    threaded: ThreadedFakeDaemon, client: macmesh.Client, options: dict[str, Any]
) -> None:
    with pytest.raises(LocalArgumentError):
        client.generate(**options)
    assert threaded.calls == []


def test_bad_demands_never_leave_the_process(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    for options in ({"model": ""}, {"model": "m", "objective": "speed"}, {"model": "m", "slots": -1}):
        with pytest.raises(ValueError, match=r"model|objective|slots"):
            client.load(**options)
    assert threaded.calls == []


def test_no_thread_is_left(threaded: ThreadedFakeDaemon) -> None:
    before = {t for t in threading.enumerate() if t.name == "macmesh-watchdog"}
    with macmesh.Client(threaded.target) as client:
        client.complete("x")
        assert any(t.name == "macmesh-watchdog" for t in threading.enumerate())
    assert {t for t in threading.enumerate() if t.name == "macmesh-watchdog"} == before


@pytest.mark.parametrize("folder", ["Application Support", "100% ours", "a%20b", "a#b?c", "übung"])
def test_a_socket_path_may_hold_any_character(tmp_path_factory: pytest.TempPathFactory, folder: str) -> None:
    path = tmp_path_factory.mktemp("s") / folder / "d.sock"
    path.parent.mkdir()
    with ThreadedFakeDaemon(path) as daemon, macmesh.Client(path) as client:
        assert client.status().has_quorum
    assert daemon.calls


def test_the_place_in_the_queue_comes_before_the_first_token_and_is_none(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    """The deadline of the first token goes on running, and that between tokens does not begin."""
    threaded.script.generate = GenerateScript(waiting=(2, 1), hold_after=0)
    generation = client.generate("x", first_token_timeout_seconds=1.0, idle_timeout_seconds=0.001)
    assert [next(generation).waiting for _ in range(2)] == [macmesh.Waiting(2, 3.0), macmesh.Waiting(1, 1.5)]
    with pytest.raises(LocalDeadlineError, match="1 s"):
        next(generation)

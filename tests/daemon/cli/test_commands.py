"""Commands against a fake daemon over a real socket, run in this process."""

import json
from pathlib import Path

import pytest

from macmesh.reasons import Reason
from macmesh.testing import GenerateScript, ThreadedFakeDaemon, scenes
from macmesh.v1 import cluster_pb2, inference_pb2
from macmesh.wire_errors import wire_failure
from macmesh_daemon.cli.registry import COMMANDS
from macmesh_placement import NodeCapacity, PlanRequest, Refusal, plan

from .conftest import Run, big_profile


def last_request(daemon: ThreadedFakeDaemon, name: str) -> object:
    return [message for called, message in daemon.calls if called == name][-1]


def test_status_for_people(run: Run, daemon: ThreadedFakeDaemon) -> None:
    outcome = run("status")
    assert outcome.code == 0
    assert outcome.out.startswith("# ready: MiniMax-M2.5-5bit")
    assert outcome.err == ""
    assert last_request(daemon, "GetStatus") is not None


def test_status_as_json(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status = scenes.degraded()
    outcome = run("status", "--json")
    assert outcome.code == 4
    value = outcome.json
    assert next(iter(value)) == "format"
    assert value["format"] == "daemonctl-status/1"
    assert value["serving_state"] == "degraded"
    assert value["waiting_requests"] == 0  # fields that are zero are there too
    assert [n["member"]["facts"]["hostname"] for n in value["nodes"]] == ["studio", "mini", "book"]
    assert value["nodes"][0]["stage"]["ledger"]["entries"][0]["name"] == "weights"


@pytest.mark.parametrize(("name", "code"), [("idle", 0), ("loading", 0), ("refused", 0), ("no_quorum", 4)])
def test_status_codes(run: Run, daemon: ThreadedFakeDaemon, name: str, code: int) -> None:
    daemon.script.status = getattr(scenes, name)()
    assert run("status").code == code


def test_status_without_daemon(run: Run, socket_file: Path) -> None:
    outcome = run("status", "--socket", str(socket_file))
    assert outcome.code == 3
    assert outcome.out == ""
    assert "macmeshd is not running" in outcome.err
    assert "Start it with `macmeshd`" in outcome.err
    as_json = run("status", "--socket", str(socket_file), "--json")
    assert as_json.code == 3
    assert as_json.json["format"] == "daemonctl-status/1"
    assert as_json.json["error"]["reason"] == "DAEMON_NOT_RUNNING"


def test_a_configuration_file_may_move_the_socket(
    run: Run, socket_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MACMESH_SOCKET", "MACMESH_SOCKET_PATH", "MACMESH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config.toml"
    config.write_text(f'socket_path = "{socket_file}"\n')
    monkeypatch.setenv("MACMESH_CONFIG", str(config))
    with ThreadedFakeDaemon(socket_file):
        assert run("status").code == 0
    config.write_text("sockett = 1\n")
    outcome = run("status")
    assert outcome.code == 2
    assert "sockett" in outcome.err


def test_generate_streams_text(run: Run, daemon: ThreadedFakeDaemon) -> None:
    sampling = "--temperature 0.7 --top-p 0.9 --top-k 40 --min-p 0.1 --seed 5"
    argv = ["--max-tokens", "4", "--stop", "END", *sampling.split(" ")]
    outcome = run("generate", "tell me", *argv)
    assert (outcome.code, outcome.out) == (0, "Once upon a time\n")
    assert outcome.err == "4 tokens (length), first after 0.25 s, then 6.0 tokens/s\n"
    request = last_request(daemon, "Generate")
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert request.text == "tell me"
    assert (request.max_tokens, request.sampling.top_k, request.sampling.seed) == (4, 40, 5)
    assert list(request.stop) == ["END"]
    assert request.sampling.temperature == pytest.approx(0.7)


def test_a_request_that_waits_is_told_on_stderr(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.generate = GenerateScript(waiting=(3, 1))
    outcome = run("generate", "x", "--no-reuse")
    assert outcome.out == "Once upon a time.\n"
    assert outcome.err.splitlines()[:2] == [
        "waiting: position 3, about 4 s",
        "waiting: position 1, about 2 s",
    ]
    request = last_request(daemon, "Generate")
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert (request.HasField("reuse_prefix"), request.reuse_prefix) == (True, False)
    assert not request.HasField("keep")
    assert run("generate", "x", "--no-keep", "--json").json["token_ids"] == [100, 101, 102, 103, 104]
    request = last_request(daemon, "Generate")
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert (request.HasField("keep"), request.keep, request.HasField("reuse_prefix")) == (True, False, False)


def test_a_request_that_no_stages_run_is_told_once_on_stderr(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.generate = GenerateScript(paused=("stage 1 loads", "stage 1 loads", "stage 2 loads"))
    outcome = run("generate", "x")
    assert outcome.out == "Once upon a time.\n"
    assert outcome.err.splitlines()[:2] == ["paused: stage 1 loads", "paused: stage 2 loads"]


def test_generate_chat_tokens_and_json(run: Run, daemon: ThreadedFakeDaemon) -> None:
    outcome = run("generate", "--chat", "hello there", "--tokens")
    assert outcome.out.splitlines() == ["100", "101", "102", "103", "104"]
    request = last_request(daemon, "Generate")
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert [(m.role, m.content) for m in request.chat.messages] == [("user", "hello there")]
    value = run("generate", "x", "--json").json
    assert value["format"] == "daemonctl-generate/1"
    assert (value["text"], value["finish_reason"]) == ("Once upon a time.", "stop")
    assert value["token_ids"] == [100, 101, 102, 103, 104]
    assert value["usage"]["completion_tokens"] == 5
    assert value["request"]["request_id"] == "r2"


def test_generate_failing_midway_keeps_what_came(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.generate = GenerateScript(
        fail_after=2, failure=wire_failure(Reason.WORKER_FAILED, "stage 1 ended")
    )
    outcome = run("generate", "x")
    assert (outcome.code, outcome.out) == (75, "Once upon\n")
    assert outcome.err == "daemonctl: stage 1 ended\ndaemonctl: this may pass: try again\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.NO_MODEL_LOADED, 1),
        (Reason.CONTEXT_LENGTH_EXCEEDED, 1),
        (Reason.NOT_READY, 75),
        (Reason.RESOURCE_EXHAUSTED, 75),
        (Reason.NO_COORDINATOR, 75),
        (Reason.NO_QUORUM, 4),
        (Reason.INTERNAL, 1),
    ],
)
def test_failures_have_their_exit_code(
    run: Run, daemon: ThreadedFakeDaemon, reason: Reason, code: int
) -> None:
    daemon.script.failures["Generate"] = wire_failure(reason, "so it is", {"k": "v"})
    outcome = run("generate", "x", "--json")
    assert outcome.code == code
    assert outcome.json["error"]["reason"] == reason
    assert outcome.json["error"]["metadata"] == {"k": "v"}
    assert "so it is" in outcome.err


def test_deadlines_end_a_command(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.held = {"GetStatus"}
    outcome = run("status", "--timeout", "0.1")
    assert outcome.code == 1
    assert "did not end within 0.1 s" in outcome.err


def test_load_tells_its_phases(run: Run, daemon: ThreadedFakeDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outcome = run(
        "load",
        str(folder),
        *("--context", "4,096", "--slots", "2", "--stages", "3"),
        *("--kv-bits", "8", "--transfers", "graph", "--tensor-parallel"),
    )
    assert outcome.code == 0
    assert outcome.out == "ready: MiniMax-M2.5-5bit, epoch 1.3.2\n"
    told = outcome.err.splitlines()
    assert told[0] == "profiling"
    assert told[3].startswith("committed: epoch 1.3.2, a1b2c3d4 layers 0-35, b7c8d9e0 layers 36-53")
    assert told[4:8] == [
        "loading",
        "loading 50% (53.5 GB of 107 GB)",
        "loading 100% (107 GB of 107 GB)",
        "connecting",
    ]
    assert told[8].startswith("ready: epoch 1.3.2, a1b2c3d4 load 20.0 s + warm-up 1.2 s, b7c8d9e0 load")
    request = last_request(daemon, "LoadModel")
    assert isinstance(request, cluster_pb2.LoadModelRequest)
    assert (request.model_id, request.context_tokens) == (str(folder), 4096)
    assert (request.slots, request.stage_count, request.objective) == (2, 3, "balanced")
    assert (request.kv_bits, request.transfers) == (8, "graph")
    assert request.allow_tensor_parallel
    value = run("load", "by-name", "--json").json
    assert value["format"] == "daemonctl-load/1"
    assert [s["end_layer"] for s in value["stages"]] == [36, 54, 62]


def test_a_refused_load(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.failures["LoadModel"] = wire_failure(
        Reason.CONTEXT_ABOVE_POSITION_LIMIT,
        "A context of 200000 is above the position limit, 196608",
        {"position_limit": 196_608},
    )
    outcome = run("load", "m", "--context", "200000", "--json")
    assert outcome.code == 1
    assert outcome.json["error"]["metadata"]["position_limit"] == "196608"


def test_unload(run: Run, daemon: ThreadedFakeDaemon) -> None:
    assert run("unload").out == "nothing is served, epoch 1.3.3\n"
    assert run("unload", "--json").json == {"format": "daemonctl-unload/1", "epoch": "1.3.3"}
    assert last_request(daemon, "UnloadModel") is not None


def test_watch(run: Run, daemon: ThreadedFakeDaemon) -> None:
    assert run("watch", "--count", "1").out == "# ready · term 3 · 3 of 3 alive · quorum\n"
    line = run("watch", "--count", "1", "--json").out
    assert line.count("\n") == 1
    assert json.loads(line)["format"] == "daemonctl-watch/1"
    assert json.loads(line)["status"]["serving_state"] == "ready"
    assert daemon.cancelled.wait(60)


def test_plan_of_the_daemon(run: Run, daemon: ThreadedFakeDaemon) -> None:
    nodes = tuple(
        NodeCapacity(
            node_id=mac.node_id,
            ram_bytes=mac.ram_bytes,
            usable_bytes=mac.usable_bytes,
            bandwidth_gb_per_s=mac.table_gb_per_s,
        )
        for mac in scenes.MACS
    )
    result = plan(PlanRequest(profile=big_profile(), nodes=nodes, context_tokens=4096))
    daemon.script.plan = cluster_pb2.PlanModelResponse(
        feasible=result.feasible, result_json=json.dumps(result.to_json())
    )
    outcome = run("plan", "MiniMax-M2.5-5bit", "--context", "4096")
    assert outcome.code == (0 if result.feasible else 1)
    assert "a1b2c3d4 studio" in outcome.out
    request = last_request(daemon, "PlanModel")
    assert isinstance(request, cluster_pb2.PlanModelRequest)
    assert (request.context_tokens, request.objective) == (4096, "balanced")


def test_the_daemon_is_asked_everything(run: Run, daemon: ThreadedFakeDaemon) -> None:
    refusal = Refusal(kind="no_nodes", message="none")
    daemon.script.plan = cluster_pb2.PlanModelResponse(
        feasible=False, result_json=json.dumps(refusal.to_json())
    )
    argv = "--exclude a --exclude b --require c --head d --tail e --objective latency --stages 3 --slots 2"
    argv += " --decode-context 1,000 --prefill-share 0.5 --kv-bits 8 --chunk 256 --tensor-parallel --explain"
    outcome = run("plan", "m", "--context", "2000", *argv.split())
    assert outcome.code == 1
    assert outcome.out.startswith("# refused: no_nodes")
    expected = cluster_pb2.PlanModelRequest(
        model_id="m",
        context_tokens=2000,
        slots=2,
        objective="latency",
        stage_count=3,
        excluded_nodes=["a", "b"],
        required_nodes=["c"],
        head_node="d",
        tail_node="e",
        decode_context_tokens=1000,
        prefill_share=0.5,
        kv_bits=8,
        prefill_chunk_tokens=256,
        allow_tensor_parallel=True,
        explain=True,
    )
    assert last_request(daemon, "PlanModel") == expected


def test_an_argument_that_the_daemon_finds_wrong_is_a_usage_error(
    run: Run, daemon: ThreadedFakeDaemon
) -> None:
    daemon.script.failures["PlanModel"] = wire_failure(
        Reason.INVALID_ARGUMENT, "exclude: there is no node 'x'"
    )
    outcome = run("plan", "m", "--exclude", "x")
    assert outcome.code == 2
    assert "there is no node 'x'" in outcome.err


def test_the_daemon_is_asked_for_every_point_of_a_plot(
    run: Run, daemon: ThreadedFakeDaemon, tmp_path: Path
) -> None:
    node = NodeCapacity(
        node_id="a" * 8, ram_bytes=256 * 10**9, usable_bytes=250 * 10**9, bandwidth_gb_per_s=800
    )
    result = plan(PlanRequest(profile=big_profile(), nodes=(node,), context_tokens=4096))
    daemon.script.plan = cluster_pb2.PlanModelResponse(
        feasible=result.feasible, result_json=json.dumps(result.to_json())
    )
    outcome = run("plan", "m", "--plot", str(tmp_path / "p.png"))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    asked = [m.context_tokens for _, m in daemon.calls if isinstance(m, cluster_pb2.PlanModelRequest)]
    assert asked == [0, 1024, 1536, 2048, 2816]


def test_a_plan_that_does_not_add_up_is_refused(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.plan = cluster_pb2.PlanModelResponse(feasible=True, result_json='{"format": "x"}')
    outcome = run("plan", "m")
    assert outcome.code == 1
    assert "cannot be read" in outcome.err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nonsense",),
        ("load",),
        ("load", "m", "--context", "-1"),
        ("load", "m", "--context", "many"),
        ("load", "m", "--slots", "0"),
        ("load", "m", "--objective", "speed"),
        ("load", "m", "--cont", "5"),
        ("load", "m", "--exclude", "a"),
        ("load", "m", "--kv-bits", "5"),
        ("generate", "x", "--top-p", "1.5"),
        ("generate", "x", "--temperature", "nan"),
        ("generate", "x", "--temperature", "-1"),
        ("cluster",),
        ("service",),
        ("plan",),
    ],
)
def test_usage_errors(run: Run, argv: tuple[str, ...]) -> None:
    outcome = run(*argv)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "usage: daemonctl" in outcome.err


def test_every_command_has_help_with_examples_before_options(run: Run) -> None:
    for command in COMMANDS:
        outcome = run(command.name, "--help")
        assert outcome.code == 0
        text = outcome.out
        assert text.index("examples:") < text.index("options:"), command.name
        assert f"  daemonctl {command.name}" in text


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, "daemonctl 0.1.0\n")

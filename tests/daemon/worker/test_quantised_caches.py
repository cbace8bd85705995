"""Plans with quantised caches: what workers generate, and what their parts hold."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macmesh_daemon.cluster.messages import ModelRef
from macmesh_daemon.engine.profile import profile_folder
from macmesh_daemon.engine.requests import Request
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.steps import Open, Row, Sampled, Step, StepDone
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.node.lane_choice import TransportChoice
from macmesh_daemon.node.translation import deployment_of
from macmesh_daemon.supervisor.local_plan import local_plan
from macmesh_daemon.supervisor.verify import verify
from macmesh_daemon.worker.checks import check_start
from macmesh_daemon.worker.engine_parts import budget_of, engine_parts
from macmesh_daemon.worker.errors import LocalStartError
from macmesh_placement import NodeCapacity, Placement, PlanRequest, plan
from macmesh_placement.stagecache import StageCacheCost
from macmesh_rdma.options import LinkOptions
from tinymodels import write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(37)]
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", head_dim=64)


@pytest.mark.process
@pytest.mark.parametrize(("stages", "kv_bits"), [(1, 4), (2, 8)])
async def test_workers_generate_what_mlx_lm_does_on_quantised_caches(
    stages: int, kv_bits: int, folder: Path
) -> None:
    report = await verify(
        folder, PROMPT, 12, stages=stages, kv_bits=kv_bits, prefill_chunk_tokens=16, deadline_seconds=120
    )
    assert report.identical
    assert len(set(report.pipeline.token_ids)) > 3


def placed(folder: Path, stages: int, kv_bits: int) -> Any:
    """The deployment that a coordinator would make, on the wire."""
    profile = profile_folder(read_folder(folder)).with_kv_bits(kv_bits)
    nodes = tuple(
        NodeCapacity(
            node_id=name,
            host_id=name,
            name=name,
            ram_bytes=4 * GB,
            usable_bytes=3 * GB,
            bandwidth_gb_per_s=100,
        )
        for name in "abc"[:stages]
    )
    result = plan(PlanRequest(profile=profile, nodes=nodes, context_tokens=700, stage_count=stages))
    assert isinstance(result, Placement)
    return to_proto(
        deployment_of(result, profile, ModelRef("m"), LinkOptions(), TransportChoice("auto", "", None))
    )


@pytest.mark.parametrize("stages", [1, 2])
def test_a_workers_parts_hold_what_the_plan_charges(stages: int, folder: Path) -> None:
    deployment = placed(folder, stages, 8)
    assert deployment.kv_bits == 8
    cuts = [stage.first_layer for stage in deployment.stages[1:]]
    starts = local_plan([folder] * stages, cuts, layer_count=4, context_tokens=700, kv_bits=8)
    parts, payload = engine_parts(), [mx.array([PROMPT], mx.int32)]
    for start, planned in zip(starts, deployment.stages, strict=True):
        start.deployment.CopyFrom(deployment)
        check_start(start)
        stage: Any = parts.load(start, lambda _loaded, _total: None)
        house: Any = parts.house(start, stage)
        house.apply(Open(0, "a", 600, Sampling()))
        caches = house.caches_for(Step(1, "prefill", rows=(Row(0, "a", 0),), tokens=tuple(PROMPT)))
        payload = stage.step(payload, caches)
        stage.evaluate(payload, caches)
        cost = StageCacheCost.from_json_text(planned.cache_cost_json)
        assert {piece.source for piece, _ in cost.pieces} == {"QuantizedKVCache"}
        assert house.nbytes == cost.reserved_bytes(600)
    budget = budget_of(deployment)
    assert budget is not None
    assert budget.reserved(600) == tuple(
        StageCacheCost.from_json_text(stage.cache_cost_json).reserved_bytes(600)
        for stage in deployment.stages
    )


def test_less_cache_is_planned_the_scores_are_charged_and_the_plan_says_so(folder: Path) -> None:
    sizes = {}
    for bits in (4, 8):
        [stage] = placed(folder, 1, bits).stages
        entries = {entry.name: entry.size_bytes for entry in stage.ledger.entries}
        assert entries["attention_scratch"] > 0
        sizes[bits] = stage.cache_budget_bytes
    assert sizes[4] < sizes[8]


def test_requests_on_quantised_caches_are_never_batched(folder: Path) -> None:
    [start] = local_plan([folder], [], layer_count=4, context_tokens=700, kv_bits=8)
    parts = engine_parts()
    stage: Any = parts.load(start, lambda _loaded, _total: None)
    schedule = parts.schedule(start, stage, False)  # noqa: FBT003  queued ahead: no
    for name in "ab":
        schedule.submit(Request(name, tuple(PROMPT), 8, Sampling()))
    rows = []
    while (step := schedule.next_step(0.0)) is not None:
        rows.append({row.request_id for row in step.rows})
        assert step.batch is None
        sampled = tuple(Sampled(5, 0.0) for _ in step.rows) if step.kind == "decode" else ()
        schedule.done(StepDone(step.number, sampled, 0.01), 0.0)
    assert {"a"} in rows
    assert {"b"} in rows


def test_bits_that_a_worker_has_no_caches_of_are_refused(folder: Path) -> None:
    [start] = local_plan([folder], [], layer_count=4, context_tokens=700, kv_bits=3)
    with pytest.raises(LocalStartError, match="kv_bits is 3"):
        check_start(start)

"""Statuses of a cluster of three Macs, as a daemon would tell them: for fakes and for golden tests."""

from typing import Final, NamedTuple

from macmesh.v1 import cluster_pb2, peer_pb2, types_pb2

GB: Final = 10**9


class _Mac(NamedTuple):
    node_id: str
    hostname: str
    chip: str
    ram_bytes: int
    usable_bytes: int
    measured_gb_per_s: float
    table_gb_per_s: float
    voter: bool


MACS: Final = (
    _Mac("a1b2c3d4e5f60718", "studio", "Apple M3 Ultra", 128 * GB, 96 * GB, 612.5, 819.0, voter=True),
    _Mac("b7c8d9e0f1a2b3c4", "mini", "Apple M4 Pro", 64 * GB, 48 * GB, 231.0, 273.0, voter=True),
    _Mac("c0ffee00c0ffee00", "book", "Apple M3 Max", 36 * GB, 27 * GB, 0.0, 410.0, voter=True),
)

#: First layer, end layer, weight bytes, cache bytes of each stage.
_STAGES: Final = (
    (0, 36, 62 * GB, 21 * GB),
    (36, 54, 31 * GB, 10 * GB),
    (54, 62, 14 * GB, 5 * GB),
)
_OTHER_BYTES: Final = 2 * GB


def epoch(seq: int = 2) -> types_pb2.Epoch:
    """An epoch of the scenes."""
    return types_pb2.Epoch(generation=1, term=3, seq=seq)


def idle() -> cluster_pb2.GetStatusResponse:
    """Three nodes, a coordinator, no model."""
    status = cluster_pb2.GetStatusResponse(
        cluster="5f2e9c01",
        node_id=MACS[0].node_id,
        coordinator_node_id=MACS[0].node_id,
        term=3,
        has_quorum=True,
        serving_state="idle",
    )
    status.document.generation, status.document.term, status.document.seq = 1, 3, 1
    for index, mac in enumerate(MACS):
        facts = types_pb2.NodeFacts(
            hostname=mac.hostname,
            host_id=f"host-{index}",
            chip=mac.chip,
            ram_bytes=mac.ram_bytes,
            usable_bytes=mac.usable_bytes,
            bandwidth_gb_per_s=mac.measured_gb_per_s,
            table_bandwidth_gb_per_s=mac.table_gb_per_s,
            macmesh_version="0.1.0",
            mlx_version="0.32.4",
            mlx_lm_version="0.32.2",
            portable=mac.hostname == "book",
            cpu_count=16,
        )
        member = types_pb2.Member(
            node_id=mac.node_id,
            addresses=[f"192.168.7.{11 + index}:52415"],
            facts=facts,
            voter=mac.voter,
            discovery="mdns",
        )
        status.document.members.append(member)
        status.nodes.append(
            cluster_pb2.NodeStatus(
                member=member,
                role="coordinator" if index == 0 else "voter",
                liveness="alive",
                heartbeat_ms=-1.0 if index == 0 else 0.4 + 0.2 * index,
            )
        )
    return status


def deployment() -> types_pb2.Deployment:
    """The plan of the scenes: 62 layers on three nodes."""
    plan = types_pb2.Deployment(
        model=types_pb2.ModelRef(
            model_id="MiniMax-M2.5-5bit", path="/models/MiniMax-M2.5-5bit", digest="ab" * 32
        ),
        layer_count=62,
        context_tokens=196_608,
        slots=1,
        prefill_chunk_tokens=1024,
        transport="ring",
        sync_mode="safe",
        predicted_decode_seconds=0.031,
    )
    for index, (first, end, weights, cache) in enumerate(_STAGES):
        usable = MACS[index].usable_bytes
        entries = [
            types_pb2.LedgerEntry(name="weights", size_bytes=weights, source="safetensors headers"),
            types_pb2.LedgerEntry(name="cache", size_bytes=cache, source="traced"),
            types_pb2.LedgerEntry(name="reserve", size_bytes=_OTHER_BYTES, source="constant"),
        ]
        plan.stages.append(
            types_pb2.Stage(
                index=index,
                node_id=MACS[index].node_id,
                first_layer=first,
                end_layer=end,
                ledger=types_pb2.Ledger(
                    entries=entries,
                    usable_bytes=usable,
                    headroom_bytes=usable - weights - cache - _OTHER_BYTES,
                ),
            )
        )
    return plan


def _worker(index: int, state: "peer_pb2.WorkerState.ValueType", share: float = 1.0) -> peer_pb2.WorkerReport:
    total = _STAGES[index][2]
    return peer_pb2.WorkerReport(
        epoch=epoch(), stage_index=index, state=state, loaded_bytes=int(total * share), total_bytes=total
    )


def _planned() -> cluster_pb2.GetStatusResponse:
    status = idle()
    plan = deployment()
    status.document.plan.epoch.CopyFrom(epoch())
    status.document.plan.deployments.append(plan)
    status.document.wanted.model.CopyFrom(plan.model)
    status.document.wanted.context_tokens = plan.context_tokens
    for index, stage in enumerate(plan.stages):
        node = status.nodes[index]
        node.stage.CopyFrom(stage)
        node.weights_bytes, node.cache_bytes = _STAGES[index][2:]
        node.headroom_bytes = stage.ledger.headroom_bytes
        node.link = plan.transport
    return status


def loading() -> cluster_pb2.GetStatusResponse:
    """A plan is committed, the workers load."""
    status = _planned()
    status.serving_state = "loading"
    for index, share in enumerate((0.25, 0.5, 1.0)):
        state = peer_pb2.WORKER_STATE_LOADED if share == 1.0 else peer_pb2.WORKER_STATE_LOADING
        status.nodes[index].worker.CopyFrom(_worker(index, state, share))
    return status


def ready() -> cluster_pb2.GetStatusResponse:
    """The model is served."""
    status = _planned()
    status.serving_state = "ready"
    status.active_requests = 1
    for index in range(len(MACS)):
        status.nodes[index].worker.CopyFrom(_worker(index, peer_pb2.WORKER_STATE_READY))
    return status


def degraded() -> cluster_pb2.GetStatusResponse:
    """A node of the plan is lost."""
    status = ready()
    status.serving_state = "degraded"
    status.active_requests = 0
    status.nodes[2].liveness = "dead"
    status.nodes[2].worker.CopyFrom(
        peer_pb2.WorkerReport(
            epoch=epoch(), stage_index=2, state=peer_pb2.WORKER_STATE_FAILED, error="heartbeat lost"
        )
    )
    status.health.append(
        "node book (c0ffee00) does not answer: stage 2 of 3 is lost, nothing can be generated"
    )
    return status


def no_quorum() -> cluster_pb2.GetStatusResponse:
    """One node of three alone: the plan is known, nothing can change."""
    status = degraded()
    status.nodes[1].liveness = "dead"
    status.nodes[1].role = "voter"
    status.nodes[0].role = "voter"
    status.coordinator_node_id = ""
    status.has_quorum = False
    status.health.insert(0, "1 of 3 voters answers, 2 are needed: nothing can be changed")
    return status


def refused() -> cluster_pb2.GetStatusResponse:
    """The wanted model does not fit."""
    status = idle()
    status.serving_state = "refused"
    status.document.wanted.model.model_id = "Huge-1T-4bit"
    status.document.wanted.context_tokens = 8192
    status.refusal_json = (
        '{"reason": "DOES_NOT_FIT", "message": "weights exceed the usable memory by 310 GB"}'
    )
    status.health.append("Huge-1T-4bit does not fit: weights exceed the usable memory by 310 GB")
    return status


def stage_stats(tokens: int = 0) -> cluster_pb2.GetStageStatsResponse:
    """Every stage of the plan after so many tokens: a millisecond of work and two of idleness for each."""
    plan = deployment()
    answer = cluster_pb2.GetStageStatsResponse(
        epoch=epoch(),
        model=plan.model,
        context_tokens=plan.context_tokens,
        slots=plan.slots,
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        vocabulary_tokens=200_064,
    )
    for stage, (_, _, weights, _) in zip(plan.stages, _STAGES, strict=True):
        phases = {"describe": 0.0002, "wait": 0.0006, "receive": 0.0001, "send": 0.0001, "idle": 0.002}
        stats = peer_pb2.StageStats(
            steps=tokens,
            active_memory_bytes=weights,
            peak_memory_bytes=weights + 1_000_000_000,
            phases=[
                peer_pb2.StagePhase(name=name, seconds=tokens * seconds, count=tokens)
                for name, seconds in phases.items()
            ],
        )
        answer.stages.append(cluster_pb2.MeasuredStage(stage=stage, stats=stats))
    return answer


def load_steps() -> list[cluster_pb2.LoadModelResponse]:
    """The progress of a load, from profiling to ready."""
    steps = [cluster_pb2.LoadModelResponse(phase=phase) for phase in ("profiling", "planning")]
    steps += [
        cluster_pb2.LoadModelResponse(phase=phase, epoch=epoch()) for phase in ("preparing", "committed")
    ]
    steps[-1].deployment.CopyFrom(deployment())
    for share in (0.0, 0.5, 1.0):
        workers = [_worker(i, peer_pb2.WORKER_STATE_LOADING, share) for i in range(len(MACS))]
        steps.append(
            cluster_pb2.LoadModelResponse(
                phase="loading", epoch=epoch(), workers=workers, deployment=deployment()
            )
        )
    workers = [_worker(i, peer_pb2.WORKER_STATE_LOADED) for i in range(len(MACS))]
    steps.append(
        cluster_pb2.LoadModelResponse(
            phase="connecting", epoch=epoch(), workers=workers, deployment=deployment()
        )
    )
    workers = [_worker(i, peer_pb2.WORKER_STATE_READY) for i in range(len(MACS))]
    for report in workers:
        report.start_phases.add(name="load", seconds=20.0)
        report.start_phases.add(name="warm_up", seconds=1.25)
    steps.append(
        cluster_pb2.LoadModelResponse(phase="ready", epoch=epoch(), workers=workers, deployment=deployment())
    )
    return steps

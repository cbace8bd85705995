"""`daemonctl bench` as users run it, against real daemons and workers."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.daemons import DEADLINE_SECONDS, MODEL, cluster_of, has_formed, start, until

if TYPE_CHECKING:
    from macmesh_daemon.demo.nodes import DemoCluster

pytestmark = pytest.mark.process
CONTEXT_TOKENS = 512
DAEMONCTL = str(Path(sys.executable).parent / "daemonctl")


async def bench(cluster: DemoCluster, *argv: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        DAEMONCTL,
        "bench",
        "--json",
        "--socket",
        str(cluster.nodes[1].socket_path),
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    report: dict[str, Any] = json.loads(out)
    assert report["ledger_complaints"] == []
    return report


def check_stages(stages: list[dict[str, Any]]) -> None:
    """Every stage told fresh figures, and its memory lies within its ledger."""
    assert len(stages) == 2
    for stage in stages:
        assert stage["reason"] == ""
        assert 0 < stage["peak_memory_bytes"] <= stage["ledger_bytes"]
        assert stage["within_ledger"] is True
        times = stage["phase_ms_per_step"]
        assert times["describe"] > 0
        assert times["receive"] + times["send"] == pytest.approx(stage["transport_ms_per_step"], abs=0.001)
    # The tail waits for what the head sends, and the head for what the tail has sampled.
    assert stages[1]["transport_ms_per_step"] > 0


async def test_a_cluster_of_two_is_measured_and_compared_with_mlx_lm(tmp_path: Path) -> None:
    async with await cluster_of(tmp_path, 2, needed=2, context_tokens=CONTEXT_TOKENS) as cluster:
        await start(cluster)
        async with cluster.nodes[0].client() as client:
            await until(client, partial(has_formed, 2), "formed")
            await client.load(MODEL, context_tokens=CONTEXT_TOKENS)

        measured = await bench(
            cluster, "--prompt", "40", "--tokens", "8", "--repeats", "2", "--concurrency", "1,2", "--baseline"
        )
        cases = measured["cases"]
        assert [(c["prefix"], c["concurrency"]) for c in cases] == [
            ("cold", 1),
            ("warm", 1),
            ("cold", 2),
            ("warm", 2),
        ]
        for case in cases:
            assert case["inter_token_seconds"]["count"] == 7 * case["requests"]
            assert case["prefill_tokens_per_second"] > 0
            assert case["schedule"]["prompts"] == case["requests"]
            assert case["aggregate_tokens_per_second"] > 0
            check_stages(case["stages"])
            for stage in case["stages"]:
                # At least a step for each token of a round; no request takes more than a few beside its tokens.
                assert case["rounds"] * 8 <= stage["steps"] <= case["requests"] * 12
        alone, ring = measured["baselines"]
        assert (alone["name"], alone["refusal"], ring["refusal"]) == (
            "mlx-lm",
            "",
            "mlx-lm has no pipeline() for qwen3",
        )
        [theirs] = alone["cases"]
        assert theirs["identical"] is True
        assert theirs["decode_tokens_per_second"] > 0

        # Every node tells what the head's schedule counts, without asking its worker.
        for node in cluster.nodes:
            async with node.client() as client:
                status = await until(
                    client,
                    # A warm-up is two requests; a warm case begins with a round that is not measured.
                    lambda s: (
                        s.schedule.prompts == 2 + 2 + 3 + 4 + 6
                        and (s.schedule.running, s.schedule.waiting) == (0, 0)
                    ),
                    "counted",
                )
            assert len(status.schedule.cache_budget_bytes) == 2
            assert 0 < status.schedule.prefix_hits < status.schedule.prompts

        climbed = await bench(cluster, "--climb", "--tokens", "8", "--warm-up", "0")
        assert climbed["climb"]["reached_tokens"] == CONTEXT_TOKENS
        assert climbed["climb"]["within_ledgers"] is True
        assert [r["length_tokens"] for r in climbed["climb"]["rungs"]] == [64, 128, 256, CONTEXT_TOKENS]
        for rung in climbed["climb"]["rungs"]:
            check_stages(rung["stages"])

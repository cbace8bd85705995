"""Weights that are read or fetched before a plan changes."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from macmesh_daemon.cluster.messages import Deployment, Epoch, FetchProgress, ModelRef, Plan
from macmesh_daemon.models import resolve
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.node.read_ahead import fetch_ahead, layer_of, missing_layers, read_ahead
from macmesh_daemon.weights.errors import RemoteSourceFailedError
from simulator.parts import split, wanted_model

M = wanted_model()


def plan(names: str, model: ModelRef | None = M.model) -> Plan:
    return Plan(Epoch(1, 1, 1), (dataclasses.replace(split(M, list(names)), model=model),), M)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12),
        ("layers.0.norm.weight", 0),
        ("transformer.h.7.mlp.w1", 7),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("model.layers_extra.3.weight", None),
    ],
)
def test_the_layer_of_a_tensor(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_only_what_is_not_held_is_read() -> None:
    assert missing_layers(plan("abc"), plan("ab"), "a") == frozenset(range(8, 12))
    assert missing_layers(plan("abc"), plan("ab"), "b") == frozenset(range(16, 24))
    assert missing_layers(plan("ab"), plan("abc"), "c") == frozenset(range(16, 24))
    assert missing_layers(plan("abc"), plan("ab"), "c") == frozenset()
    assert missing_layers(None, plan("ab"), "a") == frozenset(range(12))
    assert missing_layers(plan("ab", ModelRef("k")), plan("ab"), "a") == frozenset(range(12))


def test_the_bytes_of_those_layers_are_read_and_no_others() -> None:
    folder = resolve(str(demo_model_folder()), ())
    layers = frozenset({0, 2})
    expected = sum(t.size_bytes for name, t in folder.tensors.items() if layer_of(name) in layers)
    assert expected > 0
    assert read_ahead(folder, layers, 60.0) == expected
    assert read_ahead(folder, frozenset(), 60.0) == 0
    assert read_ahead(folder, layers, 0.0) == 0, "out of time"


def test_a_file_that_is_gone_is_left_to_the_worker() -> None:
    folder = resolve(str(demo_model_folder()), ())
    gone = dataclasses.replace(folder, path=folder.path / "nowhere")
    assert read_ahead(gone, frozenset({0}), 1.0) == 0


DEPLOYMENT = split(M, ["a", "b"])


class Source:
    """Provides weights, or what a test wants instead."""

    def __init__(self, error: Exception | None = None, *, ends: bool = True) -> None:
        self.error = error
        self.ends = ends
        self.asked: list[tuple[Deployment, int]] = []
        self.was_cancelled = False

    async def provide(
        self, deployment: Deployment, stage_index: int, told: Callable[[FetchProgress], None]
    ) -> Path:
        self.asked.append((deployment, stage_index))
        told(FetchProgress(total_bytes=100, disk_bytes=50, peer_bytes=20, hub_bytes=7))
        if self.error is not None:
            raise self.error
        if not self.ends:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled = True
        return Path("/models/m")


async def test_weights_are_fetched_until_the_time_is_over() -> None:
    loop = asyncio.get_running_loop()
    quick, slow = Source(), Source(ends=False)
    assert await fetch_ahead(quick.provide, DEPLOYMENT, 1, loop.time() + 60) == 27
    assert quick.asked == [(DEPLOYMENT, 1)]
    assert await fetch_ahead(slow.provide, DEPLOYMENT, 0, loop.time() + 0.01) == 27
    assert slow.was_cancelled


@pytest.mark.parametrize("error", [RemoteSourceFailedError("gone"), ExceptionGroup("several", [OSError()])])
async def test_what_cannot_be_fetched_ahead_is_left_to_the_fetch_after_the_commit(error: Exception) -> None:
    until = asyncio.get_running_loop().time() + 60
    assert await fetch_ahead(Source(error).provide, DEPLOYMENT, 0, until) == 27

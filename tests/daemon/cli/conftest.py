"""A fake daemon, files to plan with, and a way to run `daemonctl` in this process."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macmesh.testing import ThreadedFakeDaemon
from macmesh_daemon.cli.daemonctl import main
from macmesh_placement import AttentionFacts, CachePiece, LayerProfile, ModelProfile, Scratch, ScratchTerm


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> Outcome:
        try:
            code = main(list(argv))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def socket_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "d.sock"


@pytest.fixture
def daemon(socket_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedFakeDaemon]:
    monkeypatch.setenv("MACMESH_SOCKET", str(socket_file))
    with ThreadedFakeDaemon(socket_file) as daemon:
        yield daemon


def big_profile() -> ModelProfile:
    """The shape and size of a MiniMax-M2.5 at 5 bits: 62 layers of 2.5 GB, 8 key-value heads of 128."""
    layer = LayerProfile(
        weight_bytes=2_500_000_000,
        active_weight_bytes=120_000_000,
        active_parameters=170_000_000,
        parameter_count=20,
        scratch=Scratch(live=(ScratchTerm(0, 60_000, 0, 0),)),
        caches=(CachePiece(kind="growing", source="KVCache", bytes_per_token=4096),),
        attention=AttentionFacts(query_heads=48, fused=True, score_bytes=2),
    )
    return ModelProfile(
        model_id="MiniMax-M2.5-5bit",
        model_type="minimax",
        digest="ab" * 32,
        layers=(layer,) * 62,
        embedding_bytes=420_000_000,
        norm_bytes=6144,
        head_bytes=420_000_000,
        tied=False,
        hidden_size=3072,
        vocab_size=200_064,
        activation_bytes=2,
        position_limit=196_608,
        cut_points=tuple(range(1, 62)),
    )


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    path = tmp_path / "minimax.profile.json"
    path.write_text(big_profile().to_json_text())
    return path


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.json"
    gb = 10**9
    nodes = [
        {"name": name, "ram_bytes": ram * gb, "usable_bytes": usable * gb, "bandwidth_gb_per_s": bandwidth}
        for name, ram, usable, bandwidth in (
            ("studio", 128, 96, 546),
            ("studio2", 128, 96, 546),
            ("book", 36, 27, 410),
        )
    ]
    path.write_text(json.dumps({"format": "macmesh-cluster/1", "nodes": nodes}))
    return path

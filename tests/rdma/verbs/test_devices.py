"""Asking the verbs library in a process of its own."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from macmesh_rdma.testing.fakeverbs import FakeFabric
from macmesh_rdma.verbs.devices import may_have_devices, verbs_facts


@pytest.mark.process
async def test_a_process_tells_the_devices_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFabric([("a.fake0", "b.fake0")], loose=["a.fake1"]) as fabric:
        for name, value in fabric.environment("a").items():
            monkeypatch.setenv(name, value)
        found = await verbs_facts("")
        assert [port.device for port in found.ports] == ["fake0", "fake1"]
        assert found.ports[0].refused == ""
        assert found.limits is not None
        assert found.limits.max_queue_pairs == 10
    missing = await verbs_facts("/nowhere/librdma.dylib")
    assert "/nowhere/librdma.dylib" in missing.refused
    assert missing.ports == ()


@pytest.mark.parametrize("answer", ["", "{}", "null", "[1]", '{"ports": 3}'])
async def test_an_answer_of_any_form_is_at_worst_a_refusal(answer: str) -> None:
    async def run(command: Sequence[str]) -> str:
        assert command[-1] == "/lib"
        return answer

    assert "cannot be found out" in (await verbs_facts("/lib", runner=run)).refused


@pytest.mark.parametrize("error", [OSError("it failed with exit status -11"), TimeoutError()])
async def test_a_process_that_crashes_or_hangs_is_a_refusal(error: Exception) -> None:
    async def run(_: Sequence[str]) -> str:
        raise error

    assert (await verbs_facts("", runner=run)).refused


def test_only_where_something_hints_at_devices_it_is_worth_asking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MACMESH_VERBS_LIBRARY", raising=False)
    assert not may_have_devices("", platform="linux", folder=tmp_path / "none")
    assert not may_have_devices("", platform="linux", folder=tmp_path)
    assert may_have_devices("/lib", platform="linux", folder=tmp_path)
    assert may_have_devices("", platform="darwin", folder=tmp_path)
    (tmp_path / "mlx5_0").mkdir()
    assert may_have_devices("", platform="linux", folder=tmp_path)
    monkeypatch.setenv("MACMESH_VERBS_LIBRARY", "/there")
    assert may_have_devices("", platform="linux", folder=tmp_path / "none")

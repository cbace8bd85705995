"""Real workers that load what their nodes fetched: the tokens are those of the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from macmesh_daemon.models import LocalModelNotFoundError, folder
from macmesh_daemon.node import model_finder
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.weights.store import ModelStore
from support.mesh import Mesh
from support.models import copy_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from macmesh_daemon.models import ModelFolder

pytestmark = pytest.mark.process


async def test_a_node_that_fetched_its_stage_generates_as_one_that_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(model_id: str, search_folders: Iterable[Path], **other: Any) -> ModelFolder:
        folders = list(search_folders)
        if Path(model_id).is_absolute() and not any(Path(model_id).is_relative_to(f) for f in folders):
            raise LocalModelNotFoundError(f"there is no model folder {model_id}")
        return folder.resolve(model_id, folders, **other)

    monkeypatch.setattr(model_finder, "resolve", own)
    mesh = Mesh(tmp_path, 2)
    for index, node in enumerate(mesh.nodes):
        node.config = replace(node.config, models_folders=(tmp_path / f"models{index}",))
        node.make_worker = WorkerProcess  # type: ignore[assignment]
    copy_model(tmp_path / "models0" / "tiny")
    async with mesh:
        await mesh.formed()
        async with mesh.nodes[1].client() as client:
            await client.load("tiny", context_tokens=256, stage_count=2)
            parted = await client.complete("A plan is", max_tokens=12, temperature=0.0, ignore_eos=True)
            await client.load("tiny", context_tokens=256, stage_count=1)
            whole = await client.complete("A plan is", max_tokens=12, temperature=0.0, ignore_eos=True)
        assert parted.token_ids == whole.token_ids
        [digest] = ModelStore(mesh.nodes[1].config.resolved_weights_folder()).digests()
        assert digest == folder.read_folder(tmp_path / "models0" / "tiny").digest
        assert ModelStore(mesh.nodes[0].config.resolved_weights_folder()).digests() == []

"""Planning without a daemon: a cluster from a file, a model from a profile file or a folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.parsers import model_argument
from macmesh_placement import (
    LocalPlacementError,
    ModelProfile,
    Placement,
    PlanRequest,
    Refusal,
    cluster_from_json,
    plan,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_PROFILE_DEADLINE_SECONDS: Final = 300.0


def plan_offline(args: argparse.Namespace) -> tuple[Placement | Refusal, Mapping[str, str]]:
    """Plan for the cluster in ``args.cluster``; also gives the nodes' names.

    Raises:
        CommandError: A file cannot be read or is wrong, or the model cannot be profiled.
    """
    try:
        cluster = cluster_from_json(_read(args.cluster))
        profile = _profile(args.model)
        request = PlanRequest(
            profile=profile,
            nodes=cluster.nodes,
            links=cluster.links,
            context_tokens=args.context,
            slots=args.slots,
            objective=args.objective,
            stage_count=args.stages,
        )
        result = plan(request)
    except LocalPlacementError as error:
        raise CommandError(str(error), reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE) from error
    return result, {node.node_id: node.name for node in cluster.nodes}


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"cannot read {path}: {error}", reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE
        ) from error


def _profile(model: str) -> ModelProfile:
    path = Path(model).expanduser()
    if path.is_file():
        try:
            return ModelProfile.from_json(json.loads(_read(model)))
        except json.JSONDecodeError as error:
            raise CommandError(
                f"{model} is not JSON: {error}", reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE
            ) from error
    return asyncio.run(_profile_folder(model))


async def _profile_folder(model: str) -> ModelProfile:
    from macmesh_daemon.models import LocalModelError, resolve  # noqa: PLC0415  a profile file needs none of it
    from macmesh_daemon.models.profiler import profile_model  # noqa: PLC0415  as above

    config = settings()
    try:
        folder = await asyncio.to_thread(resolve, model_argument(model), config.models_folders)
        return await profile_model(
            folder, config.data_dir / "profiles", deadline_seconds=_PROFILE_DEADLINE_SECONDS
        )
    except LocalModelError as error:
        raise CommandError(str(error), reason=error.reason) from error

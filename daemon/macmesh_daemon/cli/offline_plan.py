"""Planning without a daemon: a cluster from a file, a model from a profile file, a folder or a hub."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.parsers import model_argument
from macmesh_daemon.cli.plan_answer import Answer, read_answer
from macmesh_daemon.plan_ask import PlanAsk, answer_json
from macmesh_placement import LocalPlacementError, ModelProfile, cluster_from_json, plan
from macmesh_placement.feasibility import at_context
from macmesh_placement.request import DEFAULT_PREFILL_CHUNK_TOKENS

if TYPE_CHECKING:
    import argparse

    from macmesh_placement import Placement, PlanRequest, Refusal

_PROFILE_DEADLINE_SECONDS: Final = 300.0


class OfflinePlanner:
    """Plans for the cluster in ``args.cluster``.

    Args:
        args: The command's arguments.

    Raises:
        CommandError: A file cannot be read or is wrong, the model cannot be profiled, or the arguments name
            no node or contradict each other.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        try:
            cluster = cluster_from_json(_read(args.cluster))
            self._request: PlanRequest = ask_of(args).request(
                _profile(args.model), cluster.nodes, links=cluster.links
            )
        except LocalPlacementError as error:
            raise _usage(str(error)) from error
        self._names = {node.node_id: node.name for node in cluster.nodes}
        self.model = self._request.profile.model_id
        self.cluster = Path(args.cluster).name.removesuffix(".json").removesuffix(".cluster")

    def answer(self, *, explain: bool) -> Answer:
        """The plan or the refusal, with the alternatives where asked."""
        try:
            body = answer_json(self._request, plan(self._request), explain=explain)
        except LocalPlacementError as error:
            raise _usage(str(error)) from error
        return read_answer(body, self._names)

    def at(self, context_tokens: int) -> Placement | Refusal:
        """The same ask at another context."""
        return plan(at_context(self._request, context_tokens))


def ask_of(args: argparse.Namespace) -> PlanAsk:
    """The arguments of `plan` as an ask."""
    return PlanAsk(
        context_tokens=args.context,
        slots=args.slots,
        objective=args.objective,
        stage_count=args.stages,
        excluded_nodes=tuple(args.exclude),
        required_nodes=tuple(args.require),
        head_node=args.head,
        tail_node=args.tail,
        decode_context_tokens=args.decode_context,
        prefill_share=args.prefill_share,
        kv_bits=args.kv_bits,
        prefill_chunk_tokens=args.chunk or DEFAULT_PREFILL_CHUNK_TOKENS,
        allow_tensor_parallel=args.tensor_parallel,
    )


def _usage(message: str) -> CommandError:
    return CommandError(message, reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE)


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _usage(f"cannot read {path}: {error}") from error


def _profile(model: str) -> ModelProfile:
    path = Path(model).expanduser()
    if path.is_file():
        return ModelProfile.from_json_text(_read(model))
    return asyncio.run(_profile_model(model))


async def _profile_model(model: str) -> ModelProfile:
    from macmesh_daemon.models import (  # noqa: PLC0415  a profile file needs none of it
        LocalModelNotFoundError,
        ModelError,
        resolve,
    )
    from macmesh_daemon.models.folder import is_hub_id  # noqa: PLC0415  as above
    from macmesh_daemon.models.profiler import profile_hub_model, profile_model  # noqa: PLC0415  as above

    config = settings()
    try:
        try:
            folder = await asyncio.to_thread(resolve, model_argument(model), config.models_folders)
        except LocalModelNotFoundError:
            if not is_hub_id(model):
                raise
            return await profile_hub_model(
                model, config.data_dir / "profiles", deadline_seconds=_PROFILE_DEADLINE_SECONDS
            )
        return await profile_model(
            folder, config.data_dir / "profiles", deadline_seconds=_PROFILE_DEADLINE_SECONDS
        )
    except ModelError as error:
        raise CommandError(str(error), reason=error.reason) from error

"""Planning by the daemon: dry runs with its cluster as it is."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from macmesh.errors import RemoteError
from macmesh.reasons import Reason
from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.parsers import model_argument
from macmesh_daemon.cli.plan_answer import Answer, read_answer
from macmesh_placement import LocalPlacementError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from macmesh import Client
    from macmesh_placement import Placement, Refusal


class DaemonPlanner:
    """Asks a daemon.

    Args:
        client: A client of it.
        args: The command's arguments.
    """

    def __init__(self, client: Client, args: argparse.Namespace) -> None:
        self._client = client
        self._args = args
        status = client.status()
        self._names = {n.member.node_id: n.member.facts.hostname for n in status.nodes}
        self.model = PurePath(args.model).name
        self.cluster = f"cluster {status.cluster}" if status.cluster else "this cluster"

    def answer(self, *, explain: bool) -> Answer:
        """The plan or the refusal, with the alternatives where asked.

        Raises:
            CommandError: The daemon found an argument wrong, or its answer cannot be read.
        """
        return self._read(self._ask(self._args.context, self._args.decode_context, explain=explain))

    def at(self, context_tokens: int) -> Placement | Refusal:
        """The same ask at another context; raises as `answer`."""
        decode = min(self._args.decode_context, context_tokens)
        return self._read(self._ask(context_tokens, decode, explain=False)).result

    def _ask(self, context_tokens: int, decode_context_tokens: int, *, explain: bool) -> Mapping[str, Any]:
        args = self._args
        try:
            return self._client.plan(
                model_argument(args.model),
                context_tokens=context_tokens,
                slots=args.slots,
                objective=args.objective,
                stage_count=args.stages,
                excluded_nodes=args.exclude,
                required_nodes=args.require,
                head_node=args.head,
                tail_node=args.tail,
                decode_context_tokens=decode_context_tokens,
                prefill_share=args.prefill_share,
                kv_bits=args.kv_bits,
                prefill_chunk_tokens=args.chunk,
                allow_tensor_parallel=args.tensor_parallel,
                explain=explain,
            ).result
        except RemoteError as error:
            if error.reason != Reason.INVALID_ARGUMENT:
                raise
            raise CommandError(error.message, reason=error.reason, exit_code=exit_codes.USAGE) from error

    def _read(self, body: Mapping[str, Any]) -> Answer:
        try:
            return read_answer(body, self._names)
        except LocalPlacementError as error:
            raise CommandError(f"the daemon's plan cannot be read: {error}", reason="INTERNAL") from error

"""`daemonctl drain`: take a node's stage away, or let it serve again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.commands.cluster_nodes import find_node
from macmesh_daemon.cli.connect import connect, socket_argument
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, amount

if TYPE_CHECKING:
    import argparse

    from macmesh.v1.cluster_pb2 import GetStatusResponse
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl drain studio2            its stage goes to the others; it stays a member and votes
daemonctl drain studio2 --leave    and then it says goodbye: switch it off
daemonctl drain studio2 --undo     it may serve again
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "drain",
        summary="take a node's stage away, so that its machine can be serviced",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument("node", metavar="NODE", help="a name, or the beginning of an id")
    parser.add_argument("--undo", action="store_true", help="let it serve again")
    parser.add_argument(
        "--force", action="store_true", help="also where no plan fits without it: what is served then ends"
    )
    parser.add_argument(
        "--leave",
        action="store_true",
        help="it says goodbye once it serves no stage, and stays away until --undo",
    )
    parser.add_argument(
        "--timeout",
        type=amount,
        default=600.0,
        metavar="SECONDS",
        help="longest wait until its stage is gone (default 600); the drain goes on after it; 0 does not wait",
    )


def run(args: argparse.Namespace) -> int:
    """Drain and wait until the node serves nothing, or undo that."""
    if args.undo and (args.force or args.leave):
        raise CommandError(
            "--undo takes neither --force nor --leave",
            exit_code=exit_codes.USAGE,
            reason="INVALID_ARGUMENT",
        )
    with connect(args) as client:
        node_id = find_node(client.status(), args.node)
        seq = client.drain(node_id, undo=args.undo, force=args.force, leave=args.leave)
        status = client.status()
    if args.timeout and not args.undo:
        talk(f"node {node_id[:8]} is draining: a plan without it is made")
        status = asyncio.run(_drained(args, node_id)) or status
    state, has_left = _state(status, node_id)
    if args.json:
        answer = {
            "node_id": node_id,
            "document_seq": seq,
            "drain": state,
            "left": has_left,
            "serving_state": status.serving_state,
        }
        print_json(args, answer)
    elif args.undo:
        print_data(f"node {node_id[:8]} may serve again")
        talk("the plan moves to it where that pays, or with the next load")
    else:
        print_data(f"node {node_id[:8]} is {state or 'about to be drained'}{' and has left' * has_left}")
        talk(f"`daemonctl drain {args.node} --undo` lets it serve again")
    is_done = args.undo or not args.timeout or _is_done(status, node_id, leave=args.leave)
    return exit_codes.OK if is_done else exit_codes.TRY_AGAIN


def _state(status: GetStatusResponse, node_id: str) -> tuple[str, bool]:
    """How far the drain is, and whether the node has said goodbye."""
    node = next((node for node in status.nodes if node.member.node_id == node_id), None)
    return (node.drain, node.liveness == "left") if node is not None else ("", False)


def _is_done(status: GetStatusResponse, node_id: str, *, leave: bool) -> bool:
    state, has_left = _state(status, node_id)
    return state == "drained" and (has_left or not leave)


async def _drained(args: argparse.Namespace, node_id: str) -> GetStatusResponse | None:
    """The first status in which the node is drained (and has left); the last one in time; None where none came."""
    from macmesh import AsyncClient  # noqa: PLC0415  loads gRPC, which --help does without
    from macmesh.v1.cluster_pb2 import GetStatusResponse as Status  # noqa: PLC0415  as above

    last: GetStatusResponse | None = None
    try:
        async with (
            asyncio.timeout(args.timeout),
            AsyncClient(socket_argument(args)) as client,
            client.watch() as updates,
        ):
            async for update in updates:
                if isinstance(update, Status):
                    last = update
                    if _is_done(update, node_id, leave=args.leave):
                        break
    except TimeoutError:
        pass
    return last

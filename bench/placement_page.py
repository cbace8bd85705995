"""Computes the printed parts of docs/placement.md from the example files, and writes them into the page.

Usage: python bench/placement_page.py

A part stands between ``<!-- computed: NAME -->`` and ``<!-- end -->``. A test compares the page with what this
gives.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from macmesh_daemon.cli import units
from macmesh_daemon.cli.plan_answer import read_answer
from macmesh_daemon.cli.plan_explain import render_refusal
from macmesh_daemon.cli.plan_view import render_plan
from macmesh_daemon.plan_ask import PlanAsk, answer_json
from macmesh_placement import (
    Ledger,
    ModelProfile,
    NodeCapacity,
    Placement,
    PlanRequest,
    Refusal,
    cluster_from_json,
    plan,
    stage_ledger,
)
from proportional_split import proportional_split

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "placement.md"
EXAMPLES = ROOT / "docs" / "examples"
SMALL_NODE = "laptop"
WIDTH = 100

_PART = re.compile(r"(<!-- computed: (\w[\w-]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def example() -> PlanRequest:
    """MiniMax-M2.5 at 5 bits on the three Macs of the example files, at its position limit."""
    profile = ModelProfile.from_json_text((EXAMPLES / "minimax-m2.5-5bit.profile.json").read_text("utf-8"))
    cluster = cluster_from_json((EXAMPLES / "three-macs.cluster.json").read_text("utf-8"))
    return PlanAsk().request(profile, cluster.nodes, links=cluster.links)


def node_of(request: PlanRequest, name: str) -> NodeCapacity:
    """The node of that name."""
    return next(node for node in request.nodes if node.label == name)


def small_ledger(request: PlanRequest, layer_count: int, context_tokens: int | None = None) -> Ledger:
    """The ledger of that many layers from the middle of the model on the small node."""
    node = node_of(request, SMALL_NODE)
    first = (request.profile.layer_count - layer_count) // 2
    return stage_ledger(
        request.profile,
        request.demand(context_tokens),
        first_layer=first,
        end_layer=first + layer_count,
        usable_bytes=node.usable_bytes,
        fused_attention=node.fused_attention,
    )


def weights_only_layers(request: PlanRequest) -> int:
    """Layers that a split in proportion to memory gives the small node."""
    counts = proportional_split([node.usable_bytes for node in request.nodes], request.profile.layer_count)
    return counts[[node.label for node in request.nodes].index(SMALL_NODE)]


def largest_closing_context(request: PlanRequest, layer_count: int) -> int:
    """The largest context at which the small node's ledger closes with that many layers."""
    low, high = 0, request.resolved_context_tokens + 1
    while high - low > 1:
        middle = (low + high) // 2
        if small_ledger(request, layer_count, middle).headroom_bytes >= 0:
            low = middle
        else:
            high = middle
    return low


def ledger_text(ledger: Ledger) -> str:
    """A ledger, line by line, to the byte."""
    lines = [(entry.name, entry.size_bytes, entry.source) for entry in ledger.entries]
    lines += [("total", ledger.total_bytes, ""), ("usable", ledger.usable_bytes, "")]
    lines.append(("headroom", ledger.headroom_bytes, ""))
    return "\n".join(f"{name:<16} {units.count(size):>15}  {source}".rstrip() for name, size, source in lines)


def _sizes() -> str:
    profile, context = example().profile, example().resolved_context_tokens
    (per_token,) = {piece.bytes_per_token for layer in profile.layers for piece in layer.caches}
    cache = sum(layer.cache_bytes(context) for layer in profile.layers)
    rows = [
        ("layers", units.count(profile.layer_count)),
        ("weights", _gb(profile.total_weight_bytes)),
        ("one layer", _gb(profile.layers[0].weight_bytes)),
        ("embedding, head", f"{_gb(profile.embedding_bytes)}, {_gb(profile.head_bytes)}"),
        ("KV per token and layer", f"{units.count(per_token)} bytes"),
        (f"KV of {units.count(context)} tokens", _gb(cache)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _weights_only() -> str:
    request = example()
    layers = weights_only_layers(request)
    context = largest_closing_context(request, layers)
    used = small_ledger(request, layers, context)
    beyond = small_ledger(request, layers, context + 1)
    return (
        f"A split in proportion to memory gives the {SMALL_NODE} {layers} layers, "
        f"{_gb(used.weights_bytes)} of weights in {_gb(used.usable_bytes)}: by weights alone that fits with "
        f"{_gb(used.usable_bytes - used.weights_bytes)} to spare. Its ledger closes up to a context of "
        f"**{units.count(context)}** tokens, with {units.count(used.headroom_bytes)} bytes left; one token more "
        f"lacks {units.count(-beyond.headroom_bytes)} bytes. At the position limit of "
        f"{units.count(request.resolved_context_tokens)} it lacks "
        f"{units.count(-small_ledger(request, layers).headroom_bytes)} bytes."
    )


def _plan() -> str:
    request = example()
    result = plan(request)
    if not isinstance(result, Placement):
        raise TypeError(f"the example does not fit: {result.message}")
    answer = read_answer(answer_json(request, result, explain=False), _names(request))
    return _fenced(render_plan(answer, result, WIDTH))


def _refusal() -> str:
    small = example()
    request = PlanAsk(excluded_nodes=(SMALL_NODE,)).request(small.profile, small.nodes, links=small.links)
    result = plan(request)
    if not isinstance(result, Refusal):
        raise TypeError("the example without its small node fits")
    answer = read_answer(answer_json(request, result, explain=False), _names(request))
    return _fenced(render_refusal(answer, result, WIDTH))


def _names(request: PlanRequest) -> dict[str, str]:
    return {node.node_id: node.label for node in request.nodes}


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.2f} GB"


PARTS: dict[str, Callable[[], str]] = {
    "sizes": _sizes,
    "ledger-7": lambda: _fenced(ledger_text(small_ledger(example(), 7))),
    "ledger-8": lambda: _fenced(ledger_text(small_ledger(example(), 8))),
    "weights-only": _weights_only,
    "plan": _plan,
    "refusal": _refusal,
}


def filled(page: str) -> str:
    """The page with every computed part computed anew.

    Raises:
        KeyError: The page names a part that there is not.
    """
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", page)


def main() -> int:
    """Writes the page."""
    argparse.ArgumentParser(description="writes the computed parts of docs/placement.md").parse_args()
    page = PAGE.read_text("utf-8")
    PAGE.write_text(filled(page), "utf-8")
    print(f"{PAGE}: {len(_PART.findall(page))} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

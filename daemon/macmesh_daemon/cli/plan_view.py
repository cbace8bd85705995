"""The plan as text: stages with their ledgers, or the refusal and what would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli import units
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.status_view import SHORT_ID, layers
from macmesh_daemon.cli.table import BOLD, GREEN, RED, RESET, Column, render_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macmesh_placement import Placement, Refusal

_KEPT_APART: Final = {"weights", "embedding", "head", "cache"}

_STAGES: Final = (
    Column("STAGE", right=True),
    Column("NODE", least=10),
    Column("LAYERS", right=True),
    Column("WEIGHTS", right=True),
    Column("KV@FULL", right=True),
    Column("OTHER", right=True),
    Column("TOTAL", right=True),
    Column("USABLE", right=True),
    Column("HEADROOM", right=True),
    Column("MS/TOKEN", right=True),
)
_LEDGER: Final = (
    Column("STAGE", right=True),
    Column("ENTRY"),
    Column("BYTES", right=True),
    Column("SOURCE", least=20),
)


def render_plan(
    plan: Placement,
    names: Mapping[str, str],
    width: int | None = None,
    *,
    color: bool = False,
    ledger: bool = False,
) -> str:
    """A plan that fits.

    Args:
        plan: The plan.
        names: Node id to a name for people.
        width: Columns of the terminal; None does not limit.
        color: With escape sequences.
        ledger: Also every line of every ledger, to the byte.
    """
    head = (
        f"# fits: {printable(plan.model_id)} · {plan.layer_count} layers · context"
        f" {units.count(plan.context_tokens)} · slots {plan.slots}"
        f" · prefill chunk {units.count(plan.prefill_chunk_tokens)}"
    )
    lines = [f"{GREEN}{head}{RESET}" if color else head]
    if plan.predicted_decode_seconds > 0:
        lines.append(
            f"# predicted at full context: {1 / plan.predicted_decode_seconds:.1f} tokens/s for one request,"
            f" {1000 * plan.predicted_decode_seconds:.1f} ms per token,"
            f" slowest stage {1000 * plan.predicted_slowest_stage_seconds:.1f} ms"
        )
    proof = plan.certificate
    lines.append(
        f"# objective {plan.objective}: {1000 * proof.objective_seconds:.2f} ms"
        f" ({'exact' if proof.exact else 'not proved best'}; {printable(proof.method)})"
    )
    lines += [f"# {printable(note)}" for note in proof.notes]
    rows = []
    for stage in plan.stages:
        other = sum(e.size_bytes for e in stage.ledger.entries if e.name not in _KEPT_APART)
        rows.append(
            [
                str(stage.index),
                node_name(stage.node_id, names),
                layers(stage.first_layer, stage.end_layer),
                units.size(stage.ledger.weights_bytes),
                units.size(stage.ledger.cache_bytes),
                units.size(other),
                units.size(stage.ledger.total_bytes),
                units.size(stage.ledger.usable_bytes),
                units.size(stage.ledger.headroom_bytes),
                f"{1000 * stage.predicted_seconds:.2f}",
            ]
        )
    bold = BOLD if color else ""
    lines.append(render_table(_STAGES, rows, width=width, header_color=bold))
    if ledger:
        entries = []
        for stage in plan.stages:
            entries += [
                [str(stage.index), e.name, units.count(e.size_bytes), e.source] for e in stage.ledger.entries
            ]
            entries.append([str(stage.index), "total", units.count(stage.ledger.total_bytes), ""])
            entries.append([str(stage.index), "usable", units.count(stage.ledger.usable_bytes), ""])
            entries.append([str(stage.index), "headroom", units.count(stage.ledger.headroom_bytes), ""])
        lines += ["", render_table(_LEDGER, entries, width=width, header_color=bold)]
    return "\n".join(lines)


def render_refusal(refusal: Refusal, names: Mapping[str, str], *, color: bool = False) -> str:
    """Why there is no plan, what is missing where, and the largest context that fits."""
    head = (
        f"# does not fit ({refusal.kind})" if refusal.kind == "does_not_fit" else f"# refused: {refusal.kind}"
    )
    lines = [f"{RED}{head}{RESET}" if color else head, printable(refusal.message)]
    if refusal.deficits:
        columns = (
            Column("NODE"),
            Column("LAYERS", right=True),
            Column("NEEDED", right=True),
            Column("USABLE", right=True),
            Column("MISSING", right=True),
        )
        rows = [
            [
                node_name(d.node_id, names),
                layers(d.first_layer, d.end_layer),
                units.size(d.needed_bytes),
                units.size(d.usable_bytes),
                units.size(d.deficit_bytes),
            ]
            for d in refusal.deficits
        ]
        lines.append(render_table(columns, rows))
    if refusal.largest_context_tokens:
        lines.append(f"largest context that fits: {units.count(refusal.largest_context_tokens)}")
    if refusal.position_limit and refusal.kind == "above_position_limit":
        lines.append(f"position limit of the model: {units.count(refusal.position_limit)}")
    return "\n".join(lines)


def node_name(node_id: str, names: Mapping[str, str]) -> str:
    """A node for people: its short id and its name, where they differ."""
    name = printable(names.get(node_id, ""))
    if not name or name == node_id:
        return printable(node_id)
    return f"{node_id[:SHORT_ID]} {name}"

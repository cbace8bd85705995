"""The plan as text: a bar for each node, the stages and their ledgers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli import units
from macmesh_daemon.cli.bars import (
    LEDGER_KINDS,
    OTHER,
    SCRATCH,
    Segment,
    ledger_segments,
    legend,
    render_bar,
)
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.status_view import SHORT_ID, layers
from macmesh_daemon.cli.table import BOLD, GREEN, RESET, Column, cut, display_width, render_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macmesh_daemon.cli.bars import Kind
    from macmesh_daemon.cli.plan_answer import Answer
    from macmesh_placement import Placement

#: Columns where the output is no terminal.
DEFAULT_WIDTH: Final = 100
_LEAST_CELLS: Final = 12
_MOST_CELLS: Final = 64
_LONGEST_NAME: Final = 24

_STAGES: Final = (
    Column("STAGE", right=True),
    Column("NODE", least=10),
    Column("LAYERS", right=True),
    Column("WEIGHTS", right=True),
    Column("KV@FULL", right=True),
    Column("SCRATCH", right=True),
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


def render_plan(answer: Answer, plan: Placement, width: int | None = None, *, color: bool = False) -> str:
    """A plan that fits: what it promises, a bar for each node, and the stages.

    Args:
        answer: The answer that holds the plan.
        plan: The plan.
        width: Columns of the terminal; None does not limit.
        color: With escape sequences.
    """
    names = answer.names
    bars = [
        (node_name(stage.node_id, names), ledger_segments(stage.ledger), _room(stage.ledger.headroom_bytes))
        for stage in plan.stages
    ]
    lines = [
        *_promises(answer, plan, width, color=color),
        "",
        render_bars(bars, LEDGER_KINDS, width, color=color),
        "",
        _stages(plan, names, width, color=color),
    ]
    return "\n".join(lines)


def render_ledger(plan: Placement, width: int | None = None, *, color: bool = False) -> str:
    """Every line of every stage's ledger, to the byte."""
    entries = []
    for stage in plan.stages:
        index, ledger = str(stage.index), stage.ledger
        entries += [[index, e.name, units.count(e.size_bytes), e.source] for e in ledger.entries]
        entries.append([index, "total", units.count(ledger.total_bytes), ""])
        entries.append([index, "usable", units.count(ledger.usable_bytes), ""])
        entries.append([index, "headroom", units.count(ledger.headroom_bytes), ""])
    return render_table(_LEDGER, entries, width=width, header_color=BOLD if color else "")


def render_bars(
    rows: Sequence[tuple[str, Sequence[Segment], str]],
    kinds: Sequence[Kind],
    width: int | None = None,
    *,
    color: bool = False,
) -> str:
    """Bars below each other, to one scale, with their legend.

    Args:
        rows: Name, segments and a remark of each bar.
        kinds: For the legend.
        width: Columns of the terminal; None takes `DEFAULT_WIDTH`. The bars get what names and remarks leave.
        color: With escape sequences.
    """
    labels = [cut(name, _LONGEST_NAME) for name, _, _ in rows]
    label_width = max(display_width(label) for label in labels)
    remark_width = max(display_width(remark) for _, _, remark in rows)
    room = (width or DEFAULT_WIDTH) - label_width - remark_width - 4
    cells = max(_LEAST_CELLS, min(room, _MOST_CELLS))
    scale_bytes = max(1, *(sum(s.size_bytes for s in segments) for _, segments, _ in rows))
    lines = [legend(kinds, cell_bytes=units.size(-(-scale_bytes // cells)), color=color)]
    for label, (_, segments, remark) in zip(labels, rows, strict=True):
        bar, used = render_bar(segments, scale_bytes=scale_bytes, cells=cells, color=color)
        space = " " * (label_width - display_width(label))
        lines.append(f"{label}{space}  {bar}{' ' * (cells - used)}  {remark}".rstrip())
    return "\n".join(lines)


def node_name(node_id: str, names: Mapping[str, str]) -> str:
    """A node for people: its short id and its name, where they differ."""
    name = printable(names.get(node_id, ""))
    if not name or name == node_id:
        return printable(node_id)
    return f"{node_id[:SHORT_ID]} {name}"


def _promises(answer: Answer, plan: Placement, width: int | None, *, color: bool) -> list[str]:
    facts = [
        f"fits: {printable(plan.model_id)}",
        f"{plan.layer_count} layers",
        f"context {units.count(plan.context_tokens)}",
        f"slots {plan.slots}",
        f"prefill chunk {units.count(plan.prefill_chunk_tokens)}",
    ]
    if answer.kv_bits:
        facts.append(f"KV at {answer.kv_bits} bits")
    if answer.parallelism != "pipeline":
        facts.append(f"{printable(answer.parallelism)} parallel, {len(plan.stages)} ways")
    lines = ["# " + " · ".join(facts)]
    if plan.predicted_decode_seconds > 0:
        lines.append(
            f"# predicted: {1 / plan.predicted_decode_seconds:.1f} tokens/s for one request,"
            f" {1000 * plan.predicted_decode_seconds:.1f} ms per token,"
            f" slowest stage {1000 * plan.predicted_slowest_stage_seconds:.1f} ms"
        )
    proof = plan.certificate
    lines.append(
        f"# objective {printable(plan.objective)}: {1000 * proof.objective_seconds:.2f} ms"
        f" ({'exact' if proof.exact else 'not proved best'}; {printable(proof.method)})"
    )
    used = {stage.node_id for stage in plan.stages}
    left_out = [node_name(node_id, answer.names) for node_id in answer.names if node_id not in used]
    if left_out:
        lines.append(f"# left out: {', '.join(left_out)}")
    if answer.transport:
        lines.append(f"# transport: {printable(answer.transport)}")
    lines += [f"# {printable(note)}" for note in proof.notes]
    if width is not None:
        lines = [cut(line, width) for line in lines]
    if color:
        lines[0] = f"{GREEN}{lines[0]}{RESET}"
    return lines


def _room(headroom_bytes: int) -> str:
    return f"{units.size(headroom_bytes)} left"


def _stages(plan: Placement, names: Mapping[str, str], width: int | None, *, color: bool) -> str:
    rows = []
    for stage in plan.stages:
        ledger = stage.ledger
        by_kind = {segment.kind: segment.size_bytes for segment in ledger_segments(ledger)}
        rows.append(
            [
                str(stage.index),
                node_name(stage.node_id, names),
                layers(stage.first_layer, stage.end_layer),
                units.size(ledger.weights_bytes),
                units.size(ledger.cache_bytes),
                units.size(by_kind[SCRATCH]),
                units.size(by_kind[OTHER]),
                units.size(ledger.total_bytes),
                units.size(ledger.usable_bytes),
                units.size(ledger.headroom_bytes),
                f"{1000 * stage.predicted_seconds:.2f}",
            ]
        )
    return render_table(_STAGES, rows, width=width, header_color=BOLD if color else "")

"""Why this plan and no other: the certificate and what lost; and why an ask was refused. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from macmesh_daemon.cli import units
from macmesh_daemon.cli.bars import HEADROOM, MISSING, NEEDED, need_segments
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.plan_view import DEFAULT_WIDTH, node_name, render_bars
from macmesh_daemon.cli.status_view import layers
from macmesh_daemon.cli.table import BOLD, GREEN, RED, RESET, Column, render_table
from macmesh_placement import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macmesh_daemon.cli.plan_answer import Alternative, Answer
    from macmesh_placement import Refusal


def render_certificate(
    answer: Answer, plan: Placement, width: int | None = None, *, color: bool = False
) -> str:
    """What the planner vouches for, and the terms of the objective."""
    proof = plan.certificate
    facts = {
        "method": proof.method,
        "exact": "yes: no plan has a better objective"
        if proof.exact
        else "no: a better plan is not ruled out",
        "objective": f"{plan.objective} = {_formula(plan)} = {_ms(proof.objective_seconds)}",
        "best found": _ms(proof.best_objective_seconds),
        "latency": _latency_terms(answer, plan),
        "to load": f"{units.size(plan.bytes_to_load)}, "
        + ("the fewest within the tolerance" if proof.fewest_bytes_proved else "fewer are not ruled out"),
    }
    lines = [_title("certificate", color=color)]
    lines += [_filled(f"{name:<11} {printable(text)}", width, indent=14) for name, text in facts.items()]
    lines += [_filled(f"{'note':<11} {printable(note)}", width, indent=14) for note in proof.notes]
    return "\n".join(lines)


def render_alternatives(answer: Answer, width: int | None = None, *, color: bool = False) -> str:
    """What else was considered, and why it lost."""
    lines = [_title("what lost, and why", color=color)]
    if not answer.alternatives:
        told = "alternatives" in answer.body
        lines.append("  nothing to compare with" if told else "  the daemon's answer does not tell")
    for alternative in answer.alternatives:
        lines.append(
            _filled(f"{printable(alternative.label)}: {printable(alternative.reason)}", width, indent=4)
        )
        split = _split(alternative, answer.names)
        if split:
            lines.append(_filled(f"  {split}", width, indent=6))
    return "\n".join(lines)


def render_refusal(answer: Answer, refusal: Refusal, width: int | None = None, *, color: bool = False) -> str:
    """Why there is no plan, what is missing where, and what would make one."""
    head = (
        f"# does not fit ({refusal.kind})" if refusal.kind == "does_not_fit" else f"# refused: {refusal.kind}"
    )
    message = printable(refusal.message)
    lines = [f"{RED}{head}{RESET}" if color else head, textwrap.fill(message, width) if width else message]
    if refusal.deficits or answer.host_deficits:
        lines += ["", _deficit_bars(answer, refusal, width, color=color), ""]
    if refusal.deficits:
        lines += [_deficit_table(answer, refusal, width, color=color), ""]
    if refusal.binding:
        also = f" (it would fit too without: {', '.join(answer.also_binding)})" if answer.also_binding else ""
        lines.append(printable(f"what decides: {refusal.binding}{also}"))
    if refusal.largest_context_tokens:
        lines.append(f"largest context that fits: {units.count(refusal.largest_context_tokens)}")
    if refusal.bytes_to_add is not None:
        lines.append(
            f"usable memory to add: {units.size(refusal.bytes_to_add)} ({units.count(refusal.bytes_to_add)} bytes)"
        )
    if refusal.position_limit and refusal.kind == "above_position_limit":
        lines.append(f"position limit of the model: {units.count(refusal.position_limit)}")
    lines += [f"note: {printable(note)}" for note in answer.notes]
    if answer.what_ifs:
        lines.append(_title("what if", color=color))
        for what_if in sorted(answer.what_ifs, key=lambda w: not w.feasible):
            text = _filled(
                f"{'+' if what_if.feasible else '-'} {printable(what_if.message)}", width, indent=4
            )
            lines.append(f"{GREEN}{text}{RESET}" if color and what_if.feasible else text)
    return "\n".join(lines)


def _deficit_bars(answer: Answer, refusal: Refusal, width: int | None, *, color: bool) -> str:
    needs = [(node_name(d.node_id, answer.names), d.needed_bytes, d.usable_bytes) for d in refusal.deficits]
    needs += [
        (f"RAM of {printable(d.host_id)}", d.needed_bytes, d.budget_bytes) for d in answer.host_deficits
    ]
    rows = [
        (name, need_segments(needed, there), f"{units.size(max(0, needed - there))} missing")
        for name, needed, there in needs
    ]
    spare = any(needed < there for _, needed, there in needs)
    return render_bars(rows, (NEEDED, MISSING, HEADROOM) if spare else (NEEDED, MISSING), width, color=color)


def _deficit_table(answer: Answer, refusal: Refusal, width: int | None, *, color: bool) -> str:
    columns = [Column("NODE", least=10)]
    columns += [Column(title, right=True) for title in ("LAYERS", "NEEDED", "USABLE", "MISSING")]
    rows = [
        [
            node_name(d.node_id, answer.names),
            layers(d.first_layer, d.end_layer),
            units.size(d.needed_bytes),
            units.size(d.usable_bytes),
            units.size(d.deficit_bytes),
        ]
        for d in refusal.deficits
    ]
    return render_table(columns, rows, width=width, header_color=BOLD if color else "")


def _formula(plan: Placement) -> str:
    slowest = plan.predicted_slowest_stage_seconds
    if plan.objective == "latency":
        return "stages and hops"
    if plan.objective == "throughput":
        return f"slowest stage {_ms(slowest)}"
    return (
        f"max(latency, {plan.slots} {'slot' if plan.slots == 1 else 'slots'} x slowest stage {_ms(slowest)})"
    )


def _latency_terms(answer: Answer, plan: Placement) -> str:
    stages = sum(stage.predicted_seconds for stage in plan.stages)
    parts = " + ".join(f"{1000 * stage.predicted_seconds:.2f}" for stage in plan.stages)
    text = f"stages {parts} = {_ms(stages)}"
    if answer.hop_seconds:
        hops = " + ".join(f"{1000 * seconds:.2f}" for seconds in answer.hop_seconds)
        text += f"; hops {hops} = {_ms(sum(answer.hop_seconds))}"
    return text


def _split(alternative: Alternative, names: Mapping[str, str]) -> str:
    plan = alternative.result
    if not isinstance(plan, Placement):
        return ""
    parts = [
        f"{node_name(stage.node_id, names)} {layers(stage.first_layer, stage.end_layer)}"
        for stage in plan.stages
    ]
    least = min(stage.ledger.headroom_bytes for stage in plan.stages)
    return (
        f"{', '.join(parts)}: {printable(plan.objective)} {_ms(plan.certificate.objective_seconds)}, "
        f"least headroom {units.size(least)}, "
        f"{units.size(plan.bytes_to_load)} to load"
    )


def _title(text: str, *, color: bool) -> str:
    return f"{BOLD}{text}{RESET}" if color else text


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _filled(text: str, width: int | None, *, indent: int) -> str:
    return textwrap.fill(
        text,
        max(40, width or DEFAULT_WIDTH),
        initial_indent="  ",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

"""`plan --explain` and refusals, as text; the answer is read from its JSON like a daemon's."""

import re
from dataclasses import replace
from typing import Any

import pytest

from macmesh_daemon.cli.plan_answer import read_answer
from macmesh_daemon.cli.plan_explain import render_alternatives, render_certificate, render_refusal
from macmesh_daemon.cli.plan_view import render_ledger, render_plan
from macmesh_placement import (
    LocalPlacementError,
    NodeCapacity,
    Placement,
    PlanRequest,
    Refusal,
    plan,
)

from .conftest import big_profile

GB = 10**9
NODES = tuple(
    NodeCapacity(
        node_id=name, name=name, ram_bytes=2 * usable * GB, usable_bytes=usable * GB, bandwidth_gb_per_s=500
    )
    for name, usable in (("studio", 96), ("studio2", 96), ("book", 27))
)
NAMES = {node.node_id: node.name for node in NODES}
REQUEST = PlanRequest(profile=big_profile(), nodes=NODES, context_tokens=100_000, slots=2)


def body(request: PlanRequest, **extra: Any) -> dict[str, Any]:
    return {**plan(request).to_json(), **extra}


@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
def test_the_certificate_names_the_terms(objective: Any) -> None:
    answer = read_answer(body(replace(REQUEST, objective=objective)), NAMES)
    assert isinstance(answer.result, Placement)
    text = render_certificate(answer, answer.result)
    proof = answer.result.certificate
    assert f"{1000 * proof.objective_seconds:.2f} ms" in text
    assert proof.method in text
    assert "yes: no plan has a better objective" in text
    terms = re.search(r"stages ([\d.]+(?: \+ [\d.]+)*) = ([\d.]+) ms", text)
    assert terms is not None
    assert sum(map(float, terms[1].split(" + "))) == pytest.approx(float(terms[2]), abs=0.02)
    assert {"latency": "stages and hops", "throughput": "slowest stage", "balanced": "2 slots x"}[
        objective
    ] in text


def test_what_lost_is_told_with_its_reason_and_split() -> None:
    other = body(replace(REQUEST, stage_count=3))
    refused = body(replace(REQUEST, excluded_node_ids=frozenset({"studio"})))
    answer = read_answer(
        body(
            REQUEST,
            alternatives=[
                {"label": "three stages", "reason": "slower by 3 ms", "placement": other, "refusal": None},
                {"label": "without studio", "reason": "does not fit", "placement": None, "refusal": refused},
            ],
        ),
        NAMES,
    )
    text = render_alternatives(answer, 80)
    assert "three stages: slower by 3 ms" in text
    assert "without studio: does not fit" in text
    for stage in other["stages"]:
        assert f"{stage['node_id']} {stage['first_layer']}-{stage['end_layer'] - 1}" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "does not tell" in render_alternatives(read_answer(body(REQUEST), NAMES))
    assert "nothing to compare" in render_alternatives(read_answer(body(REQUEST, alternatives=[]), NAMES))


def test_a_refusal_shows_bars_what_binds_and_what_would_help() -> None:
    what_ifs = [
        {"change": "slots=1", "message": "With one slot.", "feasible": True, "largest_context_tokens": None},
        {
            "change": "kv_bits=8",
            "message": "With 8 bits.",
            "feasible": False,
            "largest_context_tokens": 150_000,
        },
    ]
    asked = replace(REQUEST, excluded_node_ids=frozenset({"book"}))
    answer = read_answer(body(asked, what_ifs=what_ifs, binding_constraints=[]), NAMES)
    refusal = answer.result
    assert isinstance(refusal, Refusal)
    text = render_refusal(answer, refusal, 100)
    assert f"what decides: {refusal.binding}\n" in text
    assert f"largest context that fits: {refusal.largest_context_tokens:,}" in text
    assert f"({refusal.bytes_to_add:,} bytes)" in text
    assert "  + With one slot." in text
    assert "  - With 8 bits." in text
    bars = [line for line in text.splitlines() if "█" in line and line.endswith("missing")]
    assert len(bars) == len(refusal.deficits) > 0
    for bar, deficit in zip(bars, refusal.deficits, strict=True):
        drawn = bar.count("▚") / (bar.count("▚") + bar.count("█"))
        assert drawn == pytest.approx(deficit.deficit_bytes / deficit.needed_bytes, abs=0.03)


def test_a_machine_that_lacks_ram_is_shown_too() -> None:
    host = {"host_id": "mac", "needed_bytes": 30 * GB, "budget_bytes": 20 * GB, "deficit_bytes": 10 * GB}
    refusal = Refusal(kind="does_not_fit", message="too small " * 20, context_tokens=9, binding="host_ram")
    value = refusal.to_json()
    value |= {
        "host_deficits": [host],
        "binding_constraints": ["host_ram", "cache"],
        "notes": ["within limits"],
    }
    answer = read_answer(value, NAMES)
    assert isinstance(answer.result, Refusal)
    text = render_refusal(answer, answer.result, 80)
    (bar,) = [line for line in text.splitlines() if line.startswith("RAM of mac")]
    assert bar.count("▚") * 2 == pytest.approx(bar.count("█"), abs=1)
    assert bar.endswith("10.0 GB missing")
    assert "what decides: host_ram (it would fit too without: cache)" in text
    assert "note: within limits" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_plan_says_how_its_cache_and_its_layers_are_kept() -> None:
    answer = read_answer(body(REQUEST, kv_bits=8, parallelism="tensor"), NAMES)
    assert isinstance(answer.result, Placement)
    text = render_plan(answer, answer.result)
    assert "KV at 8 bits" in text
    assert "tensor parallel" in text
    plain = read_answer(body(REQUEST), NAMES)
    assert "tensor" not in render_plan(plain, answer.result)
    narrow = render_plan(answer, answer.result, 70)
    assert all(len(line) <= 70 for line in narrow.split("STAGE")[0].splitlines())


def test_the_plan_says_what_carries_its_arrays() -> None:
    told = {"transport": "auto", "reason": "not jaccl: no cable", "devices": []}
    answer = read_answer(body(REQUEST, transport=told), NAMES)
    assert isinstance(answer.result, Placement)
    text = render_plan(answer, answer.result)
    assert "# transport: the best link for each pair (not jaccl: no cable)" in text
    assert "# transport" not in render_plan(read_answer(body(REQUEST), NAMES), answer.result)


def test_the_ledger_is_there_to_the_byte() -> None:
    answer = read_answer(body(REQUEST), NAMES)
    assert isinstance(answer.result, Placement)
    text = render_ledger(answer.result)
    for stage in answer.result.stages:
        for entry in stage.ledger.entries:
            assert f"{entry.size_bytes:,}" in text
        assert f"{stage.ledger.headroom_bytes:,}" in text


def test_hops_are_terms_where_the_answer_tells_them() -> None:
    value = body(REQUEST)
    for stage in value["stages"]:
        stage["hop_seconds"] = 0.001
    answer = read_answer(value, NAMES)
    assert isinstance(answer.result, Placement)
    count = len(value["stages"])
    hops = " + ".join(["1.00"] * count)
    assert f"hops {hops} = {count}.00 ms" in " ".join(render_certificate(answer, answer.result).split())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"alternatives": [{"label": 1}]}, r"alternatives\[0\]"),
        ({"alternatives": {}}, "alternatives must be an array"),
        ({"what_ifs": [{"message": "x"}]}, r"what_ifs\[0\] lacks the field 'feasible'"),
        ({"kv_bits": "8"}, "kv_bits"),
        ({"notes": [1]}, "notes must be an array of strings"),
        ({"host_deficits": [{"host_id": "x"}]}, r"host_deficits\[0\] lacks"),
        ({"feasible": "yes"}, "feasible"),
        ({"transport": {"transport": 1}}, r"plan\.transport"),
    ],
)
def test_a_broken_answer_names_the_field(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(LocalPlacementError, match=message):
        read_answer(body(REQUEST, **extra), NAMES)

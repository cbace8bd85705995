"""The memory of hand-written graphs, operation by operation."""

import pytest

from macmesh_daemon.engine.step_graph import Node, StepGraph, Value
from macmesh_daemon.engine.step_memory import moments


def value(name: str, *shape: int) -> Value:
    return Value(name, shape, 2)


def node(kind: str, inputs: list[Value], outputs: list[Value], layer: int = 0) -> Node:
    return Node(kind, tuple(inputs), tuple(outputs), layer)


def alive(*nodes: Node, given: set[str] | None = None) -> list[int]:
    graph = StepGraph(nodes, frozenset(given or {"x", "w", "cache"}), whole=False)
    return [moment.live_bytes for moment in moments(graph)]


X, W, CACHE = value("x", 4, 8), value("w", 8, 16), value("cache", 64, 8)


def test_outputs_count_until_their_last_use_and_what_was_there_never() -> None:
    y, z = value("y", 4, 16), value("z", 4, 2)
    nodes = [
        node("Matmul", [X, W], [y]),
        node("Matmul", [y, W], [z]),
        node("Matmul", [z, W], [value("o", 4, 2)]),
    ]
    assert alive(*nodes) == [128, 128 + 16, 16 + 16]


def test_an_elementwise_operation_works_in_place_where_nothing_else_needs_its_input() -> None:
    y, s, p = value("y", 4, 16), value("s", 4, 16), value("p", 4, 16)
    used_again = [node("Matmul", [X, W], [y]), node("Sigmoid", [y], [s]), node("Multiply", [y, s], [p])]
    assert alive(*used_again) == [128, 256, 256]
    in_a_row = [node("Matmul", [X, W], [y]), node("Sigmoid", [y], [s]), node("Abs", [s], [p])]
    assert alive(*in_a_row) == [128, 128, 128]


def test_parameters_and_inputs_are_never_written_into() -> None:
    assert alive(node("Sigmoid", [X], [value("s", 4, 8)])) == [64]


def test_views_share_the_buffer_and_keep_it_alive() -> None:
    y, part = value("y", 4, 16), value("part", 4, 1)
    nodes = [
        node("Matmul", [X, W], [y]),
        node("Slice", [y], [part]),
        node("Matmul", [X, W], [value("z", 4, 16)]),
        node("Matmul", [part, W], [value("o", 4, 1)]),
    ]
    assert alive(*nodes) == [128, 128, 256, 128 + 8]


@pytest.mark.parametrize(("kind", "copied"), [("Transpose", True), ("ExpandDims", False)])
def test_a_reshape_copies_what_does_not_lie_in_a_row(kind: str, copied: bool) -> None:
    y = value("y", 4, 16)
    moved = value("m", 16, 4) if kind == "Transpose" else value("m", 1, 4, 16)
    nodes = [
        node("Matmul", [X, W], [y]),
        node(kind, [y], [moved]),
        node("Reshape", [moved], [value("r", 64)]),
    ]
    assert alive(*nodes)[-1] == (256 if copied else 128)


def test_a_cache_is_updated_in_place_and_another_array_is_not() -> None:
    row = value("row", 1, 8)
    update = node("SliceUpdate", [CACHE, row], [value("new", 64, 8)])
    assert alive(node("Abs", [value("w", 1, 8)], [row]), update) == [16, 16]
    elsewhere = value("y", 64, 8)
    held = [
        node("Matmul", [X, W], [elsewhere]),
        node("SliceUpdate", [elsewhere, value("w", 1, 8)], [value("new", 64, 8)]),
        node("Matmul", [elsewhere, W], [value("o", 1)]),
    ]
    assert alive(*held)[1] == 2 * 1024


def test_only_layers_count_and_what_comes_after_the_last_is_left_out() -> None:
    y = value("y", 4, 16)
    before = node("Matmul", [X, W], [y], layer=-1)
    inside = node("Matmul", [y, W], [value("z", 4, 2)], layer=1)
    after = node("Matmul", [value("z", 4, 2), W], [value("logits", 4, 999)], layer=-1)
    graph = StepGraph((before, inside, after), frozenset({"x", "w"}), whole=False)
    assert [(moment.layer, moment.allocated_bytes) for moment in moments(graph)] == [(-1, 128), (1, 16)]

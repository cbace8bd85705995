"""The memory of one step, operation by operation, from its graph.

The rules are those of MLX's evaluation: an operation allocates its outputs unless they are views of its first
input, or the operation works in place on an input that nothing else needs; an input is freed after its last
use. Arrays that are there before the step (parameters, caches, token ids) cost nothing here, nor does writing
into them. What the caches hold after the step is charged as cache: here it counts while the step still reads
it, beside the old content that it replaces.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from macmesh_daemon.engine.step_graph import Node, StepGraph, Value

# fmt: off
VIEWS = frozenset(
    {
        "AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Slice", "Split", "Squeeze",
        "StopGradient", "Transpose", "View",
    }
)
"""Always views."""
RESHAPES = frozenset({"Flatten", "Reshape", "Unflatten"})
"""Views of arrays whose rows lie one after the other; copies of others."""
_IN_PLACE = frozenset(
    {
        "Abs", "Add", "AddMM", "ArcCos", "ArcSin", "ArcTan", "AsType", "Ceil", "Cos", "Cosh", "Divide",
        "Equal", "Erf", "ErfInv", "Exp", "Expm1", "Floor", "FloorDivide", "Greater", "GreaterEqual",
        "Less", "LessEqual", "Log", "Log1p", "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr",
        "Maximum", "Minimum", "Multiply", "Negative", "NotEqual", "Power", "Remainder", "Round", "Scan",
        "ScatterAxis", "Select", "Sigmoid", "Sign", "Sin", "Sinh", "SliceUpdate", "Softmax", "Sqrt",
        "Square", "Subtract", "Tan", "Tanh",
    }
)
"""May write into an input of the same size that is not needed any more."""
# fmt: on
_KEEPS_ROWS = frozenset(
    {"ExpandDims", "Squeeze", "Flatten", "Unflatten", "Reshape", "View", "Depends", "StopGradient"}
)


@dataclass(slots=True)
class _Buffers:
    """Which buffer every array lies in, how large the buffers are, and who still needs them."""

    given: frozenset[str]
    of: dict[str, str] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    scattered: set[str] = field(default_factory=set)
    live_bytes: int = 0

    def home(self, value: Value) -> str:
        return self.of.get(value.name, value.name)

    def allocate(self, value: Value) -> None:
        self.of[value.name] = value.name
        self.size[value.name] = value.nbytes
        self.live_bytes += value.nbytes


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive while an operation runs, and how much of it the operation itself allocates."""

    kind: str
    layer: int
    live_bytes: int
    allocated_bytes: int


def moments(graph: StepGraph) -> Iterator[Moment]:
    """The operations of the step, in order; what was there before it aside."""
    last = max((index for index, node in enumerate(graph.nodes) if node.layer >= 0), default=-1)
    nodes = graph.nodes if graph.whole else graph.nodes[: last + 1]
    buffers = _Buffers(graph.given)
    readers: Counter[str] = Counter(value.name for node in nodes for value in node.inputs)
    for node in nodes:
        before = buffers.live_bytes
        for output in node.outputs:
            _place(buffers, node, output)
            home = buffers.home(output)
            buffers.uses[home] += readers[output.name]
        yield Moment(node.kind, node.layer, buffers.live_bytes, buffers.live_bytes - before)
        for value in [*node.inputs, *node.outputs]:
            home = buffers.home(value)
            if value in node.inputs:
                buffers.uses[home] -= 1
            if home in buffers.size and buffers.uses[home] <= 0:
                buffers.live_bytes -= buffers.size.pop(home)


def _place(buffers: _Buffers, node: Node, output: Value) -> None:
    first = node.inputs[0] if node.inputs else None
    if first is not None and (
        node.kind in VIEWS or (node.kind in RESHAPES and first.name not in buffers.scattered)
    ):
        buffers.of[output.name] = buffers.home(first)
        if first.name in buffers.scattered or _scatters(node, first, output):
            buffers.scattered.add(output.name)
        return
    if node.kind in _IN_PLACE:
        inputs = node.inputs[:1] if node.kind == "SliceUpdate" else node.inputs
        for value in inputs:
            home = buffers.home(value)
            free = home in buffers.size and buffers.uses[home] == sum(
                v.name == value.name for v in node.inputs
            )
            into_given = node.kind == "SliceUpdate" and home in buffers.given
            fits = (
                home in buffers.size and buffers.size[home] == output.nbytes and value.nbytes == output.nbytes
            )
            if into_given or (free and fits):
                buffers.of[output.name] = home
                return
    buffers.allocate(output)


def _scatters(node: Node, first: Value, output: Value) -> bool:
    """Whether the view's rows no longer lie one after the other."""
    if node.kind in _KEEPS_ROWS:
        return False
    if node.kind == "Slice":
        shrunk = [index for index, (a, b) in enumerate(zip(first.shape, output.shape, strict=True)) if a != b]
        return any(size > 1 for index in shrunk for size in first.shape[:index])
    if node.kind == "Transpose":
        moved = [size for size in first.shape if size > 1], [size for size in output.shape if size > 1]
        return moved[0] != moved[1] or len(set(moved[0])) < len(moved[0])
    return True

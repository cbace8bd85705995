"""Reads the graph of a function as mlx gives it out: records of its operations, nothing computed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

ArrayRecord = tuple[str, tuple[int, ...], mx.Dtype]
"""Name, shape and dtype of an array of the graph; the name is unique in it."""


@dataclass(slots=True)
class ExportedGraph:
    """What ``mx.export_function`` tells of a function.

    Attributes:
        given: Names of the arrays that are there before it runs: its inputs, and constants.
        operations: One record each, in an order in which they can run: ``name`` of the operation, and
            `ArrayRecord`s under ``inputs`` and ``outputs``.
        outputs: What it returns.
    """

    given: set[str] = field(default_factory=set)
    operations: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[ArrayRecord] = field(default_factory=list)

    def take(self, record: dict[str, Any]) -> None:
        """Takes one record, as mlx calls back with it."""
        kind = record["type"]
        if kind == "inputs":
            self.given |= {name for name, _, _ in record["inputs"]}
        elif kind == "constants":
            self.given |= {name for name, _ in record["constants"]}
        elif kind == "primitive":
            self.operations.append(record)
        elif kind == "outputs":
            self.outputs = record["outputs"]


def exported(function: Callable[..., list[mx.array]], *inputs: mx.array) -> ExportedGraph:
    """The graph of a function of arrays.

    Raises:
        ValueError: It has an operation that mlx cannot give out.
    """
    graph = ExportedGraph()
    mx.export_function(graph.take, function, *inputs)
    return graph

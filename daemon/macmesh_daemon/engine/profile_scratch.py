"""What a prefill step keeps while it runs through each layer, as a formula in its tokens and its keys.

The graph of a step is captured at a few sizes. Where the layer is the same sequence of operations in all of
them, the bytes alive at each operation are fitted exactly by ``a + b L + c S + d L S + e L L`` (L tokens, S
keys), and the formulas that no other exceeds everywhere are kept: the layer needs the largest of them. Where
the layer unrolls over tokens, its peaks are fitted by ``a + b L``.
"""

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from macmesh_daemon.engine.step_graph import capture
from macmesh_daemon.engine.step_memory import Moment, moments
from macmesh_placement import Scratch, ScratchTerm

#: Tokens of the captured steps, and tokens before them.
STEPS = ((256, 1024), (512, 1024), (512, 2048), (1024, 1024), (1024, 2048))
#: The same for models that unroll over tokens.
SHORT_STEPS = ((8, 32), (8, 64), (16, 32), (16, 64))

#: A graph that grows by more than this when the tokens double unrolls over them.
_UNROLLS = 1.5

_Trail = list[Moment]


def scratch_of_layers(
    model: Module, windows: Sequence[int | None], fuses: Callable[[int, int], bool]
) -> list[Scratch]:
    """For each layer the formulas of what a prefill step needs.

    Args:
        model: The model, lazily built.
        windows: Most keys that each layer keeps between steps; None where it keeps all.
        fuses: Whether attention with that head size of queries and of values is one kernel.

    Raises:
        Exception: Whatever mlx raises where the graph of a step cannot be had.
    """
    short = {size: _trails(model, *size, len(windows), fuses) for size in SHORT_STEPS[::2]}
    lengths = [sum(map(len, trails)) for trails in short.values()]
    sizes = SHORT_STEPS if lengths[1] > _UNROLLS * lengths[0] else STEPS
    known = {
        size: short[size] if size in short else _trails(model, *size, len(windows), fuses) for size in sizes
    }
    found = []
    for layer, window in enumerate(windows):
        steps = [(tokens, _keys(tokens, history, window)) for tokens, history in sizes]
        seen = [known[size][layer] for size in sizes]
        found.append(
            Scratch(
                live=_terms(steps, seen, lambda moment: moment.live_bytes),
                largest=_terms(steps, seen, lambda moment: moment.allocated_bytes),
            )
        )
    return found


def _keys(tokens: int, history: int, window: int | None) -> int:
    return tokens + (history if window is None else min(history, window - 1))


def _trails(
    model: Module, tokens: int, history: int, layer_count: int, fuses: Callable[[int, int], bool]
) -> list[_Trail]:
    graph = capture(model, tokens, history, fuses)
    if graph.whole:
        return [list(moments(graph))] * layer_count
    found: list[_Trail] = [[] for _ in range(layer_count)]
    for moment in moments(graph):
        if moment.layer >= 0:
            found[moment.layer].append(moment)
    return found


def _terms(
    steps: Sequence[tuple[int, int]], trails: Sequence[_Trail], measure: Callable[[Moment], int]
) -> tuple[ScratchTerm, ...]:
    kinds = [[moment.kind for moment in trail] for trail in trails]
    if all(other == kinds[0] for other in kinds):
        alive = np.array([[measure(moment) for moment in trail] for trail in trails], dtype=np.float64)
        features = np.array([[1.0, tokens, keys, tokens * keys, tokens**2] for tokens, keys in steps])
    else:
        alive = np.array([[max(map(measure, trail), default=0)] for trail in trails], dtype=np.float64)
        features = np.array([[1.0, tokens, 0.0, 0.0, 0.0] for tokens, _ in steps])
    columns = _independent(features)
    # One row for each different course; most operations share theirs.
    alive = np.unique(alive.T, axis=0).T
    formulas = np.zeros((alive.shape[1], features.shape[1]))
    scales = features[:, columns].max(axis=0)
    fitted = np.linalg.lstsq(features[:, columns] / scales, alive, rcond=None)[0]
    formulas[:, columns] = fitted.T / scales
    # A formula never shrinks as the step grows, and is never below what was seen.
    formulas = np.maximum(np.round(formulas, 3), 0.0)
    formulas[:, 0] += np.maximum(np.round((alive - features @ formulas.T).max(axis=0), 3), 0.0)
    terms = {ScratchTerm(*(ceil(value) for value in formula)) for formula in formulas.tolist()}
    return tuple(
        sorted(term for term in terms if any(term) and not any(_exceeds(other, term) for other in terms))
    )


def _independent(features: npt.NDArray[np.float64]) -> list[int]:
    """The columns that tell something of their own; in a small window the keys follow from the tokens."""
    scaled = features / np.maximum(features.max(axis=0), 1.0)
    columns: list[int] = []
    for column in range(features.shape[1]):
        if np.linalg.matrix_rank(scaled[:, [*columns, column]]) > len(columns):
            columns.append(column)
    return columns


def _exceeds(left: ScratchTerm, right: ScratchTerm) -> bool:
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))

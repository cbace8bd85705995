"""The labels of `macmesh_placement.constrained`: ends of pipelines, kept as columns, one level per stage."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from macmesh_placement.search import Path
from macmesh_placement.tables import Floats, Integers

#: Labels compared with each, beside the exact comparison for two criteria.
_NEIGHBOURS = 12


@dataclass(slots=True)
class Labels:
    """One level of labels, as columns: one entry per label.

    Attributes:
        mask: The nodes used, as bits.
        first: Link class of the node of the first stage; -1 where there is none yet.
        tail: Link class of the node of the last stage; -1 where there is none yet.
        begin: The boundary at which the first stage begins.
        values: [criteria, labels]; what is used of each criterion.
        parent: The label of the level before that this one extends, by number.
        node: The node of the first stage.
        count: Number of labels.
    """

    mask: Integers
    first: Integers
    tail: Integers
    begin: Integers
    values: Floats
    parent: Integers
    node: Integers
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.mask)

    def chosen(self, keep: npt.NDArray[np.bool_] | Integers) -> "Labels":
        """Some of them: by a mask, or by number."""
        return Labels(
            self.mask[keep],
            self.first[keep],
            self.tail[keep],
            self.begin[keep],
            self.values[:, keep],
            self.parent[keep],
            self.node[keep],
        )


def all_within(values: Floats, limits: Floats) -> npt.NDArray[np.bool_]:
    """[labels]: every criterion is within its limit."""
    within: npt.NDArray[np.bool_] = np.all(values <= limits[:, None], axis=0)
    return within


def joined(parts: list[Labels], criteria: int) -> Labels:
    """All labels of the parts as one level; one of that many criteria where there are none."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Labels(none, none, none, none, np.zeros((criteria, 0)), none, none)
    return Labels(
        np.concatenate([part.mask for part in parts]),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.tail for part in parts]),
        np.concatenate([part.begin for part in parts]),
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.parent for part in parts]),
        np.concatenate([part.node for part in parts]),
    )


def undominated(labels: Labels) -> Integers:
    """The places of labels that no other of the same state beats or equals in every criterion.

    Exact for one and two criteria; for more, each is compared with some neighbours only, which drops fewer.
    """
    if labels.count == 0:
        return np.zeros(0, dtype=np.int64)
    state = labels.mask
    for column in (labels.first, labels.tail, labels.begin):
        state = state * (int(column.max()) + 1) + column
    order: Integers = np.lexsort((*labels.values[::-1], state))
    state, values = state[order], labels.values[:, order]
    fresh = np.concatenate([[True], state[1:] != state[:-1]])
    keep = np.ones(labels.count, dtype=bool)
    if len(values) == 1:
        keep = fresh
    elif len(values) == 2:  # noqa: PLR2004  two criteria: a running minimum decides
        rank = np.empty(labels.count, dtype=np.int64)
        rank[np.argsort(values[1], kind="stable")] = np.arange(labels.count)
        group = np.cumsum(fresh)
        # Later groups lie wholly below earlier ones, so that one running minimum serves them all.
        lowered = rank - group * (len(rank) + 1)
        running = np.minimum.accumulate(lowered)
        keep = fresh | (lowered < np.concatenate([[0], running[:-1]]))
    else:
        for distance in range(1, min(_NEIGHBOURS, labels.count - 1) + 1):
            same = state[distance:] == state[:-distance]
            beaten = (values[:, :-distance] <= values[:, distance:]).all(axis=0)
            keep[distance:] &= ~(same & beaten)
    chosen: Integers = order[keep]
    return chosen


def path_of(levels: list[Labels], size: int, place: int) -> Path:
    """The stages of a label from its first on: number ``place`` of level ``size``."""
    path: Path = []
    while size:
        label = levels[size]
        parent = int(label.parent[place])
        end = int(levels[size - 1].begin[parent])
        path.append((int(label.node[place]), int(label.begin[place]), end))
        size, place = size - 1, parent
    return path

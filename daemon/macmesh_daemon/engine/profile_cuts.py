"""Where a model may be cut into stages.

A stage is the model's own code with the layers that it does not own passed over, and only the hidden state
crosses. That holds for nearly every architecture; the others run whole until a stage of their own is written.
"""

from mlx.nn.layers.base import Module

from macmesh_daemon.engine.profile_trace import LayerTrace, layers_of
from macmesh_daemon.engine.unsplittable import unsplittable_reason
from macmesh_placement import all_cut_points


def cut_points(model: Module, seen: list[LayerTrace]) -> tuple[tuple[int, ...], str]:
    """The layer numbers before which the model may be cut, and why not everywhere.

    Args:
        model: The model.
        seen: What its layers were seen to do in one step.
    """
    count = len(layers_of(model))
    reason = unsplittable_reason(model)
    if reason is not None:
        return (), reason
    if any(layer.calls != 1 for layer in seen):
        return (), "some layers are not called exactly once in a step"
    if any(layer.returns_more for layer in seen):
        return (), "its layers return more than the hidden state"
    return all_cut_points(count), ""

"""Where a model may be cut into stages.

A stage is the model's own code with the layers that it does not own passed over, and only the hidden state
crosses. That holds for nearly every architecture. The others carry more between their layers; each is listed
here with what it carries, and runs whole until a stage of its own is written for it.
"""

from mlx.nn.layers.base import Module

from macmesh_daemon.engine.profile_trace import LayerTrace, layers_of
from macmesh_placement import all_cut_points

_SHARED_KV = "later layers read the keys and values of earlier ones"

_GEMMA = f"{_SHARED_KV}, and every layer reads an input made from the token embedding"

_WHOLE = {
    "afm7": _SHARED_KV,
    "deepseek_v41": "layers share compressed keys and several hidden streams",
    "gemma3n": _GEMMA,
    "gemma4": _GEMMA,
    "gemma4_text": _GEMMA,
    "hunyuan": "pairs of layers share keys and values",
    "iquestloopcoder": "the model calls parts of a layer, and the stack runs more than once in a step",
    "kimi_k3": "later layers read the hidden states of earlier blocks",
    "nanbeige": "the stack runs more than once in a step",
    "rwkv7": "layers hand on the first layer's value beside the hidden state",
    "talkie": "every layer reads the token embedding",
}


def cut_points(model: Module, seen: list[LayerTrace]) -> tuple[tuple[int, ...], str]:
    """The layer numbers before which the model may be cut, and why not everywhere.

    Args:
        model: The model.
        seen: What its layers were seen to do in one step.
    """
    count = len(layers_of(model))
    name = type(model).__module__.rsplit(".", 1)[-1]
    if name in _WHOLE:
        return (), _WHOLE[name]
    if any(layer.calls != 1 for layer in seen):
        return (), "some layers are not called exactly once in a step"
    return all_cut_points(count), ""

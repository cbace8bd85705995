"""What crosses a cut beside what a layer returns, and where a cut is not possible: the exceptions.

A stage hands on all that its last layer returns and the next layer takes. That is enough for nearly every
architecture, and no module here is needed for it. The others are of four classes:

===============  ====================================================  =====================================
module           what the layers share                                 what is done
===============  ====================================================  =====================================
``arguments``    something made of the token embedding                 it is sent with the hidden state
``shared_state`` a dict that layers write for later ones               the keys that are read later are sent
``shared_keys``  keys and values of earlier layers                     no cut behind the first such layer
``refused``      layers that run more than once in a step              no cut at all
===============  ====================================================  =====================================
"""

from typing import Any

from macmesh_daemon.engine.adapters.arguments import EachLayersOwn, OneForAll
from macmesh_daemon.engine.adapters.base import Adapter
from macmesh_daemon.engine.adapters.refused import REFUSED
from macmesh_daemon.engine.adapters.shared_keys import cut_limit
from macmesh_daemon.engine.adapters.shared_state import CompressedKeys


def adapter_of(model: Any) -> Adapter:
    """The adapter of mlx-lm's model; the name of its module tells the architecture."""
    architecture = type(model).__module__.rpartition(".")[2]
    if architecture in REFUSED:
        return Adapter(refusal=REFUSED[architecture])
    limit = cut_limit(architecture, model)
    match architecture:
        case "talkie":
            return Adapter(extras=OneForAll("e_x", 0))
        case "gemma3n":
            return Adapter(limit=limit, extras=EachLayersOwn("per_layer_input", 3))
        case "gemma4" | "gemma4_text" if _args(model).hidden_size_per_layer_input:
            return Adapter(limit=limit, extras=EachLayersOwn("per_layer_input", 3))
        case "deepseek_v41":
            shared = CompressedKeys(model.args)
            return Adapter(limit=shared.limit, extras=shared)
    return Adapter(limit=limit)


def _args(model: Any) -> Any:
    return getattr(model, "language_model", model).args

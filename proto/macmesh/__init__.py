"""The macmesh client SDK: one model served by a few Macs, from Python.

::

    import macmesh

    with macmesh.Client() as client:                 # the daemon of this machine
        for chunk in client.generate("Once upon a time", max_tokens=50):
            print(chunk.text, end="", flush=True)

`Client` blocks, `AsyncClient` is for asyncio. Errors are one tree, printed in `macmesh.errors`; the reasons
that a daemon may give are in `macmesh.reasons`. Names are imported when they are first used, so that a
program that only wants a path or an error does not load gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from macmesh._aio_streams import AsyncGeneration, AsyncStream
    from macmesh._messages import GenerateOptions, PlanOptions
    from macmesh._streams import Generation, Stream
    from macmesh.aio_client import AsyncClient
    from macmesh.client import Client
    from macmesh.credentials import Credentials
    from macmesh.errors import LocalError, MacmeshError, RemoteError
    from macmesh.paths import default_data_folder, default_socket_path, socket_path
    from macmesh.reasons import Reason
    from macmesh.timeouts import Timeouts
    from macmesh.types import (
        ClusterEvent,
        ClusterStatus,
        Completion,
        FinishReason,
        GenerateChunk,
        LoadProgress,
        Paused,
        PlanResult,
        RequestFacts,
        StagesStats,
        Usage,
        Waiting,
        prefix_hit_rate,
    )

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncStream",
    "Client",
    "ClusterEvent",
    "ClusterStatus",
    "Completion",
    "Credentials",
    "FinishReason",
    "GenerateChunk",
    "GenerateOptions",
    "Generation",
    "LoadProgress",
    "LocalError",
    "MacmeshError",
    "Paused",
    "PlanOptions",
    "PlanResult",
    "Reason",
    "RemoteError",
    "RequestFacts",
    "StagesStats",
    "Stream",
    "Timeouts",
    "Usage",
    "Waiting",
    "default_data_folder",
    "default_socket_path",
    "prefix_hit_rate",
    "socket_path",
]

_HOMES: Final = {
    "AsyncClient": "aio_client",
    "AsyncGeneration": "_aio_streams",
    "AsyncStream": "_aio_streams",
    "Client": "client",
    "Credentials": "credentials",
    "GenerateOptions": "_messages",
    "PlanOptions": "_messages",
    "Generation": "_streams",
    "LocalError": "errors",
    "MacmeshError": "errors",
    "Reason": "reasons",
    "RemoteError": "errors",
    "Stream": "_streams",
    "Timeouts": "timeouts",
    "default_data_folder": "paths",
    "default_socket_path": "paths",
    "socket_path": "paths",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""How long the SDK waits."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines of a client's calls, in seconds; `math.inf` waits for ever.

    Every call takes a ``timeout_seconds`` of its own, which goes before these. When a deadline passes, the
    call is cancelled at the daemon and `macmesh.errors.LocalDeadlineError` is raised.

    Attributes:
        status: ``status()``. The node answers from memory.
        stage_stats: ``stage_stats()``. Every worker answers between two steps.
        plan: ``plan()``. The first plan of a model reads its headers and traces its cache.
        unload: ``unload()``. Workers get time to end in order.
        load: ``load()`` from start to ready. Weights come from disk at a few GB/s.
        load_idle: ``load()`` from one step of progress to the next.
        watch_first: ``watch()`` to the first status. After it the stream may stay silent for ever.
        generate: ``generate()`` from start to end.
        generate_first_token: ``generate()`` to its first token: the wait for a slot and the prefill.
        generate_idle: ``generate()`` from one token to the next, where stages run it.
        generate_resume: ``generate()`` from the loss of its node to the answer of one that takes it up; 0 tells the
            loss at once.
    """

    status: float = 5.0
    stage_stats: float = 10.0
    plan: float = 120.0
    unload: float = 60.0
    load: float = 3600.0
    load_idle: float = 300.0
    watch_first: float = 5.0
    generate: float = math.inf
    generate_first_token: float = 600.0
    generate_idle: float = 60.0
    generate_resume: float = 30.0


def grpc_timeout(seconds: float) -> float | None:
    """As gRPC takes it."""
    return None if math.isinf(seconds) else seconds

"""The streams that lanes of one thread send and receive on. Imports mlx."""

import threading

import mlx.core as mx

_own = threading.local()


def transfer_streams() -> tuple[mx.Stream, mx.Stream]:
    """Two streams of this thread, for sends and for receives.

    MLX keeps a thread for every stream as long as the process lives, so lanes that follow one another share them.
    """
    if not hasattr(_own, "streams"):
        _own.streams = mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)
    streams: tuple[mx.Stream, mx.Stream] = _own.streams
    return streams

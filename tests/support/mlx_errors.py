"""MLX keeps an error of a stream until any thread of the process looks."""

import mlx.core as mx


def forget_errors() -> None:
    """Takes what is left of operations that were made to fail, once nothing of theirs runs any more."""
    for _ in range(100):
        try:
            mx.clear_cache()
            mx.eval(mx.zeros(1) + 1)
        except RuntimeError:
            continue
        return
    raise AssertionError("operations go on failing")

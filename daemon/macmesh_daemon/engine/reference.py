"""The reference that a pipeline is compared with: mlx-lm as it is installed, in this process alone.

``python -m macmesh_daemon.engine.reference MODEL`` reads a job as JSON from stdin (``prompt``,
``max_tokens``, ``prefill_step_size``, ``kv_bits``) and prints the tokens and times as JSON. It uses nothing of this
project but the check that the folder is whole and the placeholders of packages that are not needed here, so that no
tokenizers are imported.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from macmesh_daemon.engine.lean_imports import import_without_tokenizers

import_without_tokenizers()

import mlx.core as mx  # noqa: E402  after the placeholders
from mlx_lm.generate import generate_step  # noqa: E402  same
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache  # noqa: E402  same
from mlx_lm.utils import load_model  # noqa: E402  same

from macmesh_daemon.engine.files import require_whole  # noqa: E402  same


def _caches(model: Any, kv_bits: int) -> list[Any]:
    # `generate_step` quantises what the first chunk has computed with; here the first chunk itself is.
    return [
        QuantizedKVCache(bits=kv_bits) if kv_bits and type(cache) is KVCache else cache
        for cache in make_prompt_cache(model)
    ]


def main() -> None:
    """Runs one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    options = parser.parse_args()
    job = json.load(sys.stdin)
    require_whole(options.model)
    model, _ = load_model(options.model)
    loaded = time.monotonic()
    times, tokens = [], []
    for token, _ in generate_step(
        mx.array(job["prompt"]),
        model,
        max_tokens=job["max_tokens"],
        prefill_step_size=job["prefill_step_size"],
        prompt_cache=_caches(model, job["kv_bits"]),
    ):
        tokens.append(int(token))
        times.append(time.monotonic())
    result = {
        "token_ids": tokens,
        "first_token_seconds": times[0] - loaded,
        "decode_seconds": times[-1] - times[0],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

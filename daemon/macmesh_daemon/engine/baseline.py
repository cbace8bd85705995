"""What a cluster is measured against: mlx-lm as it is installed, in this process alone or over MLX's `ring`.

``python -m macmesh_daemon.engine.baseline MODEL`` reads a job as JSON from stdin: ``runs`` and ``warm_up`` are lists
of prompts, ``max_tokens`` goes with each of ``runs``, ``prefill_step_size`` with all. It prints, for each run, the
tokens and the time of each since the run began, and what MLX held at most. With ``--ring`` it is one rank of the group
that the environment describes (MLX_RANK, MLX_HOSTFILE); every rank reads the same job and answers. A model without
mlx-lm's ``pipeline()`` answers with ``refusal``. It uses nothing of this project but the check that the folder is
whole and the placeholders of packages that are not needed here, so that no tokenizers are imported.
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
from mlx_lm.generate import generate_step, generation_stream  # noqa: E402  same
from mlx_lm.utils import load_model  # noqa: E402  same

from macmesh_daemon.engine.files import require_whole  # noqa: E402  same


def main() -> None:
    """Runs one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--ring", action="store_true", help="be one rank of a pipeline")
    options = parser.parse_args()
    job = json.load(sys.stdin)
    require_whole(options.model)
    group = None
    if options.ring:
        model, group, refusal = _load_part(options.model)
        if refusal:
            sys.stdout.write(json.dumps({"refusal": refusal}) + "\n")
            return
    else:
        model, _ = load_model(options.model)
    for prompt in job["warm_up"]:
        _run(model, prompt, job["warm_up_tokens"], job["prefill_step_size"])
    runs = [
        _run(model, prompt, max_tokens, job["prefill_step_size"])
        for prompt, max_tokens in zip(job["runs"], job["max_tokens"], strict=True)
    ]
    if group is not None:
        _meet(group)
    rank = 0 if group is None else group.rank()
    result = {"rank": rank, "runs": runs, "peak_memory_bytes": mx.get_peak_memory()}
    sys.stdout.write(json.dumps(result) + "\n")


def _load_part(folder: Path) -> tuple[Any, Any, str]:
    """This rank's layers of the model, its group, and why there are none."""
    model, config = load_model(folder, lazy=True, strict=False)
    if not hasattr(getattr(model, "model", None), "pipeline"):
        return None, None, f"mlx-lm has no pipeline() for {config['model_type']}"
    group = mx.distributed.init(strict=True, backend="ring")
    model.model.pipeline(group)
    mx.eval(model.parameters())
    _meet(group)
    return model, group, ""


def _meet(group: Any) -> None:
    """Returns when all ranks are here, and what they sent each other before has been taken.

    `generate_step` leaves one step behind that nobody waits for: who ended now would break its neighbours' step.
    """
    mx.synchronize(generation_stream)
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group, stream=mx.cpu))


def _run(model: Any, prompt: list[int], max_tokens: int, prefill_step_size: int) -> dict[str, Any]:
    tokens, seconds = [], []
    began = time.perf_counter()
    for token, _ in generate_step(
        mx.array(prompt), model, max_tokens=max_tokens, prefill_step_size=prefill_step_size
    ):
        tokens.append(int(token))
        seconds.append(time.perf_counter() - began)
    return {"token_ids": tokens, "seconds": seconds}


if __name__ == "__main__":
    main()

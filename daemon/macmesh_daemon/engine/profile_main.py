"""The profile process: prints the profile of one model as JSON and ends.

Usage: macmesh-profile MODEL [--revision REVISION] [--hub-endpoint URL] [--model-id ID] [--lengths 300,40,1]
[--tensors]

MODEL is a folder, or organisation/model on a hub, of which only the config and the headers of the weight
files are read.

stdout carries the profile and nothing else. On failure the last line of stderr is ``{"error": {"reason",
"message"}}`` and the exit code is 2 where the architecture is not supported, else 1.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from macmesh_daemon.engine.lean_imports import import_without_tokenizers
from macmesh_daemon.models.errors import LocalArchitectureError, ModelError
from macmesh_daemon.models.folder import ModelFolder, is_hub_id, read_folder
from macmesh_placement import LocalProfileError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_UNSUPPORTED = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the process; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with _folder(options) as folder:
            # mlx-lm takes time to import: only once the folder is known to be sound.
            import_without_tokenizers()
            from macmesh_daemon.engine.profile import map_tensors, profile_folder  # noqa: PLC0415  see above

            with redirect_stdout(sys.stderr):
                answer = map_tensors(folder) if options.tensors else profile_folder(folder, options.lengths)
    except LocalProfileError as problem:
        return _fail(
            LocalArchitectureError(f"{options.model} has a shape that a profile cannot tell: {problem}")
        )
    except ModelError as problem:
        return _fail(problem)
    sys.stdout.write(answer.to_json_text())
    return EXIT_OK


@contextmanager
def _folder(options: argparse.Namespace) -> Iterator[ModelFolder]:
    path = Path(options.model).expanduser().absolute()
    if path.exists() or not is_hub_id(options.model):
        yield read_folder(path, model_id=options.model_id, require_weights=False)
        return
    from macmesh_daemon.models.hub import Hub, read_hub  # noqa: PLC0415  a folder needs no hub client

    with tempfile.TemporaryDirectory(prefix="macmesh-hub-") as stand_ins:
        hub = Hub(endpoint=options.hub_endpoint)
        folder = read_hub(options.model, Path(stand_ins), revision=options.revision, hub=hub)
        yield replace(folder, model_id=options.model_id or folder.model_id)


def _fail(problem: ModelError) -> int:
    json.dump({"error": {"reason": problem.reason, "message": str(problem)}}, sys.stderr)
    sys.stderr.write("\n")
    return EXIT_UNSUPPORTED if isinstance(problem, LocalArchitectureError) else EXIT_FAILED


def _lengths(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if any(value < 1 for value in values):
        raise argparse.ArgumentTypeError("lengths are token counts of at least 1")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="macmesh-profile", description="prints what a model costs, layer by layer, as JSON"
    )
    parser.add_argument(
        "model", help="model folder (without weights, its config is profiled), or organisation/model on a hub"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: its main branch)")
    parser.add_argument("--hub-endpoint", help="address of the hub (default: HF_ENDPOINT, or Hugging Face)")
    parser.add_argument(
        "--tensors", action="store_true", help="print which tensors each layer is computed from instead"
    )
    parser.add_argument("--model-id", default="", help="name to write into the profile (default: the folder)")
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=[],
        help="tokens of the lazy steps that check the cache costs, such as 300,40,1",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The profile process: prints the profile of one model folder as JSON and ends.

Usage: macmesh-profile MODEL_FOLDER [--model-id ID] [--lengths 300,40,1]

stdout carries the profile and nothing else. On failure the last line of stderr is ``{"error": {"reason",
"message"}}`` and the exit code is 2 where the architecture is not supported, else 1.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from macmesh_daemon.engine.lean_imports import import_without_tokenizers
from macmesh_daemon.models.errors import LocalArchitectureError, ModelError
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import LocalProfileError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_UNSUPPORTED = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the process; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        folder = read_folder(
            options.folder.expanduser().absolute(), model_id=options.model_id, require_weights=False
        )
        # mlx-lm takes time to import: only once the folder is known to be sound.
        import_without_tokenizers()
        from macmesh_daemon.engine.profile import profile_folder  # noqa: PLC0415  see above

        with redirect_stdout(sys.stderr):
            profile = profile_folder(folder, options.lengths)
    except LocalProfileError as problem:
        return _fail(
            LocalArchitectureError(f"{options.folder} has a shape that a profile cannot tell: {problem}")
        )
    except ModelError as problem:
        return _fail(problem)
    sys.stdout.write(profile.to_json_text())
    return EXIT_OK


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
    parser.add_argument("folder", type=Path, help="model folder; without weights, its config is profiled")
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

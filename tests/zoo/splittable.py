"""Every architecture in stages over a real group, against mlx-lm alone; run, it prints the table.

PYTHONPATH=tests python -m zoo.splittable [NAME ...]
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlx_lm.utils import load_model

from macmesh_daemon.engine.anatomy import Anatomy, examine
from zoo import CONFIGS, write_model
from zoo.splits import NOT_RUN, SEED, Generated, Job, Row, chosen_cuts, reference, uncompiled

RANKS = 3
_ANSWER_SECONDS = 90.0


class StagesError(AssertionError):
    """A stage failed, or was silent for too long."""


class Workers:
    """Three stages as processes that take one model after another."""

    def __init__(self) -> None:
        self._processes = [_started(rank) for rank in range(RANKS)]
        try:
            endpoints = [self._heard(rank) for rank in range(RANKS)]
            for process in self._processes:
                _tell(process, endpoints)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, job: Job) -> None:
        """Lets the stages of a split run."""
        for process in self._processes[: job.stages]:
            _tell(process, job.to_json())

    def end(self, job: Job) -> Generated:
        """What came of it.

        Raises:
            StagesError: a stage failed. The others still wait for it: close.
        """
        answers = [self._heard(rank) for rank in range(job.stages)]
        errors = [
            f"stage {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer
        ]
        if errors:
            raise StagesError("; ".join(errors))
        return Generated(**answers[-1])

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _heard(self, rank: int) -> Any:
        pipe = self._processes[rank].stdout
        assert pipe is not None
        if not select.select([pipe], [], [], _ANSWER_SECONDS)[0]:
            raise StagesError(f"stage {rank} was silent for {_ANSWER_SECONDS:.0f} s")
        line = pipe.readline()
        if not line:
            raise StagesError(f"stage {rank} has ended")
        return json.loads(line)


def _started(rank: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "zoo.split_worker", str(rank)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def _tell(process: "subprocess.Popen[str]", words: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(words) + "\n")
    process.stdin.flush()


@dataclass(frozen=True, slots=True)
class Split:
    """One architecture in stages, and whole."""

    rows: list[Row]
    model: Any = None
    anatomy: Anatomy | None = None
    expected: Generated | None = None
    """What mlx-lm alone generates."""


def split(workers: Workers, name: str, folder: Path, dtype: str = "float32") -> Split:
    """Splits an architecture into two and into three stages.

    Args:
        workers: the stages.
        name: of `zoo.CONFIGS`.
        folder: where the model is written.
        dtype: of its weights.

    Raises:
        StagesError: a stage failed; the workers are of no use any more.
    """
    if name in NOT_RUN:
        return Split([Row(name, dtype, (), equal=False, reason=NOT_RUN[name])])
    with uncompiled():
        write_model(folder, name, seed=SEED, dtype=dtype, shards=1)
        model: Any = load_model(folder)[0]  # reading may change some bits of what was written
        anatomy = examine(model)
        if not anatomy.cut_points:
            refused = Row(name, dtype, (), equal=False, reason=f"refused: {anatomy.cut_reason}")
            return Split([refused], model, anatomy)
        rows: list[Row] = []
        expected: Generated | None = None
        for cuts in chosen_cuts(name, anatomy):
            job = Job(str(folder), (0, *cuts, anatomy.layer_count))
            workers.begin(job)
            expected = expected or reference(model)  # while the stages run
            rows.append(_row(name, dtype, cuts, anatomy.cut_reason, workers.end(job), expected))
    return Split(rows, model, anatomy, expected)


def _row(
    name: str, dtype: str, cuts: tuple[int, ...], reason: str, found: Generated, expected: Generated
) -> Row:
    if found == expected:
        return Row(name, dtype, cuts, equal=True, reason=reason)
    if found.tokens == expected.tokens:
        return Row(name, dtype, cuts, equal=False, reason="log probabilities differ in some bits")
    return Row(name, dtype, cuts, equal=False, reason=f"{found.tokens} instead of {expected.tokens}")


def main(names: Sequence[str]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, Workers() as workers:
        rows = [row for name in names or CONFIGS for row in split(workers, name, Path(folder) / name).rows]
    for row in rows:
        sys.stdout.write(row.text + "\n")
    exact = {row.name for row in rows} - {row.name for row in rows if not row.equal}
    sys.stdout.write(f"{len(exact)} of {len({row.name for row in rows})} architectures are equal\n")


if __name__ == "__main__":
    main(sys.argv[1:])

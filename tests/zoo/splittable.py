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
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlx_lm.utils import load_model

from macmesh_daemon.engine.anatomy import examine
from zoo import CONFIGS, shared_model
from zoo.batchtable import Course, Requests, compare, difference
from zoo.splits import NOT_RUN, SEED, Generated, Job, Row, chosen_cuts, reference, uncompiled

RANKS = 3
_ANSWER_SECONDS = 120.0


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

    def end(self, job: Job) -> tuple[Generated, Course | None]:
        """What came of it: a request alone, and three in batches where the job has them.

        Raises:
            StagesError: a stage failed. The others still wait for it: close.
        """
        answers = [self._heard(rank) for rank in range(job.stages)]
        errors = [
            f"stage {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer
        ]
        if errors:
            raise StagesError("; ".join(errors))
        together = answers[-1]["together"]
        return Generated(**answers[-1]["alone"]), together and Course(**together)

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


def split(workers: Workers, name: str, models: Path) -> list[Row]:
    """Splits an architecture into two and into three stages; where that cannot be, only its batches are compared.

    Args:
        workers: the stages.
        name: of `zoo.CONFIGS`.
        models: where models lie; see `zoo.shared_model`.

    Raises:
        StagesError: a stage failed; the workers are of no use any more.
    """
    if name in NOT_RUN:
        return [Row(name, (), equal=False, batches="no", reason=NOT_RUN[name])]
    with uncompiled():
        folder = shared_model(models, name, seed=SEED)
        model: Any = load_model(folder)[0]  # reading may change some bits of what was written
        requests = Requests(model, examine(model))
        anatomy = requests.anatomy
        if not anatomy.cut_points:
            whole = compare(name, requests)
            reason = f"refused: {anatomy.cut_reason}"
            return [Row(name, (), equal=False, batches=whole.verdict, reason=reason)]
        rows: list[Row] = []
        expected: Generated | None = None
        unbatchable = requests.unbatchable
        for cuts in (splits := chosen_cuts(name, anatomy)):
            # The batches go through as many stages as there are: a middle one among them.
            course = "" if cuts != splits[-1] else "alone" if unbatchable else "batches"
            job = Job(name, str(folder), (0, *cuts, anatomy.layer_count), course)
            workers.begin(job)
            expected = expected or reference(model)  # while the stages run
            found, together = workers.end(job)
            differs = difference(requests, name, together, expected.tokens) if together else ""
            verdict = "-" if together is None else "no" if differs else "alone" if unbatchable else "equal"
            reasons = [
                _difference(found, expected),
                differs,
                unbatchable if together else "",
                anatomy.cut_reason,
            ]
            reason = "; ".join(filter(None, reasons))
            rows.append(Row(name, cuts, equal=found == expected, batches=verdict, reason=reason))
    return rows


def _difference(found: Generated, expected: Generated) -> str:
    if found == expected:
        return ""
    if found.tokens == expected.tokens:
        return "log probabilities differ in some bits"
    return f"{found.tokens} instead of {expected.tokens}"


def main(names: Sequence[str]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, Workers() as workers:
        rows = [row for name in names or CONFIGS for row in split(workers, name, Path(folder))]
    for row in rows:
        sys.stdout.write(row.text + "\n")
    sys.stdout.write(summary(rows) + "\n")


def summary(rows: Sequence[Row]) -> str:
    """How many architectures are equal."""
    every = {row.name for row in rows}
    stages = every - {row.name for row in rows if not row.equal}
    batches = {row.name for row in rows if row.batches == "equal"}
    return f"{len(every)} architectures: {len(stages)} equal in stages, {len(batches)} in batches"


if __name__ == "__main__":
    main(sys.argv[1:])

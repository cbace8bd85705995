"""What came out, and its JSON form. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from macmesh_daemon.bench.statistics import Spread

if TYPE_CHECKING:
    from macmesh_daemon.bench.arrival import ArrivalResult
    from macmesh_daemon.bench.cases import Case
    from macmesh_daemon.bench.requests import RequestRun
    from macmesh_daemon.bench.schedule import ScheduleWork
    from macmesh_daemon.bench.stages import StageWork


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case, measured.

    Attributes:
        case: What was run.
        runs: Its requests, round after round.
        wall_seconds: Of all rounds together, each from its first call to its last token.
        stages: What the stages did meanwhile, and their memory after it.
        schedule: What the head's schedule counted meanwhile; None where it told nothing.
    """

    case: Case
    runs: tuple[RequestRun, ...]
    wall_seconds: float
    stages: tuple[StageWork, ...]
    schedule: ScheduleWork | None = None

    @property
    def first_token_seconds(self) -> Spread:
        """Over the requests."""
        return Spread.of(run.first_token_seconds for run in self.runs)

    @property
    def inter_token_seconds(self) -> Spread:
        """Over all tokens of all requests."""
        return Spread.of(seconds for run in self.runs for seconds in run.inter_token_seconds)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Median over the requests."""
        return Spread.of(run.prefill_tokens_per_second for run in self.runs).p50

    @property
    def decode_tokens_per_second(self) -> float:
        """Of one request; median over the requests."""
        return Spread.of(run.decode_tokens_per_second for run in self.runs).p50

    @property
    def aggregate_tokens_per_second(self) -> float:
        """Generated tokens of all requests over the wall time."""
        tokens = sum(len(run.token_ids) for run in self.runs)
        return tokens / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def together_tokens_per_second(self) -> float:
        """Of all requests of a round while all of them decode; median over the rounds, 0 where they never do.

        That is from the last first token to the first last one.
        """
        speeds = []
        for at in range(0, len(self.runs), self.case.concurrency):
            runs = self.runs[at : at + self.case.concurrency]
            begin = max(run.arrivals[0].at_seconds for run in runs)
            end = min(run.ended_seconds for run in runs)
            tokens = sum(
                len(arrival.token_ids)
                for run in runs
                for arrival in run.arrivals
                if begin < arrival.at_seconds <= end
            )
            speeds.append(tokens / (end - begin) if end > begin else 0.0)
        return Spread.of(speeds).p50

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self.case),
            "requests": len(self.runs),
            "wall_seconds": round(self.wall_seconds, 6),
            "first_token_seconds": _rounded(self.first_token_seconds),
            "inter_token_seconds": _rounded(self.inter_token_seconds),
            "prefill_tokens_per_second": round(self.prefill_tokens_per_second, 3),
            "decode_tokens_per_second": round(self.decode_tokens_per_second, 3),
            "aggregate_tokens_per_second": round(self.aggregate_tokens_per_second, 3),
            "together_tokens_per_second": round(self.together_tokens_per_second, 3),
            "schedule": self.schedule.to_json() if self.schedule else None,
            "stages": [stage.to_json() for stage in self.stages],
        }


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of a climb.

    Attributes:
        length_tokens: Prompt and answer together.
        run: Its request.
        stages: What the stages did, and their memory after it.
    """

    length_tokens: int
    run: RequestRun
    stages: tuple[StageWork, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "length_tokens": self.length_tokens,
            "prompt_tokens": self.run.prompt_tokens,
            "new_tokens": len(self.run.token_ids),
            "first_token_seconds": round(self.run.first_token_seconds, 6),
            "inter_token_seconds": _rounded(Spread.of(self.run.inter_token_seconds)),
            "decode_tokens_per_second": round(self.run.decode_tokens_per_second, 3),
            "stages": [stage.to_json() for stage in self.stages],
        }


@dataclass(frozen=True, slots=True)
class ClimbResult:
    """A conversation that grew to the context, or as far as the ledgers held.

    Attributes:
        rungs: In order.
        context_tokens: Where it was to end.
        complaint: Which stage did not keep to its ledger, and by how much; empty where all did, up to the top.
    """

    rungs: tuple[Rung, ...]
    context_tokens: int
    complaint: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "context_tokens": self.context_tokens,
            "reached_tokens": self.rungs[-1].length_tokens if self.rungs else 0,
            "within_ledgers": not self.complaint,
            "complaint": self.complaint,
            "rungs": [rung.to_json() for rung in self.rungs],
        }


@dataclass(frozen=True, slots=True)
class BaselineCase:
    """One case on mlx-lm as it is.

    Attributes:
        case: What was run.
        runs: Its requests, one after the other.
        identical: Whether every request gave the tokens that the cluster gave.
    """

    case: Case
    runs: tuple[RequestRun, ...]
    identical: bool

    @property
    def prefill_tokens_per_second(self) -> float:
        """Median over the requests."""
        return Spread.of(run.prefill_tokens_per_second for run in self.runs).p50

    @property
    def decode_tokens_per_second(self) -> float:
        """Median over the requests."""
        return Spread.of(run.decode_tokens_per_second for run in self.runs).p50

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self.case),
            "requests": len(self.runs),
            "first_token_seconds": _rounded(Spread.of(run.first_token_seconds for run in self.runs)),
            "inter_token_seconds": _rounded(
                Spread.of(s for run in self.runs for s in run.inter_token_seconds)
            ),
            "prefill_tokens_per_second": round(self.prefill_tokens_per_second, 3),
            "decode_tokens_per_second": round(self.decode_tokens_per_second, 3),
            "identical": self.identical,
        }


@dataclass(frozen=True, slots=True)
class Baseline:
    """The same requests on mlx-lm as it is.

    Attributes:
        name: "mlx-lm" (one process) or "mlx-lm ring" (MLX's `ring` between as many processes as there are stages).
        cases: The cold cases with one request at a time.
        peak_memory_bytes: The most that MLX held, of each process.
        refusal: Why it was not run; empty where it was.
    """

    name: str
    cases: tuple[BaselineCase, ...] = ()
    peak_memory_bytes: tuple[int, ...] = ()
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "name": self.name,
            "refusal": self.refusal,
            "peak_memory_bytes": list(self.peak_memory_bytes),
            "cases": [case.to_json() for case in self.cases],
        }


@dataclass(frozen=True, slots=True)
class Served:
    """What was measured.

    Attributes:
        model_id: The model.
        model_path: Its folder, on the node that resolved it.
        epoch: The plan's, ``generation.term.seq``.
        context_tokens: Tokens of context.
        slots: Requests at once.
        prefill_chunk_tokens: Most prompt tokens in one step.
        vocabulary_tokens: Prompts are drawn below this.
        stage_count: Stages of the plan.
    """

    model_id: str
    model_path: str
    epoch: str
    context_tokens: int
    slots: int
    prefill_chunk_tokens: int
    vocabulary_tokens: int
    stage_count: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that one call of `daemonctl bench` measured."""

    served: Served
    seed: int
    cases: tuple[CaseResult, ...] = ()
    climb: ClimbResult | None = None
    baselines: tuple[Baseline, ...] = ()
    arrival: ArrivalResult | None = None

    @property
    def _looks(self) -> list[tuple[StageWork, ...]]:
        looks = [result.stages for result in self.cases]
        looks += [rung.stages for rung in self.climb.rungs] if self.climb else []
        return looks + ([self.arrival.stages] if self.arrival else [])

    @property
    def within_ledgers(self) -> bool | None:
        """Whether no peak lay above its ledger; None where a figure is missing and none did."""
        found = [work.within_ledger for stages in self._looks for work in stages]
        if False in found:
            return False
        return None if None in found or not found else True

    @property
    def ledger_complaints(self) -> tuple[str, ...]:
        """Peaks above a ledger that any case or rung saw; a stage without figures is none."""
        worst: dict[int, StageWork] = {}
        for work in (work for stages in self._looks for work in stages if work.within_ledger is False):
            if work.index not in worst or work.peak_memory_bytes > worst[work.index].peak_memory_bytes:
                worst[work.index] = work
        return tuple(
            f"stage {index}: {work.peak_memory_bytes:,} bytes at its peak, ledger {work.ledger_bytes:,}"
            for index, work in sorted(worst.items())
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self.served),
            "seed": self.seed,
            "percentiles": "nearest-rank",
            "within_ledgers": self.within_ledgers,
            "ledger_complaints": list(self.ledger_complaints),
            "cases": [case.to_json() for case in self.cases],
            "climb": self.climb.to_json() if self.climb else None,
            "arrival": self.arrival.to_json() if self.arrival else None,
            "baselines": [baseline.to_json() for baseline in self.baselines],
        }


def _rounded(spread: Spread) -> dict[str, float | int]:
    return {name: round(value, 6) for name, value in asdict(spread).items()}

"""What a demo saw, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "daemonctl-demo/1"


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The result of a demo.

    Attributes:
        identical: The cluster's tokens equal those of unmodified mlx-lm in a process of its own.
        nodes: Members of the cluster.
        stages: Stages of the plan.
        tokens: Tokens generated.
        discovery: How the admitted nodes were found: "mdns", "static", or both joined by "+".
        coordinator: Node id of the coordinator.
        epoch: Epoch of the plan.
        layers: Layers of each stage, head first.
        prompt: What was asked.
        text: What the cluster answered.
        token_ids: The cluster's tokens.
        reference_token_ids: Those of mlx-lm.
        seconds: Time from the start of the daemons to "discovered", "elected", "planned", "ready",
            "first_token" and "done".
        tokens_per_second: Of the cluster, after the first token.
        reference_tokens_per_second: Of mlx-lm in one process, after the first token.
        usable_bytes: What each daemon was allowed to use.
        votes: How the coordinator was elected, as it announced it.
        providers: What carried the arrays between the stages.
    """

    identical: bool
    nodes: int
    stages: int
    tokens: int
    discovery: str
    coordinator: str
    epoch: str
    layers: tuple[int, ...]
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    reference_token_ids: tuple[int, ...]
    seconds: dict[str, float]
    tokens_per_second: float
    reference_tokens_per_second: float
    usable_bytes: int
    votes: dict[str, Any] = field(default_factory=dict)
    providers: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"format": FORMAT, **asdict(self)}

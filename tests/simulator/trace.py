"""The story of a run: kept raw, made readable only when somebody asks."""

from collections import deque

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.requests import effects as rq

Line = tuple[float, str, str, object]


class Story:
    """What happened, in order; the last ``lines`` of it, or all where that is None."""

    def __init__(self, lines: int | None) -> None:
        self.lines: deque[Line] = deque(maxlen=lines)

    def tell(self, now: float, node_id: str, what: str, value: object = None) -> None:
        """Note one thing."""
        self.lines.append((now, node_id, what, value))

    def __str__(self) -> str:
        return "\n".join(map(line_of, self.lines))

    def readable(self) -> list[str]:
        """Decisions, worker starts and what was done to the nodes; no messages."""
        return [line for line in map(_plain, self.lines) if line]


def line_of(line: Line) -> str:
    """One thing with everything that is known about it."""
    at, node_id, what, value = line
    return f"{at:9.4f} {node_id} {what}" + (f" {_brief(value)}" if value is not None else "")


def _brief(value: object) -> str:  # noqa: PLR0911  one shape, one return
    match value:
        case ev.RequestReceived():
            return f"request {value.request_id} of {value.sender}: {value.message}"
        case ev.ResponseReceived():
            return f"answer of {value.peer}: {value.message}"
        case ev.RequestFailed():
            return f"no answer of {value.peer}: {type(value.message).__name__}, {value.kind}"
        case fx.Send():
            return f"call {value.peer}: {value.message}"
        case fx.Announce():
            return _facts(value)
        case fx.Persist():
            state = value.state
            return (
                f"Persist ballot {state.generation}.{state.term} vote {state.voted_for or '-'} "
                f"document {state.document_version} committed {state.commit_version} "
                f"promised {state.promised or '-'} active {state.active or '-'}"
            )
    return str(value)


def _facts(said: fx.Announce) -> str:
    facts = " ".join(f"{name}={_value(value)}" for name, value in said.facts.items())
    return f"{said.event}{' ' + facts if facts else ''}"


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "-"
    text = str(value)
    return f"'{text}'" if " " in text else text or "-"


def _plain(line: Line) -> str:  # noqa: PLR0911  one shape, one return
    at, node_id, what, value = line
    start = f"{at:8.3f} {node_id:>2} "
    match value:
        case None:
            return start + what
        case fx.Announce():
            return start + _facts(value)
        case fx.StartWorker():
            return f"{start}starts its worker of {value.epoch}"
        case fx.StopWorker():
            return f"{start}{'retires' if value.keep else 'stops'} its worker of {value.epoch}"
        case fx.ReleaseWorker():
            return f"{start}lets its resting worker go"
        case fx.ChangeAccepted():
            return f"{start}change {value.change_id} accepted in {'.'.join(map(str, value.document_version))}"
        case fx.ChangeDone():
            return f"{start}change {value.change_id} done under {value.epoch}"
        case fx.ChangeRejected():
            return f"{start}change {value.change_id} rejected: {value.reason}"
    return _plain_of_request(f"{start}{what}: ", value)


def _plain_of_request(start: str, value: object) -> str:  # noqa: PLR0911  one shape, one return
    match value:
        case rq.Run():
            behind = len(value.generated_token_ids)
            return f"{start}run {value.number} at {value.head_node_id} under {value.epoch} behind {behind} tokens"
        case rq.RunLost():
            return f"{start}run {value.number} under {value.epoch} is lost: {value.reason}: {value.message}"
        case rq.TellPaused():
            return f"{start}paused: {value.reason}: {value.message}"
        case rq.Finished():
            return f"{start}finished: {value.finish}"
        case rq.Cancelled():
            return f"{start}cancelled"
        case rq.Failed():
            return f"{start}failed: {value.reason}: {value.message}"
    return ""

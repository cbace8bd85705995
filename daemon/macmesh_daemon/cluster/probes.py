"""Second opinions: looking for a third node in the coordinator's stead."""

from typing import TYPE_CHECKING

from .messages import ProbeRequest, ProbeResponse

if TYPE_CHECKING:
    from .context import Context


class Probes:
    """The probes that this node makes for a coordinator. A probe of this node itself is answered at once."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._waiting: dict[str, list[int]] = {}

    def on_request(self, request_id: int, request: ProbeRequest, *, from_coordinator: bool) -> None:
        """Answer for this node, or ask the target; only the coordinator may send this node about."""
        target = request.target_node_id
        if target == self._context.node_id:
            self._reply(request_id, target, reached=True)
        elif not from_coordinator:
            self._reply(request_id, target, reached=False)
        elif target in self._waiting:
            self._waiting[target].append(request_id)
        else:
            self._waiting[target] = [request_id]
            probe = ProbeRequest(*self._context.state.ballot, target)
            self._context.send(target, probe, self._context.settings.rpc_deadline_seconds)

    def on_outcome(self, target: str, *, reached: bool) -> None:
        """The target answered, or did not."""
        for request_id in self._waiting.pop(target, []):
            self._reply(request_id, target, reached=reached)

    def _reply(self, request_id: int, target: str, *, reached: bool) -> None:
        self._context.reply(request_id, ProbeResponse(*self._context.state.ballot, target, reached))

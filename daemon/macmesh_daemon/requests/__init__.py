"""One request at the node that took it: what was asked, every token so far, and which run of it is to be believed.

Pure: `RequestMachine.step` takes an event and the time and gives effects. The node's request desk carries them out;
a simulator may do so too. A request is *accepted* once and *run* as often as it takes: a run that is lost with its
stages is followed by another one, under the plan that comes next, which goes on behind the tokens in the log.

Promises (invariant 6): a token is in the log before it is delivered; each is delivered once, in order; no token of
a run that was given up is taken; and there is exactly one end.

Errors:

TokenError           a head told a token that cannot follow the log (`LocalTokenGapError`, `LocalTokenChangedError`)
"""

from macmesh_daemon.requests.ask import Ask, Finish
from macmesh_daemon.requests.machine import RequestMachine
from macmesh_daemon.requests.settings import RequestSettings
from macmesh_daemon.requests.token_log import LocalTokenChangedError, LocalTokenGapError, TokenError, TokenLog

__all__ = [
    "Ask",
    "Finish",
    "LocalTokenChangedError",
    "LocalTokenGapError",
    "RequestMachine",
    "RequestSettings",
    "TokenError",
    "TokenLog",
]

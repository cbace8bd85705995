"""The breaks of what becomes of requests."""

from .mutant import Mutant

_ONCE = "6: delivered once, in order"
_ONE_END = "6: one end"
_NO_OLD_EPOCH = "4: nothing of an older epoch"
_LOGGED = "6: logged before it is sent"
_COMMITTED = "a run begins under a committed plan that is ready"
_ENDS = "liveness: every request ends"
_NOTHING_RUNS_ON = "of an ended request nothing runs on"


def _machine(name: str, old: str, new: str, endangers: str) -> Mutant:
    return Mutant(name, "machine.py", old, new, endangers, "requests")


def _log(name: str, old: str, new: str, endangers: str) -> Mutant:
    return Mutant(name, "token_log.py", old, new, endangers, "requests")


def _view(name: str, old: str, new: str, endangers: str) -> Mutant:
    return Mutant(name, "plan_seen.py", old, new, endangers, "node")


REQUEST_BREAKS: tuple[Mutant, ...] = (
    _machine(
        "a token is sent before it is logged",
        "is_new = self.log.record(event.index, event.token_id, now)",
        "is_new = True",
        _LOGGED,
    ),
    _log(
        "the delivered index is not advanced",
        "        self.token_ids.append(token_id)\n",
        "",
        _ONCE,
    ),
    _log(
        "a token that was kept before is new again",
        "                )\n            return False",
        "                )\n            return True",
        _ONCE,
    ),
    _log(
        "a gap before a token is no error",
        "if index > len(self.token_ids):",
        "if False:",
        _ONCE,
    ),
    _log(
        "another token at a position is no error",
        "if self.token_ids[index] != token_id:",
        "if False:",
        "delivered tokens never change",
    ),
    _machine(
        "what a client brings lacks its last token",
        "token_ids=list(generated))",
        "token_ids=list(generated[:-1]))",
        _ONCE,
    ),
    _machine(
        "what a client brings is forgotten",
        "token_ids=list(generated))",
        "token_ids=[])",
        _ONCE,
    ),
    _machine(
        "a run begins without the log, and so at the first random number",
        "                tuple(self.log.token_ids),\n",
        "                (),\n",
        "the sampling goes on where it was: " + _ONCE,
    ),
    _machine(
        "a run begins one token too early",
        "                tuple(self.log.token_ids),\n",
        "                tuple(self.log.token_ids[:-1]),\n",
        "the sampling goes on where it was: " + _ONCE,
    ),
    _machine(
        "a token of a run that was given up is taken",
        "return self._token(event, now) if event.run == self.run else []",
        "return self._token(event, now) if self.run else []",
        _NO_OLD_EPOCH,
    ),
    _machine(
        "the loss of a run that was given up is believed",
        "return self._run_failed(event, now) if event.run == self.run else []",
        "return self._run_failed(event, now) if self.run else []",
        "a run is lost by its own end",
    ),
    _machine(
        "a newer plan that is ready leaves the old run alone",
        "            if self._epoch == event.epoch:\n                return []",
        "            if True:\n                return []",
        _NO_OLD_EPOCH,
    ),
    _machine(
        "a newer plan that is pending leaves the old run alone",
        "if event.epoch is None or event.epoch == self._epoch:",
        "if True:",
        _NO_OLD_EPOCH,
    ),
    _machine(
        "a plan that has no successor yet ends its runs",
        "if event.epoch is None or event.epoch == self._epoch:",
        "if False:",
        "without a quorum the running plan goes on",
    ),
    _machine(
        "a run is asked for before its plan is ready",
        "        self._missing, self._facts, self._retry_at = missing, {}, None\n",
        "        self._missing, self._facts, self._retry_at = missing, {}, now\n",
        _COMMITTED,
    ),
    _machine(
        "a pending plan keeps the plan before it",
        "        self._plan = None\n        missing",
        "        missing",
        _COMMITTED,
    ),
    _view(
        "a plan counts before it is committed",
        "    plan = view.plan\n    deployment = _deployment(plan)",
        "    plan = view.stored_document.plan if view.stored_document else view.plan\n"
        "    deployment = _deployment(plan)",
        _COMMITTED,
    ),
    _view(
        "a plan counts as ready before its workers are",
        "reports[stage.index].state is not WorkerState.READY)",
        "False)",
        _COMMITTED,
    ),
    _view(
        "the report of an older worker makes a plan ready",
        "is not None and report.epoch == plan.epoch",
        "is not None",
        _COMMITTED,
    ),
    _view(
        "the tail is asked for runs",
        "head = deployment.stages[0].node_id",
        "head = deployment.stages[-1].node_id",
        _ENDS,
    ),
    Mutant(
        "requests are told of a plan not by their age",
        "requests.py",
        "for live in list(self._live.values()):",
        "for live in reversed(list(self._live.values())):",
        "the oldest request is replayed first",
        "node",
    ),
    _machine("events after the end count", "        if self.ended:\n            return []\n", "", _ONE_END),
    _machine(
        "the last token does not end a request",
        '        self._state = "finished"\n        return [deliver, fx.Finished(event.finish)]',
        "        return [deliver]",
        _ONE_END,
    ),
    _machine(
        "a run that fails for good leaves the request open",
        '            self._state = "failed"\n            return [fx.Failed',
        "            return [fx.Failed",
        _ONE_END,
    ),
    _machine(
        "a text's end is no end",
        'return self._end("finished", fx.Finished(Finish.STOP))',
        "return [fx.Finished(Finish.STOP)]",
        _ONE_END,
    ),
    _machine(
        "a run goes on when its client has gone",
        "return [fx.CancelRun(self._runs), end] if was_running else [end]",
        "return [end]",
        _NOTHING_RUNS_ON,
    ),
    _machine(
        "a run that is given up goes on",
        "return [fx.CancelRun(number), fx.RunLost(number, epoch, reason, message), *told]",
        "return [fx.RunLost(number, epoch, reason, message), *told]",
        _NOTHING_RUNS_ON,
    ),
    _machine("patience has no end", "if now >= self._gives_up_at:", "if False:", _ENDS),
    _machine(
        "earlier waits cost no patience",
        "            self._waited_seconds += now - self._waiting_since\n",
        "            pass\n",
        _ENDS,
    ),
    _machine(
        "patience does not begin anew with a token",
        "self._waited_seconds, self._retries = 0.0, 0",
        "self._retries = 0",
        "patience counts since the last token",
    ),
    _machine(
        "a plan that lost a run is not asked again",
        "            self._retry_at = now + min(pause, self._settings.longest_retry_seconds)\n",
        "            pass\n",
        _ENDS,
    ),
    _machine(
        "a plan that lost a run is asked without a pause",
        "pause = self._settings.retry_seconds * 2.0**self._retries",
        "pause = 0.0",
        "a request does not flood its head",
    ),
    _machine(
        "a retry is due later than is told",
        "return self._gives_up_at if self._retry_at is None else min(self._retry_at, self._gives_up_at)",
        "return self._gives_up_at",
        _ENDS,
    ),
    _machine(
        "a request that ends every worker is tried for ever",
        "event.reason in LOSSES and len(self._lost_epochs) < self._settings.most_lost_plans",
        "event.reason in LOSSES",
        "a request does not end plan after plan",
    ),
    _machine(
        "an accepted request is refused for want of room",
        "event.reason == _BUSY and (self._is_replay or self._runs > 1)",
        "False",
        "what was accepted is not refused",
    ),
    _machine(
        "the workers' end ends a request",
        '"WORKER_FAILED", "PEER_UNREACHABLE"',
        '"PEER_UNREACHABLE"',
        "a lost run is replayed",
    ),
    _machine(
        "another model goes on with a request",
        "if event.model_digest != self.ask.model_digest:",
        "if False:",
        "one model answers",
    ),
    _machine(
        "a request waits for a model that nobody wants any more",
        "            return self._fail(event.reason, event.message)\n        if event.model_digest",
        "            return []\n        if event.model_digest",
        _ENDS,
    ),
    _machine(
        "a request goes on under a plan without room for it",
        "if needed > plan.context_tokens:",
        "if False:",
        "memory does not run out",
    ),
    _machine(
        "what a client brings is not looked at for its end",
        "(finish := self._finish_of_log()) is not None",
        "(finish := self._finish_of_log()) is not None and False",
        _ONE_END,
    ),
)

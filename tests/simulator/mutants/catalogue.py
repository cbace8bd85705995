"""The breaks: one line of the core each, and what it endangers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One break.

    Attributes:
        name: What is wrong.
        file: In ``macmesh_daemon/cluster``.
        old: Text that occurs exactly once in it.
        new: What takes its place.
        endangers: The invariant or promise that rests on it.
    """

    name: str
    file: str
    old: str
    new: str
    endangers: str


_ONE_COORDINATOR = "1: one coordinator per term"
_ONE_PLAN = "2: one plan per epoch"
_ONE_WORKER = "3: one worker per node"
_NO_OLD_EPOCH = "4: nothing of an older epoch"
_NOT_LOST = "5: committed documents are not lost"
_ENDS_ONCE = "6: whatever was asked ends once"
_LIVENESS = "liveness: a healed cluster serves"
_FAILOVER = "failover within seconds"
_DENIED = "an evicted node is answered nothing"
_NO_FALSE_DEATH = "a member that lives is not called dead"
_DRAINED = "a drained node serves no stage"
_STANDALONE = "a node alone touches nobody"

CATALOGUE: tuple[Mutant, ...] = (
    Mutant(
        "half of the votes is a quorum",
        "quorum.py",
        "if node_id in node_ids) > sum(votes.values())",
        "if node_id in node_ids) >= sum(votes.values())",
        _ONE_COORDINATOR,
    ),
    Mutant(
        "the tie-breaker's extra vote is not counted",
        "quorum.py",
        "votes[policy.tie_breaker_node_id] += policy.tie_breaker_votes",
        "votes[policy.tie_breaker_node_id] += 0",
        "two nodes: the tie-breaker goes on alone",
    ),
    Mutant(
        "a voter comes in with the extra vote at once",
        "quorum.py",
        "grown = _set_voter(document, bench[0].node_id, voter=True)",
        "grown = _set_tie_breaker(_set_voter(document, bench[0].node_id, voter=True), bench[0].node_id, 1)",
        "weights move by one unit: " + _NOT_LOST,
    ),
    Mutant(
        "all on the bench become voters at once",
        "quorum.py",
        "return grown if viable(grown) else document",
        "return dataclasses.replace(document, members=tuple(dataclasses.replace(m, voter=m.voter or m in bench) "
        "for m in document.members))",
        "weights move by one unit: " + _NOT_LOST,
    ),
    Mutant(
        "the vote is not persisted",
        "election.py",
        "                context.persist(voted_for=sender)",
        "                context.remember(voted_for=sender)",
        _ONE_COORDINATOR,
    ),
    Mutant(
        "the own vote is not persisted",
        "election.py",
        "self._context.persist(term=term + 1, voted_for=self._context.node_id)",
        "self._context.remember(term=term + 1, voted_for=self._context.node_id)",
        _ONE_COORDINATOR,
    ),
    Mutant(
        "the own vote is not cast for itself",
        "election.py",
        "self._context.persist(term=term + 1, voted_for=self._context.node_id)",
        'self._context.persist(term=term + 1, voted_for="")',
        _ONE_COORDINATOR,
    ),
    Mutant(
        "a second vote is given in a term",
        "election.py",
        'if context.state.voted_for not in {"", sender}:',
        "if False:",
        _ONE_COORDINATOR,
    ),
    Mutant(
        "a higher term is not persisted",
        "election.py",
        '            self._context.persist(generation=ballot[0], term=ballot[1], voted_for="")',
        '            self._context.remember(generation=ballot[0], term=ballot[1], voted_for="")',
        _ONE_COORDINATOR,
    ),
    Mutant(
        "a higher term keeps the old vote",
        "election.py",
        'self._context.persist(generation=ballot[0], term=ballot[1], voted_for="")',
        "self._context.persist(generation=ballot[0], term=ballot[1])",
        _FAILOVER,
    ),
    Mutant(
        "a vote of an old term is counted",
        "election.py",
        'elif self.role == "candidate" and ballot == (generation, term):',
        'elif self.role == "candidate":',
        _ONE_COORDINATOR,
    ),
    Mutant(
        "a pre-vote counts as a vote",
        "election.py",
        "        if response.pre_vote:\n            if self.role",
        "        if response.pre_vote and self.role == 'pre_candidate':\n            if self.role",
        _ONE_COORDINATOR,
    ),
    Mutant(
        "a vote goes to an older document",
        "election.py",
        "if request.document_version < context.state.document_version:",
        "if False:",
        _NOT_LOST,
    ),
    Mutant(
        "a vote request of an old term is granted",
        "election.py",
        '            if ballot < context.state.ballot:\n                return f"already',
        '            if ballot < (0, 0):\n                return f"already',
        _ONE_COORDINATOR,
    ),
    Mutant(
        "stickiness is dropped",
        "election.py",
        "if self.hears_coordinator and sender != self.coordinator_id and not is_transfer:",
        "if False:",
        "a node that was cut off disturbs nobody",
    ),
    Mutant(
        "a coordinator of an old term is followed",
        "election.py",
        '        if ballot < context.state.ballot:\n            return f"term',
        '        if ballot < (0, 0):\n            return f"term',
        _ONE_COORDINATOR + "; " + _ONE_PLAN,
    ),
    Mutant(
        "nobody campaigns again",
        "election.py",
        "            self._retry_soon()\n            generation, term",
        "            self.deadline = None\n            generation, term",
        _LIVENESS,
    ),
    Mutant(
        "the lease is not checked",
        "machine.py",
        "if self._coordinator is not None and not self._coordinator.has_lease():",
        "if False:",
        "a coordinator without a quorum steps down",
    ),
    Mutant(
        "the lease counts only the coordinator itself",
        "coordinator.py",
        "if lease_at is not None and lease_at >= oldest:",
        "if False:",
        _LIVENESS,
    ),
    Mutant(
        "a version is committed by one more than hold it",
        "coordinator.py",
        "if not outweighs(self._votes, holders | {self._context.node_id}):",
        "if not holders:",
        _NOT_LOST,
    ),
    Mutant(
        "a version counts as stored where an older one is",
        "coordinator.py",
        "self.watch.tracks[node_id].stored == document.version\n",
        "self.watch.tracks[node_id].stored is not None\n",
        _NOT_LOST,
    ),
    Mutant(
        "the first version of a term is not written",
        "coordinator.py",
        "        self._write(self.document)\n",
        "        pass\n",
        "a term commits a version of its own first: " + _NOT_LOST,
    ),
    Mutant(
        "answers of an earlier term count",
        "coordinator.py",
        "if (response.generation, response.term) != self._context.state.ballot:",
        "if False:",
        _NOT_LOST,
    ),
    Mutant(
        "a document of another term is stored",
        "replica.py",
        "and document.version[:2] == ballot",
        "and document is not None",
        _NOT_LOST,
    ),
    Mutant(
        "an older document is stored",
        "replica.py",
        "and document.version > self._context.state.document_version",
        "and document.version != self._context.state.document_version",
        _NOT_LOST,
    ),
    Mutant(
        "the document is not persisted",
        "replica.py",
        "        self._context.persist(document=document)",
        "        self._context.remember(document=document)",
        _NOT_LOST,
    ),
    Mutant(
        "a commit goes back",
        "replica.py",
        "if version <= state.commit_version:",
        "if version == state.commit_version:",
        _NOT_LOST,
    ),
    Mutant(
        "the promise is not persisted",
        "replica.py",
        "self._context.persist(promised=epoch, promised_plan=check.plan)",
        "self._context.remember(promised=epoch, promised_plan=check.plan)",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "an epoch below the promise is promised",
        "replica.py",
        "if promised is not None and epoch < promised:",
        "if False:",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "another plan is promised under the same epoch",
        "replica.py",
        "if epoch == promised and plan != self._context.state.promised_plan:",
        "if False:",
        _ONE_PLAN,
    ),
    Mutant(
        "a check that ends after its term still promises",
        "replica.py",
        "elif self._context.state.ballot != check.ballot:",
        "elif False:",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "a commit below the active epoch is done",
        "replica.py",
        "if epoch == state.promised and plan is not None and is_newest:",
        "if plan is not None:",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "a commit older than the committed plan is done",
        "replica.py",
        "for known in (state.active, committed))",
        "for known in (state.active,))",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "a node outside the new plan keeps its worker",
        "replica.py",
        "self.committed = known\n        self._release()",
        "self.committed = known",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "peers of an inactive epoch are handed on",
        "replica.py",
        "if request.epoch is None or request.epoch != self._context.state.active:",
        "if False:",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "the active epoch is not persisted",
        "worker_slot.py",
        "self._context.persist(active=plan.epoch, active_plan=plan)",
        "self._context.remember(active=plan.epoch, active_plan=plan)",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "a new worker does not wait for the end of the old one",
        "worker_slot.py",
        "        if self._running is None:\n            self._finish()\n        elif",
        "        if True:\n            self._finish()\n        elif",
        _ONE_WORKER,
    ),
    Mutant(
        "a late end of an older worker frees the slot",
        "worker_slot.py",
        "        if epoch != self._running:\n            return",
        "        pass",
        _ONE_WORKER,
    ),
    Mutant(
        "a commit that was overtaken is done",
        "worker_slot.py",
        "if mine is not None and plan.epoch != state.promised:",
        "if False:",
        _NO_OLD_EPOCH,
    ),
    Mutant(
        "epochs are numbered from one in each plan",
        "coordinator.py",
        "        self._plan_seq += 1",
        "        self._plan_seq = 1",
        _ONE_PLAN,
    ),
    Mutant(
        "a plan is stored before all have promised it",
        "planning.py",
        "        elif not missing:",
        "        elif len(missing) < len(attempt.plan.node_ids):",
        "PREPARE from all members before COMMIT",
    ),
    Mutant(
        "a computed plan is taken for another wish",
        "planning.py",
        "attempt.wanted != document.wanted or attempt.is_optional != is_optional",
        "attempt.is_optional != is_optional",
        _ENDS_ONCE,
    ),
    Mutant(
        "a dead member is no problem of its plan",
        "rollout.py",
        'if verdict in GONE or (verdict == "cut" and not self.is_ready):',
        "if False:",
        _LIVENESS,
    ),
    Mutant(
        "a restarted daemon's lost worker is no problem",
        "rollout.py",
        'return Problem(f"the worker of {node_id} is gone: its daemon was started anew")',
        "return None",
        _LIVENESS,
    ),
    Mutant(
        "open changes are forgotten at a step-down",
        "coordinator.py",
        "        self.changes.abandon()",
        "        pass",
        _ENDS_ONCE,
    ),
    Mutant(
        "a superseded change is forgotten",
        "changes.py",
        '        self.reject("SUPERSEDED", "a later change took its place")\n',
        "",
        _ENDS_ONCE,
    ),
    Mutant(
        "a superseded PREPARE is not answered",
        "replica.py",
        'self._check.request_ids, self._check.epoch, "superseded by a newer PREPARE"',
        '[], self._check.epoch, "superseded by a newer PREPARE"',
        _ENDS_ONCE,
    ),
    Mutant(
        "an evicted node is answered",
        "machine.py",
        "if is_double or self._is_denied(event.sender):",
        "if is_double:",
        _DENIED,
    ),
    Mutant(
        "an evicted member is not denied",
        "evictions.py",
        "                del members[node_id]\n                denied.add(node_id)",
        "                del members[node_id]",
        _DENIED,
    ),
    Mutant(
        "a node alone does not count its plans durably",
        "standalone.py",
        "self._context.persist(local_seq=",
        "self._context.remember(local_seq=",
        _STANDALONE,
    ),
    Mutant(
        "a node goes on alone beside a coordinator",
        "standalone.py",
        "if self._election.hears_coordinator or not self._may_begin():",
        "if not self._may_begin():",
        _STANDALONE,
    ),
    Mutant(
        "a recovery keeps the generation",
        "generations.py",
        "return (recovery_count(generation) + 1) << _DRAWN_BITS | int.from_bytes(drawn)",
        "return generation",
        "a recovery fences everything before it",
    ),
    Mutant(
        "a recovery keeps the mark that its own node is to go",
        "generations.py",
        "evicting=member.evicting and member.node_id != node_id",
        "evicting=member.evicting",
        _LIVENESS,
    ),
    Mutant(
        "a recovery keeps all voters",
        "generations.py",
        "voter=member.node_id == node_id,",
        "voter=member.voter,",
        "a recovered node goes on alone",
    ),
    Mutant(
        "a recovered term is not persisted",
        "recovery.py",
        '            context.persist(generation=generation, term=0, voted_for="")\n',
        "",
        "a recovery fences everything before it",
    ),
    Mutant(
        "everybody comes alive only once",
        "tracker.py",
        "        self.contact_at = now\n",
        "        self.contact_at = self.contact_at or now\n",
        _LIVENESS,
    ),
    Mutant(
        "an answer from before the goodbye takes it back",
        "tracker.py",
        "elif self.left_at is not None and sent_at > self.left_at:",
        "elif self.left_at is not None:",
        "a node that left is not planned for",
    ),
    Mutant(
        "a goodbye that was taken back waits for a quorum",
        "coordinator.py",
        "if heard or not self.watch.has_left(peer) or not self.watch.may_answer(peer):",
        "if heard or not self.watch.may_answer(peer):",
        _ENDS_ONCE,
    ),
    Mutant(
        "the office goes to one that lacks the newest document",
        "transfer.py",
        "if tracks[member.node_id].stored == version]",
        "if True]",
        "a leave hands over in milliseconds",
    ),
    Mutant(
        "a voter comes in though those that answer are no quorum then",
        "quorum.py",
        "return grown if viable(grown) else document",
        "return grown",
        _LIVENESS,
    ),
    Mutant(
        "a lease once held is held for ever",
        "coordinator.py",
        "if self._lease_floor is not None and self._lease_floor >= oldest:",
        "if self._lease_floor is not None:",
        "a coordinator without a quorum steps down",
    ),
    Mutant(
        "what a member tells of its machine is no news",
        "coordinator.py",
        "        elif self._has_no_news(document):",
        "        else:",
        "the document says where and what the members are",
    ),
    Mutant(
        "weights once right stay right whoever falls silent",
        "coordinator.py",
        "if all_there and document is self._balanced:",
        "if document is self._balanced:",
        _FAILOVER,
    ),
    Mutant(
        "gathered news waits for the next beat",
        "coordinator.py",
        "if self._is_touched and self._is_gathering:",
        "if False:",
        "a large cluster decides within milliseconds",
    ),
    Mutant(
        "every look into a large cluster is a full one",
        "coordinator.py",
        "return len(self.watch.tracks) > _GATHER_ABOVE_MEMBERS",
        "return False",
        "a thousand nodes are led",
    ),
    Mutant(
        "a slept coordinator keeps its office",
        "machine.py",
        "                    self._election.woke_up()\n",
        "",
        "a sleeper fences itself first",
    ),
    Mutant(
        "one stray reset is a death",
        "tracker.py",
        "return self.refused_until - self.refused_since >= seconds",
        "return True",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "refusals add up over answers",
        "tracker.py",
        "        self.refused_since = self.refused_until = None\n",
        "",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "a refusal older than the last answer counts",
        "tracker.py",
        "if self.lease_at is None or sent_at <= self.lease_at:",
        "if self.lease_at is None:",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "a member whose daemon has not started yet is dead at once",
        "tracker.py",
        "if self.lease_at is None or sent_at <= self.lease_at:",
        "if self.lease_at is not None and sent_at <= self.lease_at:",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "who refuses the coordinator only is dead",
        "tracker.py",
        "if self.reached_at is not None and self.reached_at >= self.refused_since:",
        "if False:",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "silence is a refusal",
        "watch.py",
        'if kind != "refused":',
        'if kind == "lost":',
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "a refusal is mere silence",
        "watch.py",
        'if kind != "refused":',
        "if True:",
        "a killed member is dead within a second",
    ),
    Mutant(
        "a lost connection is no reason to ask",
        "coordinator.py",
        "            self._heartbeats.send_to(peer, track)\n",
        "",
        "a killed member is suspect at once",
    ),
    Mutant(
        "a lost connection is asked about without end",
        "coordinator.py",
        "if track.hurried_at is None or now - track.hurried_at >= _HURRY_SECONDS:",
        "if True:",
        "what a sick member costs is bounded",
    ),
    Mutant(
        "time-outs of most raise no doubt",
        "watch.py",
        "or (track.timed_out_at is not None and now - track.timed_out_at <= limit)",
        "or False",
        _NO_FALSE_DEATH,
    ),
    Mutant(
        "a drained node is planned",
        "watch.py",
        "if member is not None and member.draining:",
        "if False:",
        _DRAINED,
    ),
    Mutant(
        "a plan with a node that was drained meanwhile is stored",
        "planning.py",
        "if m.evicting or m.draining}",
        "if m.evicting}",
        _DRAINED,
    ),
    Mutant(
        "a new coordinator forgets the drains",
        "coordinator.py",
        "by that alone (Ongaro 2014, section 3.6.2).\n        self._write(self.document)",
        "by that alone.\n        members = [dataclasses.replace(m, draining=False) for m in self.document.members]\n"
        "        self._write(dataclasses.replace(self.document, members=tuple(members)))",
        _DRAINED,
    ),
    Mutant(
        "a drained coordinator moves the plan before it hands over",
        "planning.py",
        "if self._coordinator.is_going:",
        "if False:",
        "a drained coordinator hands over first",
    ),
    Mutant(
        "a drain is stored whatever the planner says",
        "drains.py",
        "is_planned = document.plan is not None and ask.node_id in document.plan.node_ids",
        "is_planned = False",
        "a drain that leaves too little changes nothing",
    ),
    Mutant(
        "a plan is moved for any gain",
        "rebalance.py",
        "if gain >= least:",
        "if gain > 0:",
        "no stream is interrupted for nothing",
    ),
    Mutant(
        "a node that is back waits for the next ask",
        "planning.py",
        "return is_due or bool({n for n, _ in means} - {n for n, _ in refusal.means})",
        "return is_due and self._hold_down.is_over(now)",
        _LIVENESS,
    ),
)

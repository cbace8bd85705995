"""A member promises, commits and runs one worker at a time."""

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    CommitRequest,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    PeerAddress,
    Plan,
    PrepareRequest,
    PrepareResponse,
    SetPeersRequest,
    SetPeersResponse,
    WorkerReport,
    WorkerState,
)
from simulator.parts import split, wanted_model
from simulator.solo import Solo, beat, document, kinds, only, stored

WANTED = wanted_model()


def plan(term: int, seq: int, names: str = "abc") -> Plan:
    return Plan(
        Epoch(1, term, seq), (split(WANTED, list(names)),) if names else (), WANTED if names else None
    )


def prepare(term: int, seq: int, *, by: int | None = None) -> PrepareRequest:
    return PrepareRequest(by or term, plan(term, seq), 1)


def commit(term: int, seq: int, *, by: int | None = None) -> CommitRequest:
    return CommitRequest(by or term, Epoch(1, term, seq), 1)


def checked(term: int, seq: int, *, ok: bool = True) -> ev.PrepareChecked:
    return ev.PrepareChecked(Epoch(1, term, seq), ok, "" if ok else "no room")


def running(seq: int = 1) -> Solo:
    """Node b runs its stage of epoch 1.1.1."""
    node = Solo(stored())
    node.ask("a", prepare(1, seq))
    node.step(checked(1, seq))
    node.ask("a", commit(1, seq))
    node.step(ev.WorkerReported(WorkerReport(Epoch(1, 1, seq), 1, WorkerState.READY)))
    return node


def with_plan(seq: int, the_plan: Plan) -> ClusterDocument:
    return ClusterDocument(1, 1, seq, document().members, the_plan, the_plan.wanted, document().policy)


def test_a_promise_is_checked_then_durable_then_told() -> None:
    node = Solo(stored())

    assert kinds(node.ask("a", prepare(1, 1))) == ["CheckPrepare"]
    effects = node.step(checked(1, 1))
    assert kinds(effects) == ["Persist", "Reply"]
    assert node.state.promised == Epoch(1, 1, 1)
    assert only(effects, fx.Reply)[0].message == PrepareResponse(Epoch(1, 1, 1), True, "", 1, 1)  # noqa: FBT003


def test_a_failed_check_promises_nothing_and_says_why() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    effects = node.step(checked(1, 1, ok=False))

    assert kinds(effects) == ["Reply"]
    message = only(effects, fx.Reply)[0].message
    assert isinstance(message, PrepareResponse)
    assert (message.promised, message.reason) == (False, "no room")


def test_an_epoch_below_the_promise_is_refused_even_after_a_reboot() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 5))
    node.step(checked(1, 5))

    for one in (node, node.reboot()):
        response = one.answer("a", prepare(1, 4))
        assert isinstance(response, PrepareResponse)
        assert not response.promised
        assert one.state.promised == Epoch(1, 1, 5)


def test_a_promise_is_given_again_without_a_second_check() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))
    effects = node.ask("a", prepare(1, 1))

    assert kinds(effects) == ["Reply"]


def test_another_plan_under_a_promised_epoch_is_refused() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))
    response = node.answer("a", PrepareRequest(1, plan(1, 1, "ab"), 1))

    assert isinstance(response, PrepareResponse)
    assert not response.promised


def test_a_prepare_of_an_old_term_or_above_its_term_is_refused() -> None:
    node = Solo(stored())
    node.answer("c", beat(3))
    for request in (prepare(2, 1), prepare(4, 1, by=3)):
        response = node.answer("c", request)
        assert isinstance(response, PrepareResponse)
        assert not response.promised
    assert node.state.promised is None


def test_a_check_that_ends_after_its_term_promises_nothing() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.answer("c", beat(2))
    (reply,) = only(node.step(checked(1, 1)), fx.Reply)

    assert isinstance(reply.message, PrepareResponse)
    assert not reply.message.promised
    assert node.state.promised is None


def test_a_newer_prepare_supersedes_one_that_is_checked_and_both_are_answered() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.ask("a", prepare(1, 1))
    first = only(node.ask("a", prepare(1, 2)), fx.Reply)
    second = only(node.step(checked(1, 2)), fx.Reply)

    assert [r.request_id for r in first + second] == [1, 2, 3]
    assert [r.message.promised for r in first + second if isinstance(r.message, PrepareResponse)] == [
        False,
        False,
        True,
    ]
    assert node.step(checked(1, 1)) == []


def test_a_commit_starts_the_worker_once_the_epoch_is_durably_active() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))
    effects = node.ask("a", commit(1, 1))

    assert kinds(effects) == ["Persist", "StartWorker", "Reply"]
    assert node.state.active == Epoch(1, 1, 1)


def test_a_commit_of_what_is_not_promised_is_refused() -> None:
    node = running()
    for request in (commit(1, 2), commit(1, 0)):
        response = node.answer("a", request)
        assert isinstance(response, CommitResponse)
        assert not response.committed
    node.ask("a", prepare(1, 3))
    node.step(checked(1, 3))
    response = node.answer("a", commit(1, 2))
    assert isinstance(response, CommitResponse)
    assert not response.committed
    assert node.state.active == Epoch(1, 1, 1)


def test_a_commit_of_an_old_term_is_refused() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))
    node.answer("c", beat(2))
    response = node.answer("a", commit(1, 1))

    assert isinstance(response, CommitResponse)
    assert not response.committed
    assert node.state.active is None


def test_the_new_coordinator_may_commit_the_promised_epoch_of_the_old_one() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))

    assert "StartWorker" in kinds(node.ask("c", commit(1, 1, by=2)))


def test_a_repeated_commit_is_answered_and_starts_nothing() -> None:
    effects = running().ask("a", commit(1, 1))

    assert kinds(effects) == ["Reply"]
    message = only(effects, fx.Reply)[0].message
    assert isinstance(message, CommitResponse)
    assert message.committed


def test_the_old_worker_is_gone_before_the_new_epoch_is_active() -> None:
    node = running()
    node.ask("a", prepare(1, 2))
    assert kinds(node.step(checked(1, 2))) == ["Persist", "Reply"], "a promise stops nothing"

    assert kinds(node.ask("a", commit(1, 2))) == ["StopWorker"]
    assert kinds(node.ask("a", commit(1, 2))) == [], "a second COMMIT waits with the first"
    assert node.state.active == Epoch(1, 1, 1)
    effects = node.step(ev.WorkerStopped(Epoch(1, 1, 1)))
    assert kinds(effects) == ["Persist", "StartWorker", "Reply", "Reply"]
    assert only(effects, fx.StartWorker)[0].epoch == Epoch(1, 1, 2)


def test_a_promise_made_while_the_old_worker_stops_ends_the_commit() -> None:
    node = running()
    node.ask("a", prepare(1, 2))
    node.step(checked(1, 2))
    node.ask("a", commit(1, 2))
    node.ask("a", prepare(1, 3))
    node.step(checked(1, 3))
    effects = node.step(ev.WorkerStopped(Epoch(1, 1, 1)))

    assert kinds(effects) == ["Reply"]
    assert node.state.active == Epoch(1, 1, 1)
    assert "StartWorker" in kinds(node.ask("a", commit(1, 3)))


def test_a_worker_that_is_being_replaced_is_not_listened_to() -> None:
    node = running()
    node.ask("a", prepare(1, 2))
    node.step(checked(1, 2))
    node.ask("a", commit(1, 2))
    node.step(ev.WorkerReported(WorkerReport(Epoch(1, 1, 1), 1, WorkerState.FAILED)))
    node.step(ev.WorkerStopped(Epoch(1, 1, 1)))
    node.step(ev.WorkerReported(WorkerReport(Epoch(1, 1, 1), 1, WorkerState.FAILED)))

    assert node.machine.view.workers["b"] == WorkerReport(Epoch(1, 1, 2), 1, WorkerState.STARTING)


def test_a_failed_worker_too_is_stopped_before_the_next() -> None:
    node = running()
    node.step(ev.WorkerReported(WorkerReport(Epoch(1, 1, 1), 1, WorkerState.FAILED)))
    node.ask("a", prepare(1, 2))
    node.step(checked(1, 2))

    assert kinds(node.ask("a", commit(1, 2))) == ["StopWorker"]


def test_a_worker_that_ends_unasked_is_reported_as_stopped() -> None:
    node = running()
    node.step(ev.WorkerStopped(Epoch(1, 1, 1)))
    response = node.answer("a", beat())

    assert isinstance(response, HeartbeatResponse)
    assert response.worker is not None
    assert response.worker.state is WorkerState.STOPPED


def test_a_reboot_reports_the_active_epoch_and_no_worker() -> None:
    response = running().reboot().answer("a", beat())

    assert isinstance(response, HeartbeatResponse)
    assert response.active == Epoch(1, 1, 1)
    assert response.worker is None


def test_a_committed_plan_without_this_node_frees_its_worker() -> None:
    node = running()
    doc = with_plan(2, plan(1, 2, "ac"))
    assert "StopWorker" not in kinds(node.ask("a", beat(1, doc))), "stored is not committed"
    effects = node.ask("a", HeartbeatRequest(1, 1, 2, None, 1, 2, 1))
    assert "StopWorker" in kinds(effects)
    node.step(ev.WorkerStopped(Epoch(1, 1, 1)))

    assert node.state.active == Epoch(1, 1, 2)
    late = node.answer("a", commit(1, 1))
    assert isinstance(late, CommitResponse)
    assert not late.committed


def test_a_committed_plan_older_than_the_active_one_frees_nothing() -> None:
    node = running(seq=2)
    effects = node.ask("a", HeartbeatRequest(1, 1, 1, with_plan(2, plan(1, 1, "ac")), 1, 2, 1))

    assert "StopWorker" not in kinds(effects)


def test_the_end_of_a_worker_that_is_long_gone_changes_nothing() -> None:
    node = running(seq=2)
    assert node.step(ev.WorkerStopped(Epoch(1, 1, 1))) == []

    assert node.machine.view.workers["b"].state is WorkerState.READY


def test_a_commit_that_a_committed_plan_has_overtaken_is_refused() -> None:
    node = Solo(stored())
    node.ask("a", prepare(1, 1))
    node.step(checked(1, 1))
    node.ask("a", HeartbeatRequest(1, 1, 1, with_plan(2, plan(1, 2, "ac")), 1, 2, 1))
    response = node.answer("a", commit(1, 1))

    assert isinstance(response, CommitResponse)
    assert not response.committed


def test_documents_are_stored_before_they_are_acknowledged_and_never_go_back() -> None:
    node = Solo(stored())
    newer, older = document(seq=3), document(seq=2)
    effects = node.ask("a", beat(1, newer))
    assert kinds(effects) == ["Persist", "Reply"]
    assert only(effects, fx.Persist)[0].state.document == newer
    response = node.answer("a", beat(1, older))

    assert isinstance(response, HeartbeatResponse)
    assert response.document_version == (1, 1, 3)


def test_a_document_that_is_not_of_its_senders_term_is_not_stored() -> None:
    node = Solo(stored())
    node.ask("a", beat(2, document(term=9)))

    assert node.state.document_version == (1, 1, 1)


def test_a_stored_document_counts_as_committed_only_when_told() -> None:
    node = Solo(stored())
    node.ask("a", beat(1, document(seq=2)))
    assert node.machine.view.document is None
    node.ask("a", HeartbeatRequest(1, 1, 2, None, 1, 2, 1))
    assert node.machine.view.document == document(seq=2)
    node.ask("a", beat(1, document(seq=3)))

    assert node.machine.view.document == document(seq=2)
    assert node.machine.view.stored_document == document(seq=3)


def test_peers_reach_the_worker_of_the_active_epoch_once() -> None:
    node = running()
    peers = SetPeersRequest(1, Epoch(1, 1, 1), (PeerAddress(0, "a", "h:1", "h:2"),), b"k" * 32, 1)
    effects = node.ask("a", peers)
    assert kinds(effects) == ["GivePeers", "Reply"]
    assert kinds(node.ask("a", peers)) == ["Reply"]
    wrong = node.answer("a", SetPeersRequest(1, Epoch(1, 1, 2), peers.peers, peers.epoch_key, 1))

    assert isinstance(wrong, SetPeersResponse)
    assert not wrong.accepted


def test_peers_are_refused_where_no_worker_can_take_them() -> None:
    node = running()
    node.step(ev.WorkerReported(WorkerReport(Epoch(1, 1, 1), 1, WorkerState.FAILED)))
    response = node.answer("a", SetPeersRequest(1, Epoch(1, 1, 1), (), b"k" * 32, 1))

    assert isinstance(response, SetPeersResponse)
    assert not response.accepted


def test_the_key_does_not_show_in_logs() -> None:
    assert "secret" not in repr(SetPeersRequest(epoch_key=b"secret"))
    assert "secret" not in repr(fx.GivePeers(SetPeersRequest(epoch_key=b"secret")))

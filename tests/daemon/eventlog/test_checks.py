"""The offline checker passes on recorded runs, and fails on each of them once it is doctored."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from macmesh_daemon import eventcheck
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.eventlog.checks import check
from macmesh_daemon.eventlog.reader import read_logs
from macmesh_daemon.eventlog.records import Kind, Record
from support.requests import serve_requests, take_up_request
from support.virtual_loop import run_virtual
from support.virtual_mesh import VirtualMesh, wanted_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Records = list[Record]


def _other(stages: int, change_id: int) -> ev.LoadWanted:
    return ev.LoadWanted(change_id, wanted_model("other", stages))


async def _run(folder: Path) -> None:
    async with VirtualMesh(folder, 3) as mesh:
        first = await mesh.led()
        await mesh.until(lambda: first.member_count == 3, "all are members")
        assert isinstance(await first.change(lambda i: ev.LoadWanted(i, wanted_model("m", 3))), Epoch)
        await mesh.until(mesh.is_ready, "ready")
        head = next(n for n in mesh.nodes if n.node_id == first.plan_nodes[0])
        await serve_requests(head)
        await first.crash()
        second = await mesh.led()
        first.start()
        await mesh.until(lambda: len(mesh.up) == 3 and mesh.leader() is not None, "together again")
        # The second of these finds processes that hold the model already.
        for stages in (2, 3):
            again = await second.change(partial(_other, stages))
            assert isinstance(again, Epoch)
            await mesh.until(mesh.is_ready, "ready again")
        head = next(n for n in mesh.nodes if n.node_id == second.plan_nodes[0])
        await serve_requests(head, "later")
        # The client of the one that was left at its seventh token had missed the last two of them.
        await take_up_request(head, "request-1", brought=5, attempt=1)
        await asyncio.sleep(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of three nodes with all that the checks look at: failover, plans, kept processes, requests."""
    folder = tmp_path_factory.mktemp("recorded")
    run_virtual(_run(folder))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def recorded(folders: list[Path]) -> Records:
    return list(read_logs(folders))


def _changed(records: Records, target: Record, **facts: Any) -> Records:
    """The records, but one with other facts."""
    other = dataclasses.replace(target, facts={**target.facts, **facts})
    return [other if record is target else record for record in records]


def _of(records: Records, kind: Kind, nth: int = 0) -> Record:
    return [record for record in records if record.kind == kind][nth]


def _inserted(records: Records, after: Record, kind: Kind, **facts: Any) -> Records:
    """The records with one more of the same run behind one of them; all later ones move up."""
    made = []
    for record in records:
        later = (record.node, record.incarnation) == (
            after.node,
            after.incarnation,
        ) and record.seq > after.seq
        made.append(dataclasses.replace(record, seq=record.seq + 1) if later else record)
    return [*made, dataclasses.replace(after, seq=after.seq + 1, kind=kind, facts=facts)]


def _removed(records: Records, target: Record) -> Records:
    """The records without one, and no trace of it: all later ones move down."""
    made = []
    for record in records:
        later = (record.node, record.incarnation) == (
            target.node,
            target.incarnation,
        ) and record.seq > target.seq
        if record is not target:
            made.append(dataclasses.replace(record, seq=record.seq - 1) if later else record)
    return made


def second_coordinator(records: Records) -> Records:
    leads = _of(records, Kind.LEADS)
    stranger = next(r for r in records if r.node != leads.node and r.kind == Kind.BALLOT)
    return _inserted(records, stranger, Kind.LEADS, **leads.facts)


def second_vote(records: Records) -> Records:
    ballot = next(r for r in records if r.kind == Kind.BALLOT and r.facts["voted_for"])
    return _inserted(records, ballot, Kind.BALLOT, ballot=ballot.facts["ballot"], voted_for="somebody else")


def forgotten_term(records: Records) -> Records:
    restarted = next(r for r in records if r.kind == Kind.STARTED and r.incarnation == 2)
    return _changed(records, restarted, ballot=[0, 0])


def second_plan(records: Records) -> Records:
    return _changed(records, _of(records, Kind.PROMISED, 1), plan="another")


def second_worker(records: Records) -> Records:
    return _removed(records, _of(records, Kind.WORKER_RESTS))


def second_process(records: Records) -> Records:
    kept = next(r for r in records if r.kind == Kind.WORKER_RUNS and r.facts["process"] == "kept")
    return _changed(records, kept, pid=kept.facts["pid"] + 1)


def kept_without_rest(records: Records) -> Records:
    rests = _of(records, Kind.WORKER_RESTS)
    stopped = dataclasses.replace(rests, kind=Kind.WORKER_STOPPED, facts={"epoch": rests.facts["epoch"]})
    return [stopped if record is rests else record for record in records]


def served_at_rest(records: Records) -> Records:
    rests = next(r for r in records if r.kind == Kind.WORKER_RESTS)
    return _inserted(records, rests, Kind.RUN_STARTED, request="late", epoch=rests.facts["epoch"])


def rest_outlives_daemon(records: Records) -> Records:
    ended = _of(records, Kind.ENDED)
    mine = [r for r in records if (r.node, r.incarnation) == (ended.node, ended.incarnation)]
    last = [r for r in mine if r.kind in {Kind.WORKER_STARTED, Kind.WORKER_STOPPED}][-1]
    runs = [r for r in mine if r.kind == Kind.WORKER_RUNS][-1]
    rests = dataclasses.replace(
        last, kind=Kind.WORKER_RESTS, facts={"epoch": last.facts["epoch"], "pid": runs.facts["pid"]}
    )
    return [rests if record is last else record for record in records]


def worker_outlives_daemon(records: Records) -> Records:
    ended = _of(records, Kind.ENDED)
    mine = [r for r in records if (r.node, r.incarnation) == (ended.node, ended.incarnation)]
    last = [r for r in mine if r.kind in {Kind.WORKER_STARTED, Kind.WORKER_STOPPED}][-1]
    assert last.kind == Kind.WORKER_STOPPED
    return _removed(records, last)


def worker_of_another_epoch(records: Records) -> Records:
    started = _of(records, Kind.WORKER_STARTED)
    return _changed(records, started, epoch=[*started.facts["epoch"][:2], 99])


def old_epoch_comes_back(records: Records) -> Records:
    first = _of(records, Kind.WORKER_STARTED)
    mine = [r for r in records if r.node == first.node and r.kind == Kind.WORKER_STARTED]
    assert len(mine) > 1
    return _changed(records, mine[-1], epoch=first.facts["epoch"])


def promise_not_durable(records: Records) -> Records:
    answer = next(r for r in records if r.kind == Kind.PREPARE_ANSWERED and r.facts["ok"])
    promised = next(
        r
        for r in records
        if r.kind == Kind.PROMISED and r.node == answer.node and r.facts["epoch"] == answer.facts["epoch"]
    )
    return _removed(records, promised)


def request_of_an_older_epoch(records: Records) -> Records:
    started = _of(records, Kind.RUN_STARTED)
    return _changed(records, started, epoch=[1, 0, 1])


def lost_document(records: Records) -> Records:
    return _changed(records, _of(records, Kind.LEADS, -1), stored=[1, 0, 1])


def two_documents(records: Records) -> Records:
    return _changed(records, _of(records, Kind.COMMITTED, -1), document="another")


def lost_member(records: Records) -> Records:
    last = max((r for r in records if r.kind == Kind.COMMITTED), key=lambda r: r.facts["version"])
    doctored = records
    for record in records:
        if record.kind == Kind.COMMITTED and record.facts["version"] == last.facts["version"]:
            doctored = _changed(doctored, record, members=record.facts["members"][1:])
    return doctored


def token_twice(records: Records) -> Records:
    delivered = _of(records, Kind.DELIVERED)
    return _inserted(records, delivered, Kind.DELIVERED, **delivered.facts)


def token_left_out(records: Records) -> Records:
    return _changed(records, _of(records, Kind.DELIVERED), index=1)


def ended_twice(records: Records) -> Records:
    finished = _of(records, Kind.FINISHED)
    facts = {
        "request": finished.facts["request"],
        "tokens": finished.facts["tokens"],
        "reason": "WORKER_FAILED",
    }
    return _inserted(records, finished, Kind.FAILED, **facts)


def never_ended(records: Records) -> Records:
    ended = {(r.node, r.incarnation) for r in records if r.kind == Kind.ENDED}
    return _removed(
        records, next(r for r in records if r.kind == Kind.CANCELLED and (r.node, r.incarnation) in ended)
    )


def _taken_up(records: Records) -> Record:
    return next(r for r in records if r.kind == Kind.ACCEPTED and r.facts["attempt"])


def more_brought_than_delivered(records: Records) -> Records:
    """A token that was delivered before it was on record, or never."""
    doctored = records
    accepted = _taken_up(records)
    for record in records:
        if (record.node, record.incarnation) != (accepted.node, accepted.incarnation):
            continue
        if record is accepted:
            doctored = _changed(doctored, record, resumed_from=8)
        elif record.seq > accepted.seq and record.kind == Kind.RUN_ASKED:
            doctored = _changed(doctored, record, first=8)
        elif record.seq > accepted.seq and record.kind == Kind.DELIVERED:
            doctored = _changed(doctored, record, index=8, count=32)
    return doctored


def taken_up_with_fewer_tokens(records: Records) -> Records:
    accepted = _taken_up(records)
    ended = next(r for r in records if r.kind == Kind.FINISHED and r.facts["request"] == "request-1")
    facts = {**accepted.facts, "attempt": 2, "resumed_from": 2}
    doctored = _inserted(records, ended, Kind.ACCEPTED, **facts)
    last = next(r for r in doctored if r.kind == Kind.ACCEPTED and r.facts["attempt"] == 2)
    return _inserted(doctored, last, Kind.CANCELLED, request="request-1", tokens=2)


def accepted_twice(records: Records) -> Records:
    return _changed(records, _taken_up(records), attempt=0)


def repeated_behind_what_was_brought(records: Records) -> Records:
    accepted = _taken_up(records)
    delivered = next(
        r
        for r in records
        if r.kind == Kind.DELIVERED
        and r.node == accepted.node
        and r.facts["request"] == "request-1"
        and r.facts["index"] == 5
    )
    return _changed(records, delivered, index=4, count=36)


def run_from_the_wrong_token(records: Records) -> Records:
    again = next(r for r in records if r.kind == Kind.RUN_ASKED and r.facts["run"] == 2)
    return _changed(records, again, first=69)


def run_beside_a_run(records: Records) -> Records:
    return _removed(records, _of(records, Kind.RUN_LOST))


def token_of_a_lost_run(records: Records) -> Records:
    lost = _of(records, Kind.RUN_LOST)
    delivered = next(
        r
        for r in records
        if r.kind == Kind.DELIVERED and r.facts["request"] == lost.facts["request"] and r.facts["index"] == 70
    )
    mine = _inserted(records, lost, Kind.DELIVERED, request=lost.facts["request"], index=70, count=1)
    moved = next(r for r in mine if r.facts == delivered.facts and r.kind == Kind.DELIVERED)
    return _changed(mine, moved, index=71, count=delivered.facts["count"] - 1)


def run_of_an_older_epoch(records: Records) -> Records:
    again = next(r for r in records if r.kind == Kind.RUN_ASKED and r.facts["run"] == 2)
    return _changed(records, again, epoch=[1, 0, 1])


@pytest.mark.parametrize(
    ("invariant", "doctor"),
    [
        (1, second_coordinator),
        (1, second_vote),
        (1, forgotten_term),
        (2, second_plan),
        (3, second_worker),
        (3, second_process),
        (3, kept_without_rest),
        (3, rest_outlives_daemon),
        (3, worker_outlives_daemon),
        (4, served_at_rest),
        (4, worker_of_another_epoch),
        (4, old_epoch_comes_back),
        (4, promise_not_durable),
        (4, request_of_an_older_epoch),
        (5, lost_document),
        (5, two_documents),
        (5, lost_member),
        (6, token_twice),
        (6, token_left_out),
        (6, ended_twice),
        (6, never_ended),
        (6, more_brought_than_delivered),
        (6, taken_up_with_fewer_tokens),
        (6, accepted_twice),
        (6, repeated_behind_what_was_brought),
        (6, run_from_the_wrong_token),
        (6, run_beside_a_run),
        (6, token_of_a_lost_run),
        (4, run_of_an_older_epoch),
    ],
)
def test_a_doctored_log_breaks_its_invariant(
    invariant: int, doctor: Callable[[Records], Records], recorded: Records
) -> None:
    verdict = check(doctor(recorded))
    assert invariant in {violation.invariant for violation in verdict.violations}, verdict
    assert not verdict.gaps
    shown = next(v for v in verdict.violations if v.invariant == invariant)
    assert shown.records
    assert all(record.name in str(shown) for record in shown.records)


def test_a_recorded_run_passes_and_has_everything_that_the_checks_look_at(recorded: Records) -> None:
    verdict = check(recorded)
    assert not verdict.violations, verdict.violations
    assert not verdict.gaps
    assert verdict.nodes == 3
    assert verdict.terms >= 2
    assert verdict.epochs >= 2
    assert verdict.requests == 6
    assert [r.facts["resumed_from"] for r in recorded if r.kind == Kind.ACCEPTED and r.facts["attempt"]] == [
        5
    ]
    assert check(reversed(recorded)) == verdict


def test_what_is_not_on_record_is_held_against_nobody(recorded: Records) -> None:
    for node in {record.node for record in recorded}:
        assert not check(r for r in recorded if r.node == node).violations
    # The oldest file was put aside too long ago; then, a killed daemon's last records.
    for kept in (recorded[len(recorded) // 3 :], [r for r in recorded if r.seq < 40 or r.incarnation > 1]):
        assert not check(kept).violations
    assert check(recorded[10:]).gaps


def test_the_command_names_the_records(
    folders: list[Path], tmp_path: Path, recorded: Records, capsys: Any
) -> None:
    assert eventcheck.main([str(folder) for folder in folders]) == 0
    assert "every invariant holds" in capsys.readouterr().out
    doctored = tmp_path / "doctored.jsonl"
    doctored.write_text("".join(f"{record.to_line()}\n" for record in token_twice(recorded)))
    assert eventcheck.main([str(doctored)]) == 1
    out = capsys.readouterr().out
    assert "invariant 6" in out
    assert f"{_of(recorded, Kind.DELIVERED).name}" in out
    assert eventcheck.main([str(tmp_path / "nothing")]) == 2

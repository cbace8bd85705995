"""The harness of the faults: what it makes of figures, failures and machines that permit nothing."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from faults import __main__ as runner
from faults.catalogue import GROUPS
from faults.cluster import Cluster, Node, announced
from faults.results import Figure, LocalOutcomeWrongError, Result, table
from macmesh_daemon.eventlog.reader import FILE_NAME, FOLDER_NAME
from macmesh_daemon.eventlog.records import Kind, Record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [(1.0, None, "ok"), (1.5, None, "slow"), (9.0, None, "slow"), (1.5, 1.2, "FAILED")],
)
def test_a_figure_is_held_against_its_target_and_its_limit(
    value: float, limit: float | None, verdict: str
) -> None:
    assert Figure("t", value, target=1.0, limit=limit).verdict == verdict
    assert Figure("t", value).verdict == ""


def test_a_figure_above_its_limit_fails_its_scenario_and_the_table_says_so() -> None:
    result = Result("link-cut", "links", figures=[Figure("plans", 9, "", target=4, limit=5)])
    result.settle()
    again = Result.from_json(json.loads(json.dumps(result.to_json())))
    assert again.outcome == "failed"
    assert "plans: 9.00" in again.reason
    assert "link-cut: failed" in table([again])
    assert "<= 4" in table([again])


def test_names_are_one_of_a_kind_and_every_scenario_says_what_it_does() -> None:
    names = [name for group in GROUPS.values() for name in (group.name, *group.scenarios)]
    doubles = {name for name in names if names.count(name) > 1}
    assert doubles <= {name for name in GROUPS if name in GROUPS[name].scenarios}
    assert all(scenario.__doc__ for group in GROUPS.values() for scenario in group.scenarios.values())


async def test_what_needs_namespaces_is_skipped_with_the_reason() -> None:
    results = await runner.run_group(GROUPS["links"], ["bridge"], (), "not root: namespaces cannot be made")
    assert [(r.outcome, r.reason) for r in results] == [("skipped", "not root: namespaces cannot be made")]


def test_namespaces_that_are_not_permitted_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess([], 1, b"", b"unshare: Operation not permitted\n")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda program: f"/bin/{program}")
    monkeypatch.setattr("subprocess.run", lambda *_args, **_kwargs: refused)
    prefix, why_not = runner.isolation()
    assert prefix == ()
    assert "Operation not permitted" in why_not


def _record(seq: int, kind: Kind, **facts: object) -> str:
    return Record("a" * 26, 1, seq, 0.0, float(seq), kind, facts).to_line() + "\n"


def test_a_log_is_read_as_it_grows_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    node = Node(tmp_path, "a" * 26, "127.0.0.1:1")
    assert node.records() == []
    log = tmp_path / FOLDER_NAME / FILE_NAME
    log.parent.mkdir()
    log.write_text(_record(1, Kind.ANNOUNCED, event="member dead", facts={"node_id": "b"}) + '{"v":1,"no')
    [record] = node.records()
    assert announced("member dead", node_id="b")(record)
    assert not announced("member dead", node_id="c")(record)
    with log.open("a") as file:
        file.write("\n" + _record(2, Kind.ENDED))
    assert [r.seq for r in node.records()] == [1, 2]


def test_a_broken_invariant_fails_the_scenario(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for number, name in enumerate(("a" * 26, "b" * 26)):
        node = Node(tmp_path / name, name, f"127.0.0.1:{number + 1}")
        log = node.folder / FOLDER_NAME / FILE_NAME
        log.parent.mkdir(parents=True)
        leads = Record(name, 1, 1, 0.0, 1.0, Kind.LEADS, {"ballot": [1, 7], "stored": [1, 0, 1]})
        log.write_text(leads.to_line() + "\n")
        cluster.nodes.append(node)
    with pytest.raises(LocalOutcomeWrongError, match="coordinator"):
        cluster.checked()

"""Every example of the SDK's page runs, against the fake daemon."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from macmesh.reasons import Reason
from macmesh.testing import ThreadedFakeDaemon
from macmesh.wire_errors import wire_failure

PAGE = Path(__file__).parents[2] / "docs" / "sdk.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def execute(code: str, socket_file: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"MACMESH_SOCKET": str(socket_file), "PATH": "/usr/bin:/bin", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.process
def test_examples_run(threaded: ThreadedFakeDaemon, socket_file: Path) -> None:
    sync_example, async_example, errors_example = EXAMPLES
    output = execute(sync_example, socket_file)
    assert output.splitlines() == [
        "ready, 3 nodes",
        "Once upon a time.",
        "stop, 5 tokens",
        "Once upon a time.",
    ]
    assert execute(async_example, socket_file).splitlines() == ["Once upon a time.", "ready"]
    threaded.script.failures["LoadModel"] = wire_failure(
        Reason.CONTEXT_ABOVE_POSITION_LIMIT, "too long", {"position_limit": 196_608}
    )
    assert execute(errors_example, socket_file) == "at most 196608\n"


def test_the_table_of_calls_names_every_call_and_its_default() -> None:
    page = PAGE.read_text("utf-8")
    for call in ("status", "watch", "plan", "load", "iter_load", "unload", "generate", "complete"):
        assert f"| `{call}(" in page
    from macmesh import Timeouts  # noqa: PLC0415  beside its use

    times = Timeouts()
    for seconds in (times.status, times.plan, times.load, times.load_idle, times.unload):
        assert f"{seconds:g} s" in page
    assert f"{times.generate_first_token:g} s to the first token, {times.generate_idle:g} s from" in page

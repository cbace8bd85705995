"""What a worker writes reaches the daemon's log with its own fields."""

import io
import json

from macmesh_daemon.cli.macmeshd import forward_worker_line
from macmesh_daemon.logs import configure


def _logged(line: str) -> dict[str, object]:
    out = io.StringIO()
    configure(log_format="json", node_id="n", stream=out)
    forward_worker_line(line)
    [text] = out.getvalue().splitlines()
    value: dict[str, object] = json.loads(text)
    return value


def test_an_event_of_the_worker_keeps_its_fields_and_level() -> None:
    logged = _logged('{"event": "weights loaded", "level": "warning", "seconds": 2, "timestamp": "x"}')

    assert (logged["event"], logged["level"], logged["seconds"]) == ("weights loaded", "warning", 2)
    assert (logged["part"], logged["node"]) == ("worker", "n")
    assert logged["timestamp"] != "x"


def test_any_other_line_is_kept_as_it_is() -> None:
    for line in ("Traceback (most recent call last):", "[1]", "{}", '"text"'):
        assert _logged(line)["line"] == line

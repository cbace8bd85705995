import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from macmesh_daemon.logs import configure, get_logger


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    zeroconf_level = logging.getLogger("zeroconf").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("zeroconf").setLevel(zeroconf_level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_events_are_json_lines_off_a_terminal_and_carry_the_node() -> None:
    out = io.StringIO()
    configure(stream=out, node_id="n1")
    get_logger(part="test").info("plan committed", epoch="0.3.1", stages=3)
    (line,) = out.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "plan committed",
        "epoch": "0.3.1",
        "stages": 3,
        "node": "n1",
        "part": "test",
        "level": "info",
    }


def test_a_node_of_its_own_wins_over_that_of_the_process() -> None:
    out = io.StringIO()
    configure(stream=out, node_id="n1")
    get_logger(node="n2").info("event")
    assert json.loads(out.getvalue())["node"] == "n2"


def test_events_are_for_people_on_a_terminal() -> None:
    out = Terminal()
    configure(stream=out)
    get_logger().info("node started", port=1)
    assert "node started" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_loggers_made_before_follow_a_later_configuration_and_its_level() -> None:
    log = get_logger(part="early")
    out = io.StringIO()
    configure(stream=out, log_format="json", level="warning")
    log.info("dropped")
    log.warning("kept")
    assert json.loads(out.getvalue())["event"] == "kept"


def test_an_exception_is_one_json_line() -> None:
    out = io.StringIO()
    configure(stream=out)
    try:
        int("why")
    except ValueError:
        get_logger().exception("step failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_libraries_take_the_same_way_and_mdns_packets_of_strangers_none() -> None:
    out = io.StringIO()
    configure(stream=out, node_id="n1")
    logging.getLogger("grpc").warning("channel %s failed", "c1")
    logging.getLogger("grpc").info("chatter")
    logging.getLogger("zeroconf").warning("bad packet %r", b"\x1b[2J")
    (line,) = out.getvalue().splitlines()
    event = json.loads(line)
    assert (event["event"], event["logger"], event["node"]) == ("channel c1 failed", "grpc", "n1")


@pytest.mark.process
def test_nothing_goes_to_stdout_before_configure() -> None:
    program = "from macmesh_daemon.logs import get_logger; log = get_logger(); log.info('a'); log.error('b')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120)
    assert done.stdout == b""
    assert json.loads(done.stderr)["event"] == "b"

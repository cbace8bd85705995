"""`macmeshd`: the daemon's process."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import os
import resource
import signal
import sys
from importlib import metadata

from macmesh_daemon.cluster.errors import LocalClusterSettingsInvalid
from macmesh_daemon.config import Config, ConfigError, add_arguments, flags_from, load_config
from macmesh_daemon.files import FilesError
from macmesh_daemon.identity import IdentityError
from macmesh_daemon.logs import configure, get_logger
from macmesh_daemon.node.errors import NodeError
from macmesh_daemon.node.runtime import cluster_settings, run_node
from macmesh_daemon.supervisor.environment import this_machines
from macmesh_daemon.supervisor.process import WorkerProcess

EXIT_FAILED = 1
EXIT_USAGE = 2
#: As the service's SoftResourceLimits has it.
FILE_LIMIT = 8192

_EXAMPLES = """examples:
  macmeshd                                    run with the user's configuration
  macmeshd --data-dir ./node1 --listen-port 0 a second node on this machine
"""


def main(argv: list[str] | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code says why it ended."""
    parser = argparse.ArgumentParser(
        prog="macmeshd",
        description="One node of a macmesh cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="FD",
        help="write a line to this open file descriptor once the node answers, then close it",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(flags_from(arguments), config_path=arguments.config)
        cluster_settings(config)
    except (ConfigError, LocalClusterSettingsInvalid) as error:
        sys.stderr.write(f"macmeshd: {error}\n")
        return EXIT_USAGE
    faulthandler.enable()
    raise_file_limit()
    configure(level=config.log_level, log_format=config.log_format)
    try:
        asyncio.run(_run(config, arguments.ready_fd))
    except (NodeError, IdentityError, FilesError, OSError) as error:
        get_logger(part="node").error("node could not run", error=str(error))
        return EXIT_FAILED
    except BaseExceptionGroup as group:
        for leaf in _leaves(group):
            get_logger(part="node").error("node failed", error=str(leaf), kind=type(leaf).__name__)
        known, unknown = group.split((NodeError, IdentityError, FilesError, OSError))
        del known
        if unknown is not None:
            raise unknown from None
        return EXIT_FAILED
    return 0


def raise_file_limit() -> None:
    """Allow as many open files as the peers' port may hold connections; a shell's 256 would be a flood's prey."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILE_LIMIT if hard == resource.RLIM_INFINITY else min(FILE_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def forward_worker_line(line: str) -> None:
    """Log what a worker wrote: its own events as they are, anything else as a line."""
    log = get_logger(part="worker")
    try:
        values = json.loads(line)
        event, level = str(values.pop("event")), str(values.pop("level", "info"))
    except (ValueError, KeyError, AttributeError, TypeError):
        log.info("worker wrote", line=line)
        return
    values.pop("timestamp", None)
    write = {"warning": log.warning, "error": log.error}.get(level, log.info)
    write(event, **{str(key): value for key, value in values.items()})


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: a checkout on the path alone has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        sys.stdout.write(f"macmeshd {metadata.version('macmesh')}{os.linesep}")
        parser.exit()


async def _run(config: Config, ready_fd: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    environment = this_machines(os.environ, kernels_folder=config.data_dir / "kernels")

    def new_worker() -> WorkerProcess:
        return WorkerProcess(
            environment=environment,
            hang_deadline_seconds=2 * config.step_deadline_seconds,
            on_log_line=forward_worker_line,
        )

    def tell_ready() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    def name_logs(node_id: str) -> None:
        configure(level=config.log_level, log_format=config.log_format, node_id=node_id)

    await run_node(config, stop=stop, worker_factory=new_worker, on_identity=name_logs, on_ready=tell_ready)


if __name__ == "__main__":
    sys.exit(main())

"""Logs of the daemon: one event per decision, as short constant phrases with data as keys.

``configure`` is called once per process; everything goes to stderr, pretty on a terminal and as JSON lines
elsewhere. Records of libraries that use the standard ``logging`` take the same way, from WARNING up.
"""

import logging
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from macmesh_daemon.config import LogFormat, LogLevel

# Its warnings quote packets of strangers; what matters of mDNS becomes a health line of ours.
_SILENCED_LIBRARIES = ("zeroconf",)


class _AddNode:
    """Adds the node id to every event that does not bring its own."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("node", self._node_id)
        return event


def _wants_pretty(log_format: LogFormat, stream: TextIO) -> bool:
    return log_format == "pretty" or (log_format == "auto" and stream.isatty())


def configure(
    *,
    level: LogLevel = "info",
    log_format: LogFormat = "auto",
    node_id: str | None = None,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process; may be called again, for example once the node id is known.

    Args:
        level: Events below it are dropped.
        log_format: ``auto`` is pretty on a terminal and JSON lines elsewhere.
        node_id: Put into every event as ``node``.
        stream: Where the lines go; stderr by default.
    """
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared, renderers = _configure_structlog(number, log_format, node_id, out)
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    for name in _SILENCED_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _configure_structlog(
    number: int, log_format: LogFormat, node_id: str | None, out: TextIO
) -> tuple[list[Processor], list[Processor]]:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if node_id is not None:
        shared.append(_AddNode(node_id))
    renderers: list[Processor]
    if _wants_pretty(log_format, out):
        renderers = [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    else:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        # Module-level loggers must follow a later call of configure.
        cache_logger_on_first_use=False,
    )
    return shared, renderers


def get_logger(**values: Any) -> FilteringBoundLogger:
    """Return a logger with ``values`` bound to it. Before ``configure`` it writes warnings only, to stderr.

    The event is a short constant lower-case phrase; everything that varies is a key::

        log = get_logger(part="discovery")
        log.info("candidate found", peer=node_id, source="mdns")
    """
    if not structlog.is_configured():
        # structlog's own default writes to stdout, which belongs to data.
        _configure_structlog(logging.WARNING, "auto", None, sys.stderr)
    return cast("FilteringBoundLogger", structlog.get_logger(**values))

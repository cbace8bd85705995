"""The event log: what a node did, line by line, for people and for the offline checker.

Each node appends JSON lines to ``events/`` in its data folder: what it promised, activated, stored and saw
committed, the terms it led, its answers to PREPARE and COMMIT, its workers, its requests and what it delivered.
`records` names every kind. The log is evidence, not state: nothing is ever read back from it to decide anything.

Errors::

    EventLogError
    └── LocalEventLogDamaged    a file of the log holds something else than records
"""

from macmesh_daemon.eventlog.errors import EventLogError, LocalEventLogDamaged
from macmesh_daemon.eventlog.records import SCHEMA_VERSION, Kind, Record

__all__ = ["SCHEMA_VERSION", "EventLogError", "Kind", "LocalEventLogDamaged", "Record"]

"""All groups of scenarios, longest first."""

from __future__ import annotations

from faults import links, processes, serving, splits

GROUPS = {
    group.name: group for group in (serving.GROUP, links.GROUP, processes.GROUP, splits.FOUR, splits.TWO)
}

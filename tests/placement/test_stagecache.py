import pytest
from hypothesis import given, settings

from macmesh_placement import LocalProfileError, Placement, cache_budget_bytes, plan, stage_cache_cost
from macmesh_placement.ledger import PAGE_BYTES
from macmesh_placement.stagecache import StageCacheCost

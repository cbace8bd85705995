"""What the tests print at their end."""

import pytest

TABLE: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of architectures: dtype, caches, weights, kinds of cache, reason."""

SPLITS: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of stages: architecture, stages, cuts, a request alone, requests in batches, reason."""

TITLES = {
    TABLE: "predicted bytes of caches and weights",
    SPLITS: "stages against one process: architecture, stages, cuts, request alone, batches, reason",
}
"""What stands above them, in the order in which they are printed."""

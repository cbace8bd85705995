"""What the tests print at their end."""

import pytest

TABLE: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of architectures: dtype, caches, weights, kinds of cache, reason."""

SPLITS: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of splits: architecture, dtype, stages, cuts, verdict, reason."""

BATCHES: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of batches: architecture, verdict, seconds, why its requests run alone."""

TITLES = {
    TABLE: "predicted bytes of caches and weights",
    SPLITS: "stages against one process",
    BATCHES: "rows of batches, and caches taken up, against requests alone",
}
"""What stands above them, in the order in which they are printed."""

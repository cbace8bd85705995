"""What the tests print at their end."""

import pytest

TABLE: pytest.StashKey[list[str]] = pytest.StashKey()
"""Lines of the table of architectures: dtype, caches, weights, kinds of cache, reason."""

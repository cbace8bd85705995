"""Fixtures of the engine's tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models lie that several tests read, in whichever process of this run they are."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-models"

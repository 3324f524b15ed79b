"""What the tests of an engine's process share."""

from pathlib import Path

import pytest


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The path of the file that names the running child."""
    return tmp_path / "engine.json"

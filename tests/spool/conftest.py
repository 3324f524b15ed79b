"""The spool that each test of this folder works on."""

from pathlib import Path

import pytest

from builders import make_spool
from inbox_daemon.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)

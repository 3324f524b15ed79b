"""A ledger that is opened again as another daemon would find it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inbox_daemon.ledger import Ledger
from ledger_rows import Open


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The ledger's folder."""
    path = tmp_path / "ledger"
    path.mkdir()
    return path


@pytest.fixture
def reopen(folder: Path) -> Iterator[Open]:
    """Open the ledger, after closing the one that was open: as another daemon would find it."""
    held: list[Ledger] = []

    def reopen() -> Ledger:
        while held:
            held.pop().close()
        held.append(Ledger(folder))
        return held[-1]

    yield reopen
    while held:
        held.pop().close()

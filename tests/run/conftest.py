"""Benches with short pauses, which are closed after each test."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inbox_daemon.run import arrivals, suspects
from run_checks import Make
from scripted_runner import Bench


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the pauses, but make them short."""
    monkeypatch.setattr(arrivals, "BACKOFF_BASE_S", 0.0005)
    monkeypatch.setattr(arrivals, "REFUSED_PAUSE_S", 0.01)
    monkeypatch.setattr(suspects, "DOUBT_BASE_S", 0.01)
    monkeypatch.setattr(suspects, "DOUBT_CAP_S", 0.01)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make benches on one spool, the last one closed at the end."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:  # noqa: ANN401 - as Bench takes them
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield make
    if made:
        await made[-1].crash()

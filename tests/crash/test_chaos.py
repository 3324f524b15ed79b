"""A short chaos run; `make torture` has the long one."""

import random

import pytest

from daemon_process import MakeDaemon
from torture.chaos import Chaos, options_of_engine

KILLS = 6


@pytest.mark.slow
def test_every_line_has_one_outcome_after_random_kills(
    make_daemon: MakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """Daemon and engine killed at random: all lines end once, in order, as they must."""
    seed = random.randrange(1_000_000)
    daemon = make_daemon(
        *options_of_engine(), limits={"max_queue_depth": 100}, disk={"min_free_bytes": 0}
    )
    chaos = Chaos(daemon, seed, jobs=3, lines=30)
    with capsys.disabled():
        print(f"\nchaos: seed {seed}")  # noqa: T201 - to repeat it
    chaos.run(KILLS)
    assert chaos.figures["kills"] == KILLS

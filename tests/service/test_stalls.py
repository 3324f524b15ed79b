"""Stalls: an engine that hangs, and a heartbeat that proves progress or verified idleness."""

import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from daemon_process import MakeDaemon
from inbox_daemon.service.stalls import HangDetector, Heartbeat, Turn
from job_files import chats
from processes import wait_until

PATIENCE_S = 720.0


@pytest.fixture
def heart() -> Heartbeat:
    """Return the heartbeat of a daemon that has just started."""
    return Heartbeat(PATIENCE_S)


def test_an_idle_daemon_goes_on_beating(heart: Heartbeat) -> None:
    """Without work, or with a known reason not to do it, no time is too long."""
    assert all(heart.may_beat(now * 10_000.0, (), None) for now in range(5))


def test_work_without_progress_stops_the_heart(heart: Heartbeat) -> None:
    """Work that could go on and stands still is a hang, once its patience is over."""
    assert heart.may_beat(0, (), ("job", 1))
    assert heart.may_beat(PATIENCE_S - 1, (), ("job", 1))
    assert not heart.may_beat(PATIENCE_S, (), ("job", 1))
    assert not heart.may_beat(PATIENCE_S + 1000, (), ("job", 1))


@pytest.mark.parametrize("step", [("job", 2), ("other", 1), None])
def test_any_progress_restarts_the_count(heart: Heartbeat, step: object) -> None:
    """One step further, or idleness in between, and the patience is whole again."""
    heart.may_beat(0, (), ("job", 1))
    assert heart.may_beat(PATIENCE_S + 1, (), step)
    assert heart.may_beat(2 * PATIENCE_S, (), step)


def test_idleness_is_not_counted_as_standing_still(heart: Heartbeat) -> None:
    """Work that begins after a long rest has the whole patience before it."""
    heart.may_beat(0, (), None)
    heart.may_beat(9000, (), None)
    assert heart.may_beat(9001, (), ("job", 1))
    assert heart.may_beat(9000 + PATIENCE_S, (), ("job", 1))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_one_loop_that_stands_is_enough(heart: Heartbeat, late: int) -> None:
    """Each loop must have turned within its own time, whatever the others do."""
    turns = [Turn(100.0, 30.0), Turn(100.0, 300.0), Turn(100.0, 35.0)]
    assert heart.may_beat(129, tuple(turns), None)
    turns[late] = Turn(129.0 - turns[late].limit_s, turns[late].limit_s)
    assert not heart.may_beat(129, tuple(turns), None)


class Systemd:
    """What a service says to systemd, read as it comes: a sender would wait for a reader."""

    def __init__(self, folder: Path) -> None:
        """Listen in the folder."""
        self.words: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = str(folder / "notify")
        self._socket.bind(self.address)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while word := self._socket.recv(4096).decode():
            self.words.append(word)

    def wait(self, *words: str) -> None:
        """Wait until something that begins with each of these was said, in this order."""
        for word in words:
            place = wait_until(partial(self._places, word), word)[0]
            del self.words[: place + 1]

    def _places(self, word: str) -> list[int]:
        return [place for place, said in enumerate(self.words) if said.startswith(word)]

    def close(self) -> None:
        """Stop listening."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._reader.join()
        self._socket.close()


@pytest.fixture
def systemd(sockets: Path) -> Iterator[Systemd]:
    """Return a stand-in for systemd's end of the notify socket."""
    listening = Systemd(sockets)
    yield listening
    listening.close()


def test_systemd_gets_the_state(make_daemon: MakeDaemon, systemd: Systemd) -> None:
    """READY, then beats with words for a STATUS line, idle and at work, and at last STOPPING."""
    daemon = make_daemon("--latency", "0.2", "--slots", "1")
    daemon.env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
    daemon.start()
    systemd.wait("READY=1", "STATUS=idle: 0 jobs, 0 requests open, engine ready", "WATCHDOG=1")
    daemon.drop("job", chats(30))
    systemd.wait("STATUS=processing: 1 job,", "WATCHDOG=1")
    daemon.stop()
    systemd.wait("STOPPING=1")


@pytest.fixture
def detector() -> HangDetector:
    """One that is patient for 10 s, or 100 s where no tokens are counted."""
    return HangDetector(hang_s=10.0, request_timeout_s=100.0)


def readings(detector: HangDetector, *rows: tuple[float, int, int, int | None]) -> list[bool]:
    """The answers to readings of (now, in flight, finished, tokens)."""
    return [detector.update(*row) for row in rows]


def test_no_answer_and_no_token_for_too_long_is_a_hang(detector: HangDetector) -> None:
    """A hang is reported once, and the next count starts at zero."""
    rows = [(0.0, 5, 1, 7), (9.9, 5, 1, 7), (10.0, 5, 1, 7), (10.5, 5, 1, 7), (21.0, 5, 1, 7)]
    assert readings(detector, *rows) == [False, False, True, False, True]


@pytest.mark.parametrize("progress", [(2, 7), (1, 8), (1, 0)])
def test_a_sign_of_life_restarts_the_patience(
    detector: HangDetector, progress: tuple[int, int]
) -> None:
    """An answer, a token, or a counter that began again, is a sign of life."""
    rows = [(0.0, 5, 1, 7), (9.0, 5, *progress), (18.0, 5, *progress), (19.0, 5, *progress)]
    assert readings(detector, *rows) == [False, False, False, True]


def test_an_idle_engine_never_hangs(detector: HangDetector) -> None:
    """With nothing in flight there is nothing to wait for, and the count begins with work."""
    rows = [(0.0, 0, 1, 7), (1e6, 0, 1, 7), (1e6 + 1, 1, 1, 7), (1e6 + 9, 1, 1, 7)]
    assert not any(readings(detector, *rows))


def test_without_a_count_of_tokens_a_long_answer_is_waited_for(detector: HangDetector) -> None:
    """A server that tells no figures gets the time that a request may take."""
    rows = [(0.0, 1, 0, None), (50.0, 1, 0, None), (99.0, 1, 0, None), (100.0, 1, 0, None)]
    assert readings(detector, *rows) == [False, False, False, True]

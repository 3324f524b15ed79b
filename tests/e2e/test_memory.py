"""The daemon's memory as the system counts it, with answers and lines that are large."""

from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon
from job_files import chat

MIB = 1 << 20


def memory_mib(daemon: DaemonProcess, name: str = "VmHWM") -> float:
    """The most memory that the daemon ever had, or what it has now (VmRSS)."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    row = next(row for row in status.splitlines() if row.startswith(name))
    return int(row.split()[1]) / 1024


@pytest.mark.slow
def test_large_answers_take_the_memory_that_is_allowed(start_daemon: MakeDaemon) -> None:
    """With 64 answers of 4 MiB that come together and a bound of 16 MiB, far less is held."""
    daemon = start_daemon("--latency", "0.5", run={"max_in_flight_bytes": 16 * MIB})
    idle = memory_mib(daemon, "VmRSS")
    lines = [chat(f"r{number}", f"[[big={4 * MIB}]] {number}") for number in range(64)]
    daemon.drop("job", lines)
    folder = daemon.wait_outcome("job")
    with (folder / "output.jsonl").open("rb") as file:
        assert sum(len(line) > 4 * MIB for line in file) == 64
    assert memory_mib(daemon) - idle < 120


@pytest.mark.slow
def test_large_lines_take_the_memory_that_is_allowed(start_daemon: MakeDaemon) -> None:
    """With 64 requests of 4 MiB and a bound of 16 MiB, far less is in flight at a time."""
    options = ("--latency", "0.5", "--max-model-len", "100")
    limits = {"max_line_bytes": 8 * MIB, "max_file_bytes": 512 * MIB}
    daemon = start_daemon(*options, run={"max_in_flight_bytes": 16 * MIB}, limits=limits)
    idle = memory_mib(daemon, "VmRSS")
    daemon.drop("job", [chat(f"r{n}", f"{n} " + "x" * (4 * MIB)) for n in range(64)])
    folder = daemon.wait_outcome("job")
    assert (folder / "output.jsonl").read_bytes().count(b"\n") == 64
    assert memory_mib(daemon) - idle < 120


def test_an_answer_over_the_cap_is_a_dead_letter(start_daemon: MakeDaemon) -> None:
    """After its attempts the request is set aside, and the sentence names the key."""
    daemon = start_daemon(run={"max_answer_bytes": 100_000, "max_attempts": 1})
    daemon.drop("job", [chat("large", "[[big=200000]]"), chat("small", "hello")])
    folder = daemon.wait_outcome("job")
    assert b'"custom_id":"small"' in (folder / "output.jsonl").read_bytes()
    errors = (folder / "errors.jsonl").read_bytes()
    assert b'"code":"max_attempts"' in errors
    assert b"the answer is over 100000 bytes (run.max_answer_bytes)" in errors

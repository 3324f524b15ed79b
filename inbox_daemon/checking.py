"""`validate`: the daemon's own checks on a file that is dropped nowhere.

Purpose: tell a sender every fault with its line number before it sends anything.
Invariant: the checks are those of the intake, called, not copied.
"""

from collections.abc import Callable
from pathlib import Path

from inbox_daemon import gate
from inbox_daemon.config import Config
from inbox_daemon.errors import SenderError
from inbox_daemon.limits import QueueLoad, check_bytes, check_requests
from inbox_daemon.model import Fault
from inbox_daemon.validation import Served, Validation, validate_file


def check(path: Path, config: Config, say: Callable[[str], None]) -> bool:
    """Check one file and say what was found; True when it would be accepted.

    Raises SenderError: it cannot be read.
    """
    try:
        whole = _check_whole(path, config)
        found = Validation() if whole else _check_lines(path, config)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SenderError("unreadable", msg) from None
    if not whole:
        whole = found.fatal or check_requests(QueueLoad(0, 0), found.requests, config.limits)
    lines = [line.fault for line in found.invalid]
    for fault in [whole, *lines] if whole else lines:
        where = f"line {fault.line}: " if fault.line else ""
        say(f"{path}: {where}{fault.code}: {fault.message}")
    lenient = config.intake.on_invalid_line == "dead_letter"
    good = whole is None and found.accepted(dead_letter_lines=lenient)
    if good:
        bad = f", {len(lines)} of them dead letters at once" if lines else ""
        say(f"{path}: ok, {found.requests} requests{bad}")
    return good


def _check_whole(path: Path, config: Config) -> Fault | None:
    """What is wrong with the file as a whole, before any line of it is read."""
    if not gate.is_job_name(path.name):
        message = "the file's name is no job's name: letters, digits, . _ - , ending in .jsonl"
        return Fault(code="bad_name", message=message)
    with path.open("rb") as file:
        form = gate.foreign_format(file.read(gate.HEAD_BYTES))
    return gate.encoded(form) if form else check_bytes(path.stat().st_size, config.limits)


def _check_lines(path: Path, config: Config) -> Validation:
    name = config.engine.served_name
    served = Served(name or None, frozenset([name] if name else []))
    return validate_file(path, config.limits, served, keep_invalid=True)

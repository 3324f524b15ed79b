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
        faults, found = _faults(path, config)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SenderError("unreadable", msg) from None
    for fault in faults:
        where = f"line {fault.line}: " if fault.line else ""
        say(f"{path}: {where}{fault.code}: {fault.message}")
    lenient = config.intake.on_invalid_line == "dead_letter"
    good = not faults or (found is not None and found.accepted(dead_letter_lines=lenient))
    if good:
        bad = f", {len(faults)} of them dead letters at once" if faults else ""
        say(f"{path}: ok, {found.requests if found else 0} requests{bad}")
    return good


def _faults(path: Path, config: Config) -> tuple[list[Fault], Validation | None]:
    if not gate.is_job_name(path.name):
        message = "the file's name is no job's name: letters, digits, . _ - , ending in .jsonl"
        return [Fault(code="bad_name", message=message)], None
    fault = check_bytes(path.stat().st_size, config.limits)
    if fault is not None:
        return [fault], None
    name = config.engine.served_name
    served = Served(name or None, frozenset([name] if name else []))
    found = validate_file(path, config.limits, served, keep_invalid=True)
    faults = [line.fault for line in found.invalid] + ([found.fatal] if found.fatal else [])
    crowded = check_requests(QueueLoad(0, 0), found.requests, config.limits)
    return [*faults, *([crowded] if crowded else [])], found

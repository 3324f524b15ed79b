"""The names of files that cross the spool's border, and what a name means.

Purpose: the one place that says what a file is called.
Invariants: pure; a name from outside is escaped before it is put into words.
"""

import re
from enum import StrEnum

JOB_SUFFIX = ".jsonl"
READY_SUFFIX = ".ready"
OPTIONS_SUFFIX = ".options.json"
REASON_SUFFIX = ".reason.json"

# The files of a job's folder in outbox/.
OUTPUT = "output.jsonl"
ERRORS = "errors.jsonl"
RETRY = "retry.jsonl"
STATUS = "status.json"

# What a control file calls every job.
ALL = "ALL"


class Order(StrEnum):
    """What a control file may ask for."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    REBIND = "rebind"
    REDRIVE = "redrive"
    PURGE = "purge"


_STEM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}"
NAME_PATTERN = rf"^{_STEM}\{JOB_SUFFIX}$"
_NAME = re.compile(NAME_PATTERN)
_CONTROL = re.compile(rf"{_STEM}\.({'|'.join(Order)})")
# outbox/status.json is the service's own.
_RESERVED = frozenset({STATUS + JOB_SUFFIX, ALL + JOB_SUFFIX})


def escape(name: str) -> str:
    """Return a file's name in printable ASCII, for logs and documents."""
    return ascii(name)[1:-1]


def safe_stem(name: str) -> str:
    """Return a stem that is safe as a file's name, close to the one that was dropped."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name.removesuffix(JOB_SUFFIX)).lstrip("._-")
    stem = stem[:120] or "unnamed"
    return f"{stem}_" if f"{stem}{JOB_SUFFIX}" in _RESERVED else stem


def is_job_name(name: str) -> bool:
    """Return whether a file of that name can be a job."""
    return bool(_NAME.fullmatch(name)) and name not in _RESERVED and "\n" not in name


def is_control_name(name: str) -> bool:
    """Return whether a file of that name is an order, such as NAME.cancel."""
    return bool(_CONTROL.fullmatch(name))


def is_sidecar(name: str) -> bool:
    """Return whether a file of that name belongs to a job's file."""
    return name.endswith((JOB_SUFFIX + READY_SUFFIX, OPTIONS_SUFFIX)) and name[0] != "."


def job_of_sidecar(name: str) -> str:
    """Return the name of the job's file that a sidecar belongs to."""
    if name.endswith(READY_SUFFIX):
        return name.removesuffix(READY_SUFFIX)
    return name.removesuffix(OPTIONS_SUFFIX) + JOB_SUFFIX


def sidecars_of(name: str) -> tuple[str, str]:
    """Return the names of a job's marker and options, whether they exist or not."""
    return name + READY_SUFFIX, name.removesuffix(JOB_SUFFIX) + OPTIONS_SUFFIX

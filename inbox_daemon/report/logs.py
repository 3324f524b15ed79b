"""Logs: an event's name and its fields, for a journal or for a terminal.

Purpose: one JSON object a line under systemd, readable text on a terminal.
Invariants: a field can never break a line or carry an escape code to a terminal,
because both forms write JSON strings and the terminal's has everything escaped that
is not printable; whatever a field holds, its event is written.
"""

import json
import logging
import os
import sys
import time
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(*, verbose: bool = False) -> None:
    """Log to stderr: as JSON under systemd or into a pipe, as text on a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    plain = sys.stderr.isatty() and "JOURNAL_STREAM" not in os.environ
    handler.setFormatter(TextFormatter() if plain else JsonFormatter())
    # The libraries' own warnings too, or they would come out as bare text.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("inbox_daemon").setLevel(logging.DEBUG if verbose else logging.INFO)
    # It calls our stopping it, in the moment of an event, an error.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that were given with the event."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The event with its time, level and fields."""
        event = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return to_json(event)


def to_json(value: object) -> str:
    """Any value as JSON on one line; orjson has no words for a name that is no UTF-8."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        return json.dumps(value, default=str, skipkeys=True)


def printable(text: str) -> str:
    """The text with its control characters escaped, those beyond ASCII too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    """Time, level, event and `key=value` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception follows on lines of its own."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{key}={to_json(value)}" for key, value in fields_of(record).items())
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        lines = [
            line,
            *(self.formatException(record.exc_info).splitlines() if record.exc_info else []),
        ]
        return "\n".join(printable(line) for line in lines)

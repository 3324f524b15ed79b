"""Logs: every event is one line that a program or a person can trust."""

import logging
import sys
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.report import logs
from inbox_daemon.report.logs import JsonFormatter, TextFormatter

ESCAPES = "\x1b[31m \x9b31m \x7f \u2028 \u202e \r\n"
DEEP: list[object] = []
for _ in range(400):
    DEEP = [DEEP]


def record(**fields: object) -> logging.LogRecord:
    """An event with fields, as a logger makes it."""
    log = logging.getLogger("inbox_daemon.test")
    return log.makeRecord(
        log.name, logging.WARNING, "test.py", 1, "job_rejected", (), None, extra=fields
    )


def failed() -> logging.LogRecord:
    """An event that carries an exception whose words are hostile."""
    event = record(job="a")
    try:
        raise ValueError(ESCAPES)  # noqa: TRY301 - to have a traceback
    except ValueError:
        event.exc_info = sys.exc_info()
    return event


def test_the_journal_gets_one_object_with_the_fields() -> None:
    """Time, level, logger, event and the event's own fields are keys of one JSON object."""
    found = orjson.loads(JsonFormatter().format(record(job="a", requests=3)))
    assert found.pop("time") > 0
    assert found == {
        "level": "warning",
        "logger": "inbox_daemon.test",
        "event": "job_rejected",
        "job": "a",
        "requests": 3,
    }


def test_an_exception_stays_inside_the_object() -> None:
    """A traceback is a field, so that one event is one line in the journal."""
    line = JsonFormatter().format(failed())
    assert "\n" not in line
    assert "ValueError" in orjson.loads(line)["exception"]


def test_a_terminal_gets_a_readable_line() -> None:
    """The event and its fields are written as words."""
    line = TextFormatter().format(record(job="я", requests=3))
    assert line.endswith(' warning job_rejected job="я" requests=3')


def test_a_terminal_gets_the_traceback_below() -> None:
    """An exception follows on lines of its own."""
    lines = TextFormatter().format(failed()).split("\n")
    assert lines[1].startswith("Traceback")
    assert lines[-1].isprintable()


@pytest.mark.parametrize("value", [ESCAPES, [ESCAPES], {"k": ESCAPES}, ValueError(ESCAPES)])
def test_a_field_cannot_speak_to_the_terminal(value: object) -> None:
    """No escape code, no line end and no reordering gets through, however it is packed."""
    assert TextFormatter().format(record(text=value)).isprintable()


@pytest.mark.parametrize(
    "value",
    ["job-\udcff.jsonl", 2**70, {1: "a"}, {(1, 2): "a"}, object(), b"x", DEEP, {"\udcff": 1}],
)
def test_whatever_a_field_holds_the_event_is_written(value: object) -> None:
    """A name that is no UTF-8, or a value that JSON does not know, loses no event."""
    line = JsonFormatter().format(record(text=value))
    assert '"event"' in line
    assert "\n" not in line
    assert "job_rejected" in TextFormatter().format(record(text=value))


@given(st.dictionaries(st.text(min_size=1).map("x_{}".format), st.text(), max_size=4))
def test_any_text_comes_back_from_the_journal(fields: dict[str, str]) -> None:
    """Fields of any text are read back as they were."""
    found = orjson.loads(JsonFormatter().format(record(**fields)))
    assert {key: found[key] for key in fields} == fields


# -- set up -------------------------------------------------------------------------


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger without the test runner's handlers, and all left as it was."""
    logger = logging.getLogger()
    changed = [logger, logging.getLogger("inbox_daemon"), logging.getLogger("watchdog")]
    handlers, levels = logger.handlers, [each.level for each in changed]
    logger.handlers = []
    yield logger
    logging.captureWarnings(capture=False)
    logger.handlers = handlers
    for each, level in zip(changed, levels, strict=True):
        each.setLevel(level)


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_details_are_logged_on_demand(
    verbose: bool,  # noqa: FBT001 - a table
    level: int,
    root: logging.Logger,
) -> None:
    """--verbose adds our details, and those of no library."""
    logs.set_up(verbose=verbose)
    assert logging.getLogger("inbox_daemon.run.runner").getEffectiveLevel() == level
    assert logging.getLogger("asyncio").getEffectiveLevel() == logging.WARNING
    assert len(root.handlers) == 1


@pytest.mark.parametrize(
    ("terminal", "journal", "kind"),
    [(True, False, TextFormatter), (True, True, JsonFormatter), (False, False, JsonFormatter)],
)
def test_only_a_terminal_gets_text(
    terminal: bool,  # noqa: FBT001 - a table
    journal: bool,  # noqa: FBT001 - a table
    kind: type,
    root: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under systemd and in a pipe the lines are for programs."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.set_up()
    assert isinstance(root.handlers[0].formatter, kind)

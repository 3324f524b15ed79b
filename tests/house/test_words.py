"""Plain words: what the glossary replaced comes back neither in the code nor in a document."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
# Personified data, metaphors for events and idioms of other languages, each with what the
# code says instead.
REPLACED = {
    r"nobody|somebody|everybody|whoever": "no process, no request, another program, the reader",
    r"anew|thrice|for ever": "again, restart, three times, without end",
    r"(?:is|are|was|were) told": "is shown, is reported, is set to",
    r"bury|buried|burial|graves?": "set aside, dead request",
    r"fell silent|falls silent|last words": "stopped reporting, the last line printed",
    r"vouch\w*|condemn\w*|nurse\w*|smuggl\w*|strays?|strangers?": "the glossary's words",
    r"so (?:many|often|long) (?:requests|readings|deaths|times|seconds|days)": "this many",
    r"Say whether": "Return whether",
}
WORDS = re.compile(rf"\b(?:{'|'.join(REPLACED)})\b", re.IGNORECASE)
FILES = sorted(
    path.relative_to(CHECKOUT)
    for pattern in ("inbox_daemon/**/*.py", "inbox_daemon/*.toml", "*.md", "docs/*.md")
    for path in CHECKOUT.glob(pattern)
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_words_are_plain(path: Path) -> None:
    """Docstrings, comments, messages and pages say what happens, as a native engineer would."""
    lines = (CHECKOUT / path).read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if WORDS.search(line)
    ]
    assert found == []

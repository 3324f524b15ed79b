"""Plain words: what the glossary replaced comes back in no code, test or document."""

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
PATTERNS = (
    *("inbox_daemon/**/*.py", "inbox_daemon/*.toml", "tests/**/*.py"),
    *("*.md", "docs/*.md"),
)
FILES = sorted(
    path.relative_to(CHECKOUT)
    for pattern in PATTERNS
    for path in CHECKOUT.glob(pattern)
    if path != Path(__file__)  # it lists the words
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_words_are_plain(path: Path) -> None:
    """Names, docstrings, messages and pages say what happens, as a native engineer would."""
    lines = (CHECKOUT / path).read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if WORDS.search(line.replace("_", " ") if path.suffix == ".py" else line)
    ]
    assert found == []

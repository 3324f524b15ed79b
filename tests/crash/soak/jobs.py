"""The files that senders make, and what must become of each.

Purpose: jobs of one to some thousand requests, each with its own text, a few with a marker
that the server obeys (standin_faults.py); files that must be refused, with the code.
Invariant: no two files have the same content, so a checksum says which file an answer is to.
"""

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from job_files import Json, chat
from standin_faults import find_faults

PASSING = ("[[500x1]]", "[[429x1]]", "[[resetx1]]", "[[slow=0.6]]", "[[garbagex1]]", "[[503x2]]")
LASTING = ("[[400]]", "[[400]]", "[[422]]", "[[500]]")
POISON = ("[[kill]]", "[[crash]]")
# Of these the engine may die, or seem to.
DEADLY = frozenset({"kill", "crash", "hang", "freeze"})
LANES = ("", "", "", "high", "low")
VALID = "valid"
_MOST_BYTES = 8 << 20


@dataclass(slots=True)
class SentJob:
    """One file under one name, and every answer to it that was seen.

    `kind` is VALID or the code with which it must be refused; `texts` the text of each
    request by its custom_id; `drops` when it was dropped (monotonic seconds).
    """

    name: str
    data: bytes
    texts: dict[str, str] = field(default_factory=dict)
    kind: str = VALID
    lane: str = ""
    file: str = ""  # its name in inbox/, where that is not NAME.jsonl
    way: str = ""
    options: Json = field(default_factory=dict)
    drops: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)  # ids of folders with results
    refusals: list[str] = field(default_factory=list)  # codes
    dead: int = 0
    to_send: bool = True
    final: bool = False
    sha256: str = ""

    def __post_init__(self) -> None:
        """Know its checksum."""
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.file = self.file or f"{self.name}.jsonl"

    @property
    def lines(self) -> list[bytes]:
        """Its lines, each with its newline."""
        return self.data.splitlines(keepends=True)

    @property
    def max_attempts(self) -> int | None:
        """What its options say."""
        attempts: int | None = self.options.get("max_attempts")
        return attempts

    @property
    def expires_in_s(self) -> float | None:
        """What its options say, in seconds."""
        seconds: float | None = self.options.get("expires_in_s")
        return seconds


def is_deadly(text: str) -> bool:
    """Return whether an engine may die of a text."""
    return any(fault.name in DEADLY for fault in find_faults(text))


def make_job(rng: random.Random, name: str) -> SentJob:
    """A valid file, or one in eight times one that must be refused."""
    if rng.random() < 0.12:
        return _make_refused(rng, name)
    shape = rng.choices(("small", "medium", "long", "large", "poison"), (50, 30, 6, 6, 8))[0]
    if shape == "large":
        sizes = [rng.randrange(1 << 20, _MOST_BYTES) for _ in range(rng.randint(1, 3))]
        marks = {n: f"[[large={size}]]" for n, size in enumerate(sizes)}
        return _job(rng, name, len(sizes) + rng.randint(0, 5), marks)
    count = {"small": rng.randint(1, 20), "medium": rng.randint(20, 300)}.get(shape)
    count = count or (rng.randint(300, 1500) if shape == "long" else rng.randint(5, 60))
    marks = {n: rng.choice(PASSING + LASTING) for n in range(count) if rng.random() < 0.03}
    if shape == "poison":
        marks[rng.randrange(count)] = rng.choice(POISON)
    if rng.random() < 0.03:
        marks[rng.randrange(count)] = "[[hang]]"
    return _job(rng, name, count, marks)


def _job(rng: random.Random, name: str, count: int, marks: dict[int, str]) -> SentJob:
    texts = {f"r{n}": _text(rng, name, n, marks.get(n, "")) for n in range(count)}
    data = b"".join(chat(custom_id, text) for custom_id, text in texts.items())
    job = SentJob(name, data, texts, lane=rng.choice(LANES), options=_options(rng, name))
    if rng.random() < 0.2:  # the last newline may be missing, and blank lines are none
        job = SentJob(name, data[:-1], texts, lane=job.lane, options=job.options)
    return job


def _text(rng: random.Random, name: str, number: int, mark: str) -> str:
    words = " ".join(rng.choices(("sum", "up", "the", "naïve", "日本", "\u2028", "x"), k=4))
    return f"{name} {number} {words} {mark}".strip()


def _options(rng: random.Random, name: str) -> Json:
    options: Json = {}
    if rng.random() < 0.25:
        options["max_attempts"] = rng.randint(2, 6)
    if rng.random() < 0.12:
        options["expires_in_s"] = rng.choice((5, 20, 60, 3600))
    if rng.random() < 0.25:
        options["metadata"] = {"job": name, "drawn": str(rng.randrange(1000))}
    return options


def _make_refused(rng: random.Random, name: str) -> SentJob:
    """A file that must be refused, by one of REFUSED."""
    code = rng.choice(sorted(REFUSED))
    plain = b"".join(chat(f"r{n}", f"{name} {n}") for n in range(rng.randint(1, 9)))
    file = REFUSED_NAMES[rng.randrange(len(REFUSED_NAMES))] if code == "bad_name" else ""
    file = file.replace("NAME", name)
    options = {"expires_in_s": "soon", "of": name} if code == "invalid_options" else {}
    return SentJob(name, REFUSED[code](plain, name), kind=code, file=file, options=options, lane="")


def _body(name: str, **body: object) -> bytes:
    return chat("wrong", name, **body)


# What is sent, by the code with which it must be refused.
REFUSED: dict[str, Callable[[bytes, str], bytes]] = {
    "bad_name": lambda plain, _name: plain,
    "body_not_allowed": lambda plain, name: plain + _body(name, stream=True),
    "body_over_limit": lambda plain, name: plain + _body(name, n=500),
    "duplicate_custom_id": lambda plain, _name: plain + plain.splitlines(keepends=True)[0],
    "encoded": lambda plain, _name: gzip.compress(plain, mtime=0),
    "invalid_json": lambda plain, _name: plain + b'{"custom_id": \n',
    "invalid_options": lambda plain, _name: plain,
    "invalid_request": lambda plain, name: plain + json.dumps({"custom_id": name}).encode() + b"\n",
    "mixed_models": lambda plain, name: (
        plain + chat("a", name, model="standin") + chat("b", name, model="other")
    ),
    # Sent as it is, without a marker: it stays incomplete.
    "truncated": lambda plain, _name: plain + b'{"custom_id": "cut", "bo',
    "too_deep": lambda plain, _name: plain + b"[" * 100 + b"]" * 100 + b"\n",
}
# Another code that fits too: what is found first depends on whether the engine is known yet.
ALSO = {"mixed_models": "unknown_model"}
REFUSED_NAMES = (
    *("NAME.txt", "-NAME.jsonl", "NAME é.jsonl", "NAME\nnew.jsonl", "NAME.jsonl.gz"),
    *("NAME;$(touch x).jsonl", "NAME" + "a" * 130 + ".jsonl", "_NAME.jsonl", "NAME.JSONL"),
)

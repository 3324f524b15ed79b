"""What senders do in the whole flow, what the engine answers, and what must come of it.

Purpose: the one text that the driver (flow.py) plays and the tests compare with.
Invariants: pure; the same request gets the same answer whenever it is asked, but for
the one that fails the first time it is ever sent.
"""

import hashlib
import json
from dataclasses import dataclass, field

CHAT = "/v1/chat/completions"
MODEL = "flow"
# What a request's text asks of the engine; everything else is answered.
REFUSE, FAIL_ONCE, HANG = "refuse", "fail once", "hang"
REFUSAL = b'{"error": {"type": "BadRequestError", "message": "refused as asked", "code": 400}}'
FAILURE = b'{"error": {"type": "InternalServerError", "message": "not now", "code": 500}}'


@dataclass(frozen=True, slots=True)
class Job:
    """A file that is sent, and the reasons of those of its requests that must fail.

    `retries` counts the executions beyond one a request that the engine itself causes.
    """

    name: str
    requests: dict[str, str]
    dead: dict[str, str] = field(default_factory=dict)
    blank_after: int | None = None
    retries: int = 0
    cancelled: bool = False

    def lines(self) -> list[bytes]:
        """The requests as they are sent, each with its newline."""
        return [_line(custom_id, text) for custom_id, text in self.requests.items()]

    def content(self) -> bytes:
        """The file."""
        lines = self.lines()
        if self.blank_after is not None:
            lines.insert(self.blank_after, b"\n")
        return b"".join(lines)

    def custom_id_at(self, line: int) -> str:
        """The request at a line number of the file."""
        value = json.loads(self.content().split(b"\n")[line - 1])
        return str(value["custom_id"])


def _line(custom_id: str, text: str) -> bytes:
    body = {"messages": [{"role": "user", "content": f"{custom_id}: {text}"}]}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def answer_to(custom_id: str) -> bytes:
    """The engine's body for a request that it answers, spelt as no library would."""
    words = hashlib.sha256(custom_id.encode()).hexdigest()[:16]
    return (
        b'{ "choices":[{"message":{"role":"assistant","content":"' + words.encode() + b' \\u00e9"}}'
        b'],\t"usage" : {"prompt_tokens":3,"completion_tokens":1.0e0} }'
    )


_texts = {f"m{n}": "a question" for n in range(9)}
MAIN = Job(
    "main",
    _texts | {"m2": REFUSE, "m5": FAIL_ONCE},
    dead={"m2": "invalid_request"},
    blank_after=4,
    retries=1,
)
# First sent with a line that is none, then mended under the same name.
BROKEN = Job("mended", {"e0": "a question", "e1": "another"})
BROKEN_CONTENT = BROKEN.content() + b'{"custom_id": "e2"\n'
DOOMED = Job(
    "doomed",
    {"d0": "a question", "d1": HANG, "d2": "another", "d3": HANG},
    dead={"d1": "cancelled", "d3": "cancelled"},
    cancelled=True,
)
REDRIVEN = Job("main.redrive-1", {"m2": REFUSE}, dead={"m2": "invalid_request"})
JOBS = (MAIN, BROKEN, DOOMED, REDRIVEN)

"""The faults that the stand-in engine commits when a request's text asks for them.

A marker is `[[name]]`, `[[name=value]]` or `[[namexN]]` anywhere in the text.  With xN
only the first N executions of that very text are hit, counted across restarts of the
stand-in when it has a log.

    [[crash]]     vLLM's death: all in flight get 500, /health turns 503, exit status 0
    [[kill]]      gone at once, as by kill -9, no request answered
    [[freeze]]    from now on nothing is answered, though /health stays 200
    [[hang]]      this request is never answered
    [[slow=S]]    answered after S seconds
    [[NNN]]       answered with that HTTP status and vLLM's kind of error body
    [[reset]]     the connection is reset instead of an answer
    [[truncate]]  half of the answer, then the connection ends
    [[garbage]]   200 with a body that is no JSON
    [[empty]]     200 with no body
    [[pretty]]    the answer over several lines
    [[big=N]]     an answer with N bytes of text
"""

import re
from dataclasses import dataclass

_MARKER = re.compile(r"\[\[([a-z]+|[1-5]\d\d)(?:=([\d.]+))?(?:x(\d+))?\]\]")


@dataclass(frozen=True)
class Fault:
    """One marker, taken apart; `times` None means each time."""

    name: str
    value: float = 0.0
    times: int | None = None

    def hits(self, execution: int) -> bool:
        """Return whether it applies to the text's execution of that number, from 1."""
        return self.times is None or execution <= self.times

    @property
    def status(self) -> int | None:
        """The HTTP status to answer with, if the marker is one."""
        return int(self.name) if self.name.isdecimal() else None


def find_faults(text: str) -> list[Fault]:
    """Find the markers of a text, in their order."""
    if "[[" not in text:
        return []
    return [
        Fault(name, float(value or 0), int(times) if times else None)
        for name, value, times in _MARKER.findall(text)
    ]

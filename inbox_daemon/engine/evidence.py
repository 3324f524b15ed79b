"""What the replies of one server prove: that it answers requests, or that it is out.

Purpose: a router's health says nothing of its backends, nor does a list of models; only a
completed request proves a server, and only several different ones that fail, with none
answered between them, prove that it is out.
Invariants: pure, time is passed in; the same request failing again counts once.
"""

import math
from enum import StrEnum

from inbox_daemon.engine.base import NoReply, NoReplyKind, Reply

# So many different requests that fail, none answered between them, are more than chance; more
# where a share of them fails all the time, as with one of two backends gone: so many that it
# happens by chance once in a thousand times.
MASS, CHANCE = 3, 1e-3
# The share of failures follows the last so many replies.
_REMEMBERED = 32
# How long to wait for another answer before a failure is judged: for as long as two answers
# take, within these bounds.
PATIENCE_ANSWERS, LEAST_PATIENCE_S, MOST_PATIENCE_S = 2.0, 0.2, 30.0
_SMOOTHING = 0.1
_BUSY = frozenset({429, 503, 529})
_REQUEST_TIMEOUT = 408
# Whether these are the request's fault or the server's shows in what others get.
_EITHER = frozenset({402, 404, _REQUEST_TIMEOUT, 409, 425, 499})


class Sign(StrEnum):
    """What one reply says of the server.

    TROUBLE may be the request's doing as well, BUSY is the server's own word that it has no
    room; NOTHING says nothing of it, as a refusal of the request, or of us.
    """

    ANSWER = "answer"
    TROUBLE = "trouble"
    BUSY = "busy"
    NOTHING = "nothing"


def sign_of(reply: Reply | NoReply) -> Sign:
    """Return what a reply says of the server that sent it, or did not."""
    if isinstance(reply, NoReply):
        return Sign.NOTHING if reply.kind is NoReplyKind.TOO_LARGE else Sign.TROUBLE
    if 200 <= reply.status < 300:  # noqa: PLR2004 - the class of HTTP's success codes
        return Sign.ANSWER if reply.body.lstrip()[:1] == b"{" else Sign.TROUBLE
    if reply.status in _BUSY or (reply.status == _REQUEST_TIMEOUT and reply.early):
        return Sign.BUSY
    refusal = 400 <= reply.status < 500 and reply.status not in _EITHER  # noqa: PLR2004 - 4xx
    return Sign.NOTHING if refusal else Sign.TROUBLE


class Evidence:
    """The requests of one server since it was started, as far as they prove something.

    `proven` says whether it has answered one, `answered_at` when it last did (monotonic, s).
    """

    def __init__(self, share: float = 0.0) -> None:
        """Start with nothing known but what `share` of the requests failed before."""
        self.proven = False
        self.answered_at = -math.inf
        # The share of requests that fail while others are answered.
        self.share = share
        self._latency_s = 0.0
        self._open: dict[str, float] = {}
        self._failing: dict[str, Sign] = {}

    @property
    def patience_s(self) -> float:
        """How long another answer may take, before its lack means something."""
        wanted = PATIENCE_ANSWERS * self._latency_s
        return min(max(wanted, LEAST_PATIENCE_S), MOST_PATIENCE_S)

    @property
    def out(self) -> bool:
        """Whether nothing but a server that is out explains what failed.

        One that is only full may refuse many while it works on others, so its word that it
        has no room counts only where nothing is left that it could be working on.
        """
        trouble = sum(sign is Sign.TROUBLE for sign in self._failing.values())
        if not self._open:
            return len(self._failing) >= max(MASS, self.needed) or trouble >= max(2, self.needed)
        return trouble >= max(MASS, self.needed, len(self._open))

    @property
    def needed(self) -> int:
        """How many failures in a row are more than chance, by the share that fails always."""
        return math.ceil(math.log(CHANCE) / math.log(self.share)) if self.share > CHANCE else 1

    def sent(self, name: str, now: float) -> None:
        """Note a request by its name, sent at `now` in seconds of the monotonic clock."""
        self._open[name] = now

    def replied(self, name: str, sign: Sign, now: float) -> None:
        """Note what came back for a request."""
        sent_at = self._open.pop(name, now)
        if sign is Sign.ANSWER:
            latency_s = now - sent_at
            share = _SMOOTHING if self.proven else 1.0
            self._latency_s += share * (latency_s - self._latency_s)
            self.proven, self.answered_at = True, now
            for failed in [*(1.0 for _ in self._failing), 0.0]:
                self.share += (failed - self.share) / _REMEMBERED
            self._failing.clear()
        elif sign is not Sign.NOTHING:
            self._failing[name] = sign

    def dropped(self, name: str) -> None:
        """Forget a request that was given up by us."""
        self._open.pop(name, None)

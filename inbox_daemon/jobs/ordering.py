"""Order of work: in which order the requests of a chunk are sent.

Purpose: help the engine without changing any result.  Requests that begin with the same
long text follow each other, so that its KV cache still holds what they share; in a job's
last chunk those with the longest answers go first, so that the engine does not run one
long answer alone at the end.
Invariants: pure; the order is a permutation, and the input order where nothing is to be
gained; results are published in input order whatever is done here.
Known limits: a chunk at a time, so requests that share a text but lie further apart than
a chunk do not meet; the length of an answer is taken from the cap that the request sets.

Sources: vLLM's automatic prefix caching keeps blocks until they are the least recently
used (docs, "Automatic Prefix Caching"); longest processing time first, Graham 1969.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from inbox_daemon.request.endpoints import ENDPOINTS
from inbox_daemon.request.json_guard import holds_too_much

# Lengths, in bytes of the prompt, at which two requests are compared.  Below the first,
# some 250 tokens, sharing saves the engine less than it costs to look.
SHARED_BYTES = (1 << 10, 1 << 12, 1 << 14)
# Lines longer than this are not read twice; they stay where they are.
READ_BYTES = 1 << 18
# An answer without a cap may become as long as the context allows.
_UNCAPPED = 64


class Sketch(NamedTuple):
    """What the order needs of one request.

    `prefixes` holds a hash of the prompt's first bytes for each of SHARED_BYTES that it
    reaches; `length` the binary digits of the cap on its answer, in tokens.
    """

    prefixes: tuple[int, ...]
    length: int


_NOTHING = Sketch((), _UNCAPPED)


def sketch(line: bytes) -> Sketch:
    """Read what the order needs from a line; never an error, whatever it holds."""
    if len(line) >= READ_BYTES or holds_too_much(line):
        return _NOTHING
    try:
        request = orjson.loads(line)
        body, endpoint = request["body"], ENDPOINTS[request["url"]]
        prompt = orjson.dumps([body[part] for part in endpoint.prompt if part in body])
        caps = [body[name] for name in endpoint.caps if isinstance(body.get(name), int)]
        cap = caps[0] if caps else endpoint.cap
        length = _UNCAPPED if cap is None else max(0, cap).bit_length()
    except (ValueError, TypeError, KeyError, AttributeError):
        return _NOTHING
    return Sketch(tuple(hash(prompt[:n]) for n in SHARED_BYTES if len(prompt) >= n), length)


def arrange(sketches: Sequence[Sketch], *, long_first: bool) -> list[int]:
    """The order in which to send requests, as indices into `sketches`.

    Requests that share a prefix stand together, and among them those that share a longer
    one; a group stands where its first request stood.  With `long_first`, requests and
    groups with longer answers come earlier; "longer" is twice as long, because a cap
    says no more than that.
    """
    if not long_first and not any(found.prefixes for found in sketches):
        return list(range(len(sketches)))
    groups: list[dict[int, tuple[int, int]]] = [{} for _ in SHARED_BYTES]
    for index, (prefixes, length) in enumerate(sketches):
        rank = -length if long_first else 0
        for group, prefix in zip(groups, prefixes, strict=False):
            found = group.get(prefix)
            group[prefix] = (rank, index) if found is None else (min(rank, found[0]), found[1])

    def place(index: int) -> list[tuple[int, int]]:
        prefixes, length = sketches[index]
        shared = [group[prefix] for group, prefix in zip(groups, prefixes, strict=False)]
        return [*shared, (-length if long_first else 0, index)]

    return sorted(range(len(sketches)), key=place)


def order(lines: Iterable[bytes], *, long_first: bool) -> list[int]:
    """The order in which to send the requests of some lines, as indices into them."""
    # Where lengths do not count, a line too short to share anything need not be read.
    least = 0 if long_first else SHARED_BYTES[0]
    sketches = [sketch(line) if len(line) >= least else _NOTHING for line in lines]
    return arrange(sketches, long_first=long_first)

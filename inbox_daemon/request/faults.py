"""What is wrong with a request line, in the words of those who check it.

Purpose: the one exception that a bad line ends with, and its usual sentences.
Invariants: pure; a sender's own text gets into a message only through `quote`, so every
message and every path is printable ASCII and short, whatever the line held.
"""

import re

from inbox_daemon.contract.documents import Fault

_SHOWN = 60
# As config.Name has it: what can be written between quotes in TOML as it is.
_OPENABLE = re.compile(rf"[!#-\[\]-~]{{1,{_SHOWN}}}")
_PLAIN_KEY = re.compile(rf"[A-Za-z0-9_$-]{{1,{_SHOWN}}}", re.ASCII)


class LineFaultError(Exception):
    """A line that is no request; carries the Fault without its line number."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        """Keep the fault."""
        super().__init__(message)
        self.fault = Fault(code=code, message=message, param=param)


def quote(text: str) -> str:
    """Show a sender's text in printable ASCII, cut to about 60 characters."""
    shown = ascii(text[:_SHOWN])
    return shown if len(shown) <= _SHOWN + 2 else f"{shown[:_SHOWN]}...{shown[-1]}"


def key_path(path: str, key: str) -> str:
    """The path of an object's key; a key that is no plain word is quoted."""
    return f"{path}.{key if _PLAIN_KEY.fullmatch(key) else quote(key)}"


def wrong(path: str, must_be: str) -> LineFaultError:
    """A value of a kind that the engine cannot use."""
    return LineFaultError("invalid_request", f"{path} must be {must_be}", path)


def over_limit(path: str, what: str, limit: int, key: str) -> LineFaultError:
    """More of something than `key` of [limits.body] lets pass."""
    message = f"{path} has {what}; the limit is {limit} ({key} in [limits.body])"
    return LineFaultError("body_over_limit", message, path)


def closed(path: str, why: str, name: str) -> LineFaultError:
    """Something that the operator has to open by its name first, if it is one to open."""
    message = f"{path} is not let through: {why}; leave it out"
    if _OPENABLE.fullmatch(name):
        message += f', or ask the operator to open it with allow = ["{name}"] in [limits.body]'
    return LineFaultError("body_not_allowed", message, path)


def never(path: str, why: str) -> LineFaultError:
    """Something that no setting opens."""
    return LineFaultError("body_not_allowed", f"{path} is not let through: {why}", path)

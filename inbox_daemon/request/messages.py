"""Messages, items and their parts: what a model is shown.

Purpose: hold each content part to a known type and media to `data:` URLs or to the hosts
of `media_domains`.
Invariants: pure; a medium is found by its key, whatever type its part claims to have; an
http URL passes only in a form that all URL parsers read alike.
Known limits: what a `data:` URL holds is not decoded; a text's meaning is not looked at.
"""

import re

from inbox_daemon.contract.config import BodyConfig
from inbox_daemon.request.endpoints import (
    ITEM_KEYS,
    MEDIA_KEYS,
    MESSAGE_KEYS,
    PART_KEYS,
    REFUSED_PARTS,
    URL_KEYS,
)
from inbox_daemon.request.faults import (
    LineFaultError,
    closed,
    key_path,
    never,
    over_limit,
    quote,
    wrong,
)
from inbox_daemon.request.schemas import check_tools

# No user, no backslash, no white space, nothing that is not ASCII.
_HTTP = re.compile(r"https?://([A-Za-z0-9.-]{1,253})(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?")
_SCHEME_BYTES = 64
_UNKNOWN = "neither OpenAI nor vLLM documents it"


def are_plain(messages: object) -> bool:
    """Return whether messages have a role and texts each and nothing else, as most do."""
    if type(messages) is not list or not messages:
        return False
    try:
        for message in messages:
            content = message["content"]
            if type(content) is not str and not (
                type(content) is list and all(map(_is_text, content))
            ):
                return False
            if len(message) != 2 or type(message["role"]) is not str:  # noqa: PLR2004 - these two
                return False
    except (KeyError, TypeError):  # it has no such key, or is no object
        return False
    return True


class Contents:
    """The check of what one parameter shows the model; counts its media."""

    def __init__(self, rules: BodyConfig, size: int) -> None:
        """Take the rules, and the whole line's length in bytes."""
        self._rules = rules
        self._size = size
        self._media = 0

    def messages(self, path: str, value: object) -> None:
        """Check a conversation."""
        if not isinstance(value, list) or not value:
            raise wrong(path, "a list of at least one message")
        for number, message in enumerate(value):
            at = f"{path}[{number}]"
            if not isinstance(message, dict):
                raise wrong(at, "an object")
            self._known(at, message, MESSAGE_KEYS)
            if not isinstance(message.get("role"), str):
                raise wrong(f"{at}.role", "a string")
            self._content(f"{at}.content", message.get("content"))
            if message.get("tools") is not None:
                check_tools(f"{at}.tools", message["tools"], self._size, self._rules)

    def items(self, path: str, value: object) -> None:
        """Check the input of a response: a text, or a list of items."""
        if isinstance(value, str):
            return
        if not isinstance(value, list) or not value:
            raise wrong(path, "a string or a list of at least one item")
        for number, item in enumerate(value):
            at = f"{path}[{number}]"
            if not isinstance(item, dict):
                raise wrong(at, "an object")
            kind = item.get("type", "message")
            if not isinstance(kind, str):
                raise wrong(f"{at}.type", "a string")
            known = ITEM_KEYS.get(kind)
            if known is None:
                if kind not in self._rules.allow:
                    why = f"items of type {quote(kind)} need what only OpenAI's own servers have"
                    raise closed(f"{at}.type", why, kind)
                continue
            self._known(at, item, known)
            if kind == "message" and not isinstance(item.get("role"), str):
                raise wrong(f"{at}.role", "a string")
            for key in ("content", "output", "summary"):
                self._content(f"{at}.{key}", item.get(key))

    def scored(self, path: str, value: object) -> None:
        """Check what is scored: texts or multimodal contents, one or a list."""
        if not isinstance(value, list):
            self._scored(path, value)
            return
        for number, one in enumerate(value):
            self._scored(f"{path}[{number}]", one)

    def _scored(self, path: str, value: object) -> None:
        if isinstance(value, str):
            return
        if not isinstance(value, dict):
            raise wrong(path, "a string or an object with content")
        self._known(path, value, frozenset({"content"}))
        if not isinstance(value.get("content"), list):
            raise wrong(f"{path}.content", "a list of parts")
        self._content(f"{path}.content", value["content"])

    def _content(self, path: str, value: object) -> None:
        if value is None or isinstance(value, str):
            return
        if not isinstance(value, list):
            raise wrong(path, "a string or a list of parts")
        for number, part in enumerate(value):
            if not _is_text(part):
                self._part(f"{path}[{number}]", part)

    def _part(self, path: str, part: object) -> None:
        if not isinstance(part, dict):
            raise wrong(path, "a string or an object")
        kind = part.get("type")
        if not isinstance(kind, str):
            raise wrong(f"{path}.type", "a string")
        known = PART_KEYS.get(kind)
        if known is not None:
            self._known(path, part, known)
        elif kind not in self._rules.allow:
            why = REFUSED_PARTS.get(kind, f"parts of type {quote(kind)} are not known")
            raise closed(f"{path}.type", why, kind)
        if "text" in part and not isinstance(part["text"], str):
            raise wrong(f"{path}.text", "a string")
        for key in part.keys() & MEDIA_KEYS:
            self._medium(f"{path}.{key}", key, part[key])

    def _known(self, path: str, value: dict[str, object], known: frozenset[str]) -> None:
        if value.keys() <= known:
            return
        for key in sorted(value.keys() - known):
            if key not in self._rules.allow:
                raise closed(key_path(path, key), _UNKNOWN, key)

    # -- media --------------------------------------------------------------------------

    def _medium(self, path: str, key: str, value: object) -> None:
        if key == "file_id":
            if value is not None:
                raise never(path, "no files are kept here; send the file itself as a data: URL")
            return
        self._media += 1
        if self._media > self._rules.max_media:
            raise over_limit(path, f"medium {self._media}", self._rules.max_media, "max_media")
        if key in URL_KEYS:
            self._url(path, value)
        elif key == "file_data":
            _check_data(path, value)
        elif not isinstance(value, dict):
            raise wrong(path, "an object")
        else:  # input_audio or file, which hold the medium itself
            keys = frozenset({"data", "format", "file_data", "filename", "file_id"})
            self._known(path, value, keys)
            if value.get("file_id") is not None:
                self._medium(f"{path}.file_id", "file_id", value["file_id"])
            for inner in value.keys() & {"data", "file_data"}:
                _check_data(f"{path}.{inner}", value[inner])

    def _url(self, path: str, value: object) -> None:
        if isinstance(value, dict):
            self._known(path, value, frozenset({"url", "detail"}))
            path, value = f"{path}.url", value.get("url")
        if not isinstance(value, str):
            raise wrong(path, "a URL")
        if value.startswith("data:"):
            return
        found = _HTTP.fullmatch(value)
        if found is None:
            raise never(path, "it is neither a data: URL nor a plain http or https URL")
        host = found[1].lower()
        if host not in self._rules.media_domains:
            message = (
                f"{path} is not let through: it is fetched from {quote(host)}; send the medium as "
                "a data: URL, or ask the operator to add the host to media_domains in [limits.body]"
            )
            raise LineFaultError("body_not_allowed", message, path)


def _is_text(part: object) -> bool:
    """Return whether a part is a text and nothing else, as most are."""
    if type(part) is not dict:
        return type(part) is str
    return len(part) == 2 and part.get("type") == "text" and type(part.get("text")) is str  # noqa: PLR2004 - type and text


def _check_data(path: str, value: object) -> None:
    """Hold data to base64, bare or as a `data:` URL: nothing that an engine would fetch."""
    if not isinstance(value, str):
        raise wrong(path, "a string")
    if not value.startswith("data:") and ":" in value[:_SCHEME_BYTES]:
        raise never(path, "it is neither base64 nor a data: URL")

"""What of a request's body may reach the engine.

Purpose: hold a body to the parameters of its endpoint, to values that no engine chokes
on, and to the caps of [limits.body].
Invariants: pure; a body that passes has only known parameters, or such as the operator
opened by name; the first fault found is reported, with the path of what is wrong.  A refused
parameter that is null or false asks for nothing, and passes.
Known limits: values are checked for what can do harm, not for what the engine will
answer to; a parameter that was opened by name is passed on unchecked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from inbox_daemon.contract.config import NEVER, BodyConfig
from inbox_daemon.request.endpoints import ENDPOINTS, REFUSED, ParameterKind
from inbox_daemon.request.faults import LineFaultError, closed, key_path, never, over_limit, wrong
from inbox_daemon.request.messages import Contents, are_plain
from inbox_daemon.request.schemas import (
    check_format,
    check_structured,
    check_template_kwargs,
    check_text,
    check_tools,
)

_NONE = type(None)
_TYPES: dict[ParameterKind, frozenset[type]] = {
    ParameterKind.TEXT: frozenset({str, _NONE}),
    ParameterKind.NUMBER: frozenset({int, float, _NONE}),
    ParameterKind.INTEGER: frozenset({int, _NONE}),
    ParameterKind.SWITCH: frozenset({bool, _NONE}),
    ParameterKind.OBJECT: frozenset({dict, _NONE}),
    ParameterKind.ARRAY: frozenset({list, _NONE}),
    ParameterKind.CHOICE: frozenset({str, dict, _NONE}),
}
_WORDS: dict[ParameterKind, str] = {
    ParameterKind.TEXT: "a string",
    ParameterKind.NUMBER: "a number",
    ParameterKind.INTEGER: "a whole number",
    ParameterKind.SWITCH: "true or false",
    ParameterKind.OBJECT: "an object",
    ParameterKind.ARRAY: "a list",
    ParameterKind.CHOICE: "a string or an object",
}
# Kinds that have a check of their own, which a text always passes.
_TEXT_IS_GOOD = (
    ParameterKind.PROMPT,
    ParameterKind.EMBEDDED,
    ParameterKind.ITEMS,
    ParameterKind.SCORED,
)
_JSON_TYPES = (str, int, float, bool, _NONE, list, dict)
# The types of which any value is good for a kind, and holds no other value.
_SETTLING: dict[ParameterKind, frozenset[type]] = {
    **{kind: types - {list, dict} for kind, types in _TYPES.items()},
    **dict.fromkeys(_TEXT_IS_GOOD, frozenset({str})),
}


class _Usual(NamedTuple):
    """What makes a body of one endpoint a usual one, behind one look-up.

    `settled` names, by type, the parameters of which such a value needs no further check;
    `talks` those that may be plain messages; `needed` is a parameter that is all a body
    needs, and one that it never has where it needs more than one.
    """

    settled: dict[type, frozenset[str]]
    talks: frozenset[str]
    needed: str


_USUAL = {
    url: _Usual(
        settled={
            one: frozenset(
                name
                for name, kind in endpoint.parameters.items()
                if one in _SETTLING.get(kind, frozenset())
            )
            for one in _JSON_TYPES
        },
        talks=frozenset(
            name for name, kind in endpoint.parameters.items() if kind is ParameterKind.MESSAGES
        ),
        needed=min(endpoint.needed[0]) if len(endpoint.needed[0]) == 1 else "",
    )
    for url, endpoint in ENDPOINTS.items()
}
# The levels of a line whose body is all settled: line, body, messages, message, content, part.
SETTLED_DEPTH = 6

_MAX_TOKEN_ID = 1 << 31
_TOKEN_ID = re.compile(r"[0-9]{1,10}")
_MAX_REPETITION = 1024
_ENCODINGS = ("float", "base64", None)


@dataclass(slots=True)
class _Body:
    """One body under one set of rules; `size` is its line's length in bytes."""

    url: str
    values: dict[str, Any]
    size: int
    rules: BodyConfig


def unsettled(url: str, body: dict[str, Any]) -> list[str]:
    """Name the parameters that `check_unsettled` must look at, in their order.

    For most bodies there are none: their values are good by their types alone, and no list
    or object is in them but plain messages.  A name that the body lacks comes last, where
    it may lack what it needs.
    """
    settled, talks, needed = _USUAL[url]
    names = []
    for name, value in body.items():
        if name not in settled[type(value)] and not (name in talks and are_plain(value)):
            names.append(name)
    if needed not in body:
        names.append(needed)
    return names


def check_unsettled(
    url: str, body: dict[str, Any], names: list[str], size: int, rules: BodyConfig
) -> None:
    """Check what `unsettled` named; `size` is the length of the body's line in bytes.

    Raises LineFaultError: `body_not_allowed`, `body_over_limit` or `invalid_request`,
    whose param is the path of what is wrong, such as body.chat_template.
    """
    whole, endpoint = _Body(url, body, size, rules), ENDPOINTS[url]
    for name in names:
        if name in body:
            value = body[name]
            kind = endpoint.parameters.get(name)
            if kind is None:
                _check_refused(whole, name, value)
            elif kind in _TYPES:
                if type(value) not in _TYPES[kind]:
                    raise wrong(f"body.{name}", _WORDS[kind])
            else:
                _CHECKS[kind](whole, f"body.{name}", value)
        elif not any(needed <= body.keys() for needed in endpoint.needed):
            ways = " or ".join(" and ".join(sorted(needed)) for needed in endpoint.needed)
            message = f"a body for {url} must have {ways}"
            raise LineFaultError("invalid_request", message, f"body.{min(endpoint.needed[0])}")


def _check_refused(body: _Body, key: str, value: object) -> None:
    known = ENDPOINTS[body.url].refused.get(key) or REFUSED.get(key)
    if key in NEVER:
        if value not in (None, False):
            raise never(f"body.{key}", f"{NEVER[key]}; leave it out or set it to false")
    elif key in body.rules.allow or (known is not None and value in (None, False)):
        return
    else:
        why = known or f"neither OpenAI nor vLLM documents it for {body.url}"
        raise closed(key_path("body", key), why, key)


# -- numbers and lists ----------------------------------------------------------------


def _is_int(value: object) -> bool:
    return type(value) is int  # True is an int as well


def _check_count(body: _Body, path: str, value: object) -> None:
    """Check `n` or `best_of`: how many answers, alone and over all prompts."""
    if value is None:
        return
    if type(value) is not int or value < 1:
        raise wrong(path, "a whole number from 1")
    if value > body.rules.max_n:
        raise over_limit(path, f"the value {value}", body.rules.max_n, "max_n")
    prompts = body.values.get("prompt")
    many = len(prompts) if isinstance(prompts, list) and not all(map(_is_int, prompts)) else 1
    if many * value > body.rules.max_inputs:
        what = f"{value} answers to each of {many} prompts"
        raise over_limit(path, what, body.rules.max_inputs, "max_inputs")


def _check_logprobs(body: _Body, path: str, value: object) -> None:
    if value is None:
        return
    if type(value) is not int or value < 0:
        raise wrong(path, "a whole number from 0")
    if value > body.rules.max_logprobs:
        raise over_limit(path, f"the value {value}", body.rules.max_logprobs, "max_logprobs")


def _check_stop(body: _Body, path: str, value: object) -> None:
    texts = [value] if isinstance(value, str) else value
    _check_texts(body, path, texts, (body.rules.max_stop, "max_stop"))


def _check_words(body: _Body, path: str, value: object) -> None:
    _check_texts(body, path, value, (body.rules.max_bad_words, "max_bad_words"))


def _check_texts(body: _Body, path: str, value: object, limit: tuple[int, str]) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise wrong(path, "a list of strings that are not empty")
    if len(value) > limit[0]:
        raise over_limit(path, f"{len(value)} entries", *limit)
    longest = max(map(len, value), default=0)
    if longest > body.rules.max_stop_chars:
        cap = body.rules.max_stop_chars
        raise over_limit(path, f"an entry of {longest} characters", cap, "max_stop_chars")


def _check_token_ids(body: _Body, path: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(map(_is_int, value)):
        raise wrong(path, "a list of token ids, which are whole numbers")
    if len(value) > body.rules.max_token_ids:
        raise over_limit(path, f"{len(value)} ids", body.rules.max_token_ids, "max_token_ids")
    if value and not 0 <= min(value) <= max(value) < _MAX_TOKEN_ID:
        raise wrong(path, "a list of token ids, which are from 0 and below 2^31")


def _check_bias(body: _Body, path: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or not all(
        type(bias) in {int, float} for bias in value.values()
    ):
        raise wrong(path, "an object of token ids with a number each")
    if not all(name.isascii() and name.isdigit() and len(name) <= 10 for name in value):  # noqa: PLR2004 - 2^31 has ten digits
        raise wrong(path, "an object whose keys are token ids")
    if len(value) > body.rules.max_token_ids:
        raise over_limit(path, f"{len(value)} ids", body.rules.max_token_ids, "max_token_ids")


def _check_repetition(_body: _Body, path: str, value: object) -> None:
    """Check `repetition_detection`, which looks for every size of pattern at every token."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    if not all(type(size) is int and 0 <= size <= _MAX_REPETITION for size in value.values()):
        raise wrong(path, f"an object of whole numbers from 0 to {_MAX_REPETITION}")


def _check_encoding(_body: _Body, path: str, value: object) -> None:
    if value not in _ENCODINGS:
        raise wrong(path, "float or base64: the answer has to be JSON")


# -- what the model is shown ----------------------------------------------------------


def _check_messages(body: _Body, path: str, value: object) -> None:
    Contents(body.rules, body.size).messages(path, value)


def _check_items(body: _Body, path: str, value: object) -> None:
    Contents(body.rules, body.size).items(path, value)


def _check_scored(body: _Body, path: str, value: object) -> None:
    if isinstance(value, list) and len(value) > body.rules.max_inputs:
        raise over_limit(path, f"{len(value)} entries", body.rules.max_inputs, "max_inputs")
    Contents(body.rules, body.size).scored(path, value)


def _check_prompt(body: _Body, path: str, value: object) -> None:
    """Check texts or token ids, one or a list of them."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise wrong(path, "a string, or a list of strings or of token ids")
    kinds = set(map(type, value))
    if kinds == {int}:
        return
    if len(value) > body.rules.max_inputs:
        raise over_limit(path, f"{len(value)} entries", body.rules.max_inputs, "max_inputs")
    if kinds == {str}:
        return
    if kinds != {list} or not all(set(map(type, ids)) == {int} for ids in value):
        raise wrong(path, "a string, or a list of strings or of token ids")


def _check_embedded(body: _Body, path: str, value: object) -> None:
    """Check the input of an embedding, which vLLM also takes as one conversation."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        _check_messages(body, path, value)
    else:
        _check_prompt(body, path, value)


_Check = Callable[[_Body, str, object], None]


def _sized(check: Callable[[str, object, int, BodyConfig], None]) -> _Check:
    return lambda body, path, value: check(path, value, body.size, body.rules)


_CHECKS: dict[ParameterKind, _Check] = {
    ParameterKind.COUNT: _check_count,
    ParameterKind.LOGPROBS: _check_logprobs,
    ParameterKind.STOP: _check_stop,
    ParameterKind.WORDS: _check_words,
    ParameterKind.TOKEN_IDS: _check_token_ids,
    ParameterKind.BIAS: _check_bias,
    ParameterKind.REPETITION: _check_repetition,
    ParameterKind.ENCODING: _check_encoding,
    ParameterKind.MESSAGES: _check_messages,
    ParameterKind.PROMPT: _check_prompt,
    ParameterKind.EMBEDDED: _check_embedded,
    ParameterKind.ITEMS: _check_items,
    ParameterKind.SCORED: _check_scored,
    ParameterKind.TOOLS: _sized(check_tools),
    ParameterKind.FORMAT: _sized(check_format),
    ParameterKind.TEXT_FORMAT: _sized(check_text),
    ParameterKind.STRUCTURED: _sized(check_structured),
    ParameterKind.TEMPLATE_KWARGS: _sized(check_template_kwargs),
}

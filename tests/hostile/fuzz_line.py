"""A coverage-guided search for lines that the parser does not stand.

Run by `make fuzz`, or as `python tests/fuzz/fuzz_line.py CORPUS [libFuzzer's options]`.
Each input is a file of lines.  Half of the new inputs are made by changing bytes, half by
changing a line's JSON, with the words that the rules know.

What must hold for any bytes: a line gives a Request or a LineFaultError; a fault is
printable and short; a request that passed can be written for the engine and has the same
value there; nothing of it is fetched; the whole file gives a verdict.
"""

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris
import orjson

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

with atheris.instrument_imports(include=["inbox_daemon"]):
    from inbox_daemon.contract import config
    from inbox_daemon.contract.config import LimitsConfig
    from inbox_daemon.contract.documents import Fault
    from inbox_daemon.request import endpoints, validation
    from inbox_daemon.request.faults import LineFaultError
    from inbox_daemon.request.line import custom_id_of, engine_body, parse_request

LIMITS = LimitsConfig(max_line_bytes=1 << 16)
SHORT = 1_024
MEDIUM = "data:image/png;base64,AAAA"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a{2,3}$"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
PARTS = [
    {"type": "text", "text": "t"},
    {"type": "image_url", "image_url": {"url": MEDIUM}},
    {"type": "input_image", "image_url": MEDIUM},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "file", "file": {"file_data": MEDIUM, "filename": "f"}},
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "c"}],
        "n": 2,
        "stop": ["s"],
        "bad_words": ["b"],
        "logit_bias": {"5": 1.5},
        "tools": [TOOL],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "/v1/completions": {
        "prompt": ["a", "b"],
        "n": 3,
        "logprobs": 2,
        "stop_token_ids": [1],
        "structured_outputs": {"json": "{}", "choice": None},
        "repetition_detection": {"max_pattern_size": 4},
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": PARTS[:3]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": PARTS[:2]},
        ],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "tools": [{"type": "namespace", "name": "n", "tools": [TOOL]}],
    },
    "/v1/embeddings": {"input": [[1, 2], [3]], "encoding_format": "float"},
    "/v1/score": {"text_1": "a", "text_2": [{"content": PARTS[:2]}, "b"]},
    "/v1/rerank": {"query": "q", "documents": ["a", {"content": PARTS[:1]}], "top_n": 1},
}
WORDS = sorted(
    {
        *(name for each in endpoints.ENDPOINTS.values() for name in each.parameters),
        *endpoints.REFUSED,
        *config.NEVER,
        *(key for keys in endpoints.PART_KEYS.values() for key in keys),
        *(key for keys in endpoints.ITEM_KEYS.values() for key in keys),
        *endpoints.PART_KEYS,
        *endpoints.ITEM_KEYS,
        *endpoints.REFUSED_PARTS,
        *endpoints.REFUSED_TEMPLATE_KWARGS,
        *("custom_id", "method", "url", "body", "POST", "uuid", "$ref", "pattern", "schema"),
    }
)
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 0.5, 1e308, -0.0),
    *("", "\x00", "\x1b[31m", "\u2028", "é" * 80, "\U0001f600" * 80, "a" * 300),
    *(MEDIUM, "file:///etc/passwd", "http://host/x", "https://a@b\\c", "(a{999}){999}", "#/x"),
    *([], {}, [[]], [None], [1, "a"], PARTS, TOOL, SCHEMA),
]


def seeds() -> Iterator[bytes]:
    """One line for each endpoint, and some of what senders do."""
    lines = [
        orjson.dumps({"custom_id": f"c{n}", "method": "POST", "url": url, "body": body})
        for n, (url, body) in enumerate(BODIES.items())
    ]
    yield from lines
    yield b"\n".join(lines)
    yield lines[1] + b"\r\n\n \n" + lines[1]
    yield b"\xef\xbb\xbf" + lines[1]
    yield b"[" * 1_030


def main() -> None:
    """Search until told to stop; the first argument is the corpus, or one input to try again."""
    corpus = Path(sys.argv[1])
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()


# -- what must hold -----------------------------------------------------------------------


def check(data: bytes) -> None:
    """Hold one file to all that must hold."""
    for line in data.split(b"\n"):
        _check_line(line)
    lines = validation.read_lines(io.BytesIO(data), LIMITS.max_line_bytes)
    found = validation.validate_lines(lines, LIMITS, validation.Served(), keep_invalid=True)
    assert found.faults >= len(found.listed)
    for fault in found.listed:
        _check_fault(fault)


def _check_line(line: bytes) -> None:
    custom_id_of(line)
    try:
        request = parse_request(line, LIMITS)
    except LineFaultError as error:
        _check_fault(error.fault)
        return
    assert orjson.loads(engine_body(request, None)) == request.body
    sent = orjson.loads(engine_body(request, "m"))
    assert sent == {**request.body, "model": request.model or "m"}
    for name in (*config.NEVER, *endpoints.REFUSED):
        if name not in endpoints.ENDPOINTS[request.url].parameters:
            assert request.body.get(name) in (None, False), name
    for shown in ("messages", "input", "data_1", "data_2", "text_1", "text_2", "queries", "items"):
        _check_media(request.body.get(shown))
    if request.url == "/v1/rerank":
        _check_media([request.body["query"], request.body["documents"]])


def _check_fault(fault: Fault) -> None:
    for text in (fault.code, fault.message, fault.param or ""):
        assert text.isprintable(), text
        assert text.isascii(), text
        assert len(text) <= SHORT, text


def _check_media(shown: Any, key: str = "") -> None:  # noqa: ANN401 - JSON is any value
    """Look for anything to fetch, but in what a model is only told, such as a call's arguments."""
    if isinstance(shown, str) and key in endpoints.URL_KEYS:
        assert shown.startswith("data:"), shown
    elif isinstance(shown, list):
        for one in shown:
            _check_media(one, key)
    elif isinstance(shown, dict):
        for name, one in shown.items():
            if name in {"content", "output", "url", *endpoints.URL_KEYS}:
                _check_media(one, key if name == "url" else name)


# -- new inputs ---------------------------------------------------------------------------


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change an input: its bytes, or the JSON of one of its lines."""
    chance = random.Random(seed)
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    try:
        value = orjson.loads(lines[place])
    except orjson.JSONDecodeError:
        return bytes(atheris.Mutate(data, max_size))
    if chance.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    for _ in range(chance.randint(1, 3)):
        value = _changed(value, chance)
    try:
        lines[place] = orjson.dumps(value)
    except orjson.JSONEncodeError:  # too deep, or a number beyond 64 bits
        return data[:max_size]
    return b"\n".join(lines)[:max_size]


def _changed(value: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON is any value
    """A value with one of its nodes changed."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        return value | {key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return _replaced(value, chance)


def _replaced(value: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON is any value
    word, new = chance.choice(WORDS), chance.choice(VALUES)
    if isinstance(value, dict):
        rest = {key: one for key, one in value.items() if chance.random() < 0.9}
        return chance.choice([rest, value | {word: new}, rest | {word: value}, new])
    if isinstance(value, list):
        return chance.choice([value * 2, [*value, new], value[:-1], [value], new])
    return chance.choice([new, word, [value], {word: value}])


if __name__ == "__main__":
    main()

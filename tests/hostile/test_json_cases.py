r"""Hostile JSON: whatever a line holds, it is a request or has a fault, and nothing else.

The table below covers what the public JSONTestSuite covers (Nicolas Seriot, "Parsing JSON
is a Minefield"), each case written for this test: what RFC 8259 demands to be read, what it demands
to be refused, and what it leaves open.
"""

import io
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from builders import CHAT, limits, nested, request
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.names import escape
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.json_guard import parse_json
from inbox_daemon.request.line import Request, custom_id_of, engine_body, parse_request
from inbox_daemon.request.validation import Served, Validation, read_lines, validate_lines

# -- the table ----------------------------------------------------------------------

ACCEPTED: dict[str, bytes] = {
    # structure
    "empty list": b"[]",
    "empty object": b"{}",
    "list in list": b"[[]]",
    "spaces in an empty list": b"[ \t ]",
    "space before a list": b" [1]",
    "space after a list": b"[1] ",
    "every kind of white space": b" \t\r\n[\r\n1\t,\n 2 ]\r\n",
    "list of everything": b'[null, true, false, 0, "", {}, []]',
    "nulls": b"[null,null,null]",
    "bare text": b'"alone"',
    "bare empty text": b'""',
    "bare number": b"42",
    "bare negative number": b"-0.5e-3",
    "bare true": b"true",
    "bare false": b"false",
    "bare null": b"null",
    # objects
    "one pair": b'{"k":"v"}',
    "many pairs": b'{"a":1,"b":{"c":[2]},"d":null}',
    "empty key": b'{"":0}',
    "key with NUL escape": b'{"a\\u0000b":1}',
    "same key twice, other values": b'{"k":1,"k":2}',
    "same key twice, same value": b'{"k":1,"k":1}',
    "same key by escape": b'{"a":1,"\\u0061":2}',
    "spaces around a pair": b'{ "k" : 1 }',
    "line ends between pairs": b'{\n"k":1,\n"l":2\n}',
    "long text in an object": b'{"k":"' + b"x" * 5_000 + b'"}',
    # numbers
    "zero": b"0",
    "negative zero": b"-0",
    "negative zero with fraction": b"-0.0",
    "fraction": b"0.1",
    "negative integer": b"-17",
    "exponent": b"1e5",
    "large E": b"1E5",
    "positive exponent": b"1e+5",
    "negative exponent": b"1E-5",
    "zero to a power": b"0e7",
    "fraction and exponent": b"12.5e-2",
    "many digits of a fraction": b"0." + b"3" * 60,
    "tiny": b"-0." + b"0" * 70 + b"1",
    "largest signed 64 bit": b"9223372036854775807",
    "smallest signed 64 bit": b"-9223372036854775808",
    "largest unsigned 64 bit": b"18446744073709551615",
    "largest double": b"1.7976931348623157e308",
    "smallest double": b"5e-324",
    "space after a number": b"[1 ]",
    # texts
    "short escapes": b'"\\"\\\\\\/\\b\\f\\n\\r\\t"',
    "two escapes at once": b'"\\\\n"',
    "escaped letter": b'"\\u0041\\u00e9"',
    "escape in capitals": b'"\\u00E9\\uABCD"',
    "escaped NUL": b'"\\u0000"',
    "escaped control character": b'"\\u001f"',
    "escaped delete": b'"\\u007F"',
    "raw delete": b'"\x7f"',
    "two bytes": "é".encode().join([b'"', b'"']),
    "three bytes": "€".encode().join([b'"', b'"']),
    "four bytes": "𝄞".encode().join([b'"', b'"']),
    "surrogate pair": b'"\\uD834\\uDD1E"',
    "surrogate pair in small letters": b'"\\ud83d\\ude39"',
    "two surrogate pairs": b'"\\ud83d\\ude39\\ud83d\\udc8d"',
    "last code point": b'"\\uDBFF\\uDFFF"',
    "noncharacters, raw": "\ufdd0\uffff\U0001fffe\U0010ffff".encode().join([b'"', b'"']),
    "noncharacters, escaped": b'"\\uFDD0\\uFFFE\\uFFFF\\uD83F\\uDFFE"',
    "line separators, raw": "\u2028\u2029\u0085".encode().join([b'"', b'"']),
    "line separators, escaped": b'"\\u2028\\u2029"',
    "private use": "\ue000\U000f0000".encode().join([b'"', b'"']),
    "no-break space inside a text": "\u00a0".encode().join([b'"', b'"']),
    "byte order mark inside a text": "\ufeff".encode().join([b'"', b'"']),
    "zero width joiner, combining marks": "\u200de\u0301".encode().join([b'"', b'"']),
    "right to left": "\u202e".encode().join([b'"', b'"']),
    "comment inside a text": b'"/* no comment */ // none"',
    "escapes that are none": b'"\\\\u0022 \\\\x41"',
    "brackets inside a text": b'"' + b"[{" * 500 + b'"',
    "quotes inside a text": b'"\\"\\"\\""',
    "slash": b'"/"',
    # depth
    "nested to the limit": nested(60),
    "objects nested to the limit": b'{"a":' * 59 + b"{}" + b"}" * 59,
}

REJECTED: dict[str, bytes] = {
    # structure
    "nothing": b"",
    "a space": b" ",
    "byte order mark alone": b"\xef\xbb\xbf",
    "byte order mark before an object": b"\xef\xbb\xbf{}",
    "half a byte order mark": b"\xef\xbb{}",
    "UTF-16, little end": "[1]".encode("utf-16-le"),
    "UTF-16, big end": "[1]".encode("utf-16-be"),
    "UTF-16 with its mark": '["é"]'.encode("utf-16"),
    "open list": b"[",
    "open list with a comma": b"[1,",
    "open list after a text": b'["a"',
    "open object": b"{",
    "open object after a key": b'{"k"',
    "open object after a colon": b'{"k":',
    "open object after a value": b'{"k":1',
    "open object after a comma": b'{"k":1,',
    "closed list alone": b"]",
    "closed object alone": b"}",
    "list closed twice": b"[1]]",
    "object closed twice": b'{"k":1}}',
    "list closed as an object": b"[1}",
    "object closed as a list": b'{"k":1]',
    "two values": b"1 2",
    "two objects": b"{} {}",
    "object and a comma": b'{"k":1},',
    "object and a hash": b'{"k":1}#',
    "comma alone": b",",
    "comma first in a list": b"[,1]",
    "comma alone in a list": b"[,]",
    "comma last in a list": b"[1,]",
    "two commas in a list": b"[1,,2]",
    "two commas at a list's end": b"[1,,]",
    "no comma in a list": b"[1 2]",
    "colon in a list": b'["a":1]',
    "semicolon in a list": b"[1;2]",
    "brackets in a row": b"[][]",
    "angle brackets": b"<null>",
    "angle brackets in a list": b"[<null>]",
    "star": b"[*]",
    "letter": b"a",
    "at sign": b"@",
    "ampersand in an object": b'{"a":1&"b":2}',
    "comment after a value": b"[1]/*a*/",
    "comment between values": b'{"a":/*b*/1}',
    "open comment": b"[1]/*",
    "line comment": b"[1]//a",
    "hash comment": b"[1]#a",
    "vertical tab": b"[\x0b1]",
    "form feed": b"[\x0c1]",
    "no-break space": b"[\xc2\xa01]",
    "line separator between values": b"[\xe2\x80\xa81]",
    "word joiner": b"\xe2\x81\xa0[]",
    "full-width comma": "[1，2]".encode(),  # noqa: RUF001 - it looks like one and is none
    "NUL alone": b"\x00",
    "NUL after a value": b"[1]\x00",
    "NUL before a value": b"\x00[1]",
    "NUL between values": b"[1,\x002]",
    "delete between values": b"[1,\x7f2]",
    "escape code between values": b"[\x1b[31m1]",
    "backslash between values": b"[\\n]",
    "control characters": b"[\x01\x02]",
    # literals
    "NaN": b"NaN",
    "NaN in a list": b"[NaN]",
    "negative NaN": b"[-NaN]",
    "nan": b"[nan]",
    "Infinity": b"[Infinity]",
    "negative Infinity": b"[-Infinity]",
    "positive Infinity": b"[+Infinity]",
    "inf": b"[inf]",
    "undefined": b"[undefined]",
    "None": b"[None]",
    "True": b"[True]",
    "NULL": b"[NULL]",
    "half a true": b"[tru]",
    "half a false": b"[fals]",
    "half a null": b"[nul]",
    "true and more": b"[truee]",
    "two literals in one": b"[truefalse]",
    "cut literal": b"tr",
    # numbers
    "plus": b"[+1]",
    "two pluses": b"[++1]",
    "two minuses": b"[--1]",
    "minus alone": b"[-]",
    "minus and space": b"[- 1]",
    "minus and letters": b"[-foo]",
    "minus at the end": b"-",
    "leading zero": b"[01]",
    "negative leading zero": b"[-01]",
    "two zeros": b"[00]",
    "leading zero with fraction": b"[-01.5]",
    "no digit before the point": b"[.5]",
    "negative, no digit before the point": b"[-.5]",
    "no digit after the point": b"[1.]",
    "negative, no digit after the point": b"[-2.]",
    "point alone": b"[.]",
    "two points": b"[1.2.3]",
    "point and exponent": b"[1.e5]",
    "zero, point, exponent": b"[0.e1]",
    "exponent without digits": b"[1e]",
    "exponent with sign alone": b"[1e+]",
    "exponent with minus alone": b"[1e-]",
    "two exponents": b"[1e2e3]",
    "exponent with fraction": b"[1e2.5]",
    "exponent alone": b"[e5]",
    "large exponent letters twice": b"[1eE2]",
    "hexadecimal": b"[0x1F]",
    "hexadecimal, odd": b"[0x]",
    "octal": b"[0o7]",
    "binary": b"[0b1]",
    "number and letter": b"[1a]",
    "number, space, digit": b"[1 000]",
    "number with underscore": b"[1_000]",
    "number with a thousands mark": b"[1'000]",
    "number and a star": b"[2*3]",
    "number and minus": b"[1-2]",
    "digits of another script": "[\u0661]".encode(),
    "full-width digit": "[１]".encode(),  # noqa: RUF001 - it looks like one and is none
    "number and NUL": b"[1\x00]",
    "number and bad byte": b"[1\xe5]",
    "number cut by a bad byte": b"[123\xff456]",
    "letter for a digit": b"[1ea]",
    "infinite by exponent": b"[1e400]",
    "negatively infinite by exponent": b"[-1e9999]",
    "infinite by digits": b"1" + b"0" * 400,
    "infinite by a huge exponent": b"[1e" + b"9" * 50 + b"]",
    # texts
    "open text": b'"',
    "open text with letters": b'["abc',
    "open text after an escape": b'"\\',
    "quote escaped at the end": b'"\\"',
    "single quotes": b"['a']",
    "one single quote": b"[']",
    "back quotes": b"[`a`]",
    "no quotes": b"[abc]",
    "typographic quotes": "[“a”]".encode(),
    "raw line end": b'"a\nb"',
    "raw carriage return": b'"a\rb"',
    "raw tab": b'"a\tb"',
    "raw NUL": b'"a\x00b"',
    "raw escape character": b'"\x1b[0m"',
    "raw unit separator": b'"\x1f"',
    "unknown escape": b'"\\a"',
    "escaped quote mark": b'"\\\'"',
    "escaped zero": b'"\\0"',
    "hexadecimal escape": b'"\\x41"',
    "octal escape": b'"\\101"',
    "escape in braces": b'"\\u{41}"',
    "large U": b'"\\U00000041"',
    "escape and NUL": b'"\\\x00"',
    "escape and a letter of two bytes": '"\\é"'.encode(),
    "escape with no digits": b'"\\u"',
    "escape with one digit": b'"\\u0"',
    "escape with three digits": b'"\\u00A"',
    "escape with a letter that is no digit": b'"\\u00AG"',
    "escape with a space": b'"\\u 123"',
    "escape with a sign": b'"\\u-123"',
    "escape cut by the quote": b'"\\u12"',
    "escaped line end": b'"a\\\nb"',
    "escaped slash without a text": b"\\/",
    "text with a comma outside": b'["a",\n',
    "text and letters": b'["a"b]',
    "text and text": b'["a" "b"]',
    "text twice at the top": b'"a" "b"',
    # surrogates
    "high surrogate alone": b'"\\uD800"',
    "low surrogate alone": b'"\\uDC00"',
    "surrogates the wrong way": b'"\\uDE39\\uD83D"',
    "two high surrogates": b'"\\uD83D\\uD83D"',
    "high surrogate and a letter": b'"\\uD834x"',
    "high surrogate and an escape": b'"\\uD800\\n"',
    "high surrogate and an escaped letter": b'"\\uD834\\u0041"',
    "high surrogate, cut low one": b'"\\uD800\\uD8"',
    "high surrogate, low one not escaped": b'"\\uD800uDC00"',
    "high surrogate, low one with a bad digit": b'"\\uD834\\uDd1G"',
    "pair and half a pair": b'"\\uD83D\\uDE39\\uD83D"',
    "surrogate as a key": b'{"\\uDFAA":0}',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "surrogate pair in UTF-8": b'"\xed\xa0\xb4\xed\xb4\x9e"',
    # bytes
    "byte that is never UTF-8": b'"\xff"',
    "byte of Latin-1": b'"\xe9"',
    "continuation alone": b'"\x80"',
    "continuation missing": b'"\xe2\x82"',
    "continuation missing, text goes on": b'"\xe2\x82x"',
    "overlong slash": b'"\xc0\xaf"',
    "overlong slash, three bytes": b'"\xe0\x80\xaf"',
    "overlong slash, four bytes": b'"\xf0\x80\x80\xaf"',
    "overlong NUL": b'"\xc0\x80"',
    "overlong, six bytes": b'"\xfc\x83\xbf\xbf\xbf\xbf"',
    "beyond the last code point": b'"\xf4\x90\x80\x80"',
    "five bytes": b'"\xf8\x88\x80\x80\x80"',
    "bad byte as a key": b'{"\xb9":0}',
    "bad byte outside": b"\xe5",
    "bad byte in a list": b"[a\xe5]",
    "text of a picture": b"\x89PNG\r\n\x1a\n",
    "compressed": b"\x1f\x8b\x08\x00\x00\x00",
    # objects
    "number as a key": b"{1:1}",
    "literal as a key": b"{null:1}",
    "object as a key": b"{{}:1}",
    "list as a key": b"{[]:1}",
    "key without quotes": b"{k:1}",
    "key with single quotes": b"{'k':1}",
    "key without a value": b'{"k"}',
    "key, colon, no value": b'{"k":}',
    "no key": b"{:1}",
    "two colons": b'{"k"::1}',
    "equals": b'{"k"=1}',
    "arrow": b'{"k"=>1}',
    "comma for a colon": b'{"k",1}',
    "key twice": b'{"k" "l":1}',
    "comma first": b'{,"k":1}',
    "comma last": b'{"k":1,}',
    "commas last": b'{"k":1,,}',
    "comma alone in an object": b"{,}",
    "no comma between pairs": b'{"a":1 "b":2}',
    "semicolon between pairs": b'{"a":1;"b":2}',
    "emoji between pairs": '{"a":1🇨🇭"b":2}'.encode(),
    "value without a key": b"{1}",
    "text for an object's rest": b'{"a":1,"b"}',
    "comment last": b'{"a":1}/**/',
    "comment and a slash last": b'{"a":1}/**//',
    "dots": b'{"a":...}',
    "pasted twice": b'{"a":1}{"a":1}',
    "quoted twice": b'{""k"":1}',
    # depth
    "open lists without end": b"[" * 100_000,
    "open objects without end": b'{"a":' * 50_000,
    "open lists of objects without end": b'[{"a":' * 20_000,
    "closed too often": b"[" * 50 + b"]" * 51,
    "too deep by one": nested(65),
    "too deep to be read": nested(5_000),
    "too deep and wide": b"[" * 70 + b"]" * 69 + b",1]",
}

# RFC 8259 leaves these open; here they are read, if with a loss.
EITHER: dict[str, bytes] = {
    "integer past 64 bits": b"[18446744073709551616]",
    "negative integer past 64 bits": b"[-9223372036854775809]",
    "integer of 100 digits": b"[" + b"9" * 100 + b"]",
    "fraction of 5,000 digits": b"[0." + b"1" * 5_000 + b"]",
    "too small for a double": b"[1e-400]",
    "negative and too small": b"[-123e-10000000]",
    "huge negative exponent": b"[0.4e-" + b"9" * 40 + b"]",
    "zero with a huge exponent": b"[0e" + b"9" * 40 + b"]",
}

ALL = {**ACCEPTED, **REJECTED, **EITHER}


def outcome(line: bytes, **changed: int) -> Request | Fault:
    """What a line gives: a request or a fault, and no other exception."""
    try:
        return parse_request(line, limits(**changed))
    except LineFaultError as error:
        check_shown(error.fault)
        return error.fault


def check_shown(fault: Fault) -> None:
    """A fault can be put into any log or document as it is."""
    for text in (fault.code, fault.message, fault.param or ""):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 1_024


def inside(value: bytes) -> bytes:
    """A request in whose body that value stands, whether it is one or not."""
    line = request("a", CHAT, metadata={"v": "HERE"})
    return line.replace(b'"HERE"', value)


@pytest.mark.parametrize("name", [*ACCEPTED, *EITHER])
def test_what_is_json_is_read(name: str) -> None:
    """What the standard allows is read, and is a request where it stands in one."""
    parse_json(ALL[name], 64)
    found = outcome(inside(ALL[name]))
    assert isinstance(found, Request)
    sent = orjson.loads(engine_body(found, None))
    assert sent == found.body


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_no_json_is_refused(name: str) -> None:
    """What the standard forbids is a fault, alone and inside of a request."""
    with pytest.raises(LineFaultError) as caught:
        parse_json(REJECTED[name], 64)
    assert caught.value.fault.code in {"invalid_json", "too_deep", "too_many_values"}
    check_shown(caught.value.fault)
    if b"\n" not in REJECTED[name]:
        assert isinstance(outcome(inside(REJECTED[name])), Fault)


@pytest.mark.parametrize("name", ALL)
def test_a_case_alone_is_no_request(name: str) -> None:
    """None of the cases is a request by itself, and each is refused in printable words."""
    assert isinstance(outcome(ALL[name]), Fault)


def test_a_line_cut_anywhere_is_refused() -> None:
    """No beginning of a request is a request."""
    line = inside('{"é\\u0000":[1.5e3,true,"\\ud83d\\ude39"]}'.encode())
    assert isinstance(outcome(line), Request)
    for end in range(len(line)):
        assert isinstance(outcome(line[:end]), Fault), line[:end]


def test_a_line_with_any_byte_changed_gives_one_of_the_two() -> None:
    """Each byte replaced by each of some that matter gives a request or a fault."""
    line = inside(b'{"k":[-1.5e3,"\\n\xc3\xa9"]}')
    for place in range(len(line)):
        for byte in b'\x00\n"\\{}[],:-0eu\x80\xff':
            outcome(line[:place] + bytes([byte]) + line[place + 1 :])


# -- numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "sent"),
    [
        (b"9007199254740993", b"9007199254740993"),
        (b"18446744073709551615", b"18446744073709551615"),
        (b"-9223372036854775808", b"-9223372036854775808"),
        (b"123456789012345678901234567890", b"1.2345678901234568e+29"),
        (b"0.1", b"0.1"),
        (b"-0.0", b"-0.0"),
        (b"1E2", b"100.0"),
        (b"1e-400", b"0.0"),
    ],
)
def test_what_becomes_of_a_number_is_known(number: bytes, sent: bytes) -> None:
    """Integers keep 64 bits; what is beyond, or a fraction, is sent as the nearest double."""
    found = outcome(inside(number))
    assert isinstance(found, Request)
    assert b'"metadata":{"v":' + sent + b"}" in engine_body(found, None)


@pytest.mark.parametrize("name", ["n", "max_tokens", "seed", "top_k"])
@pytest.mark.parametrize("number", [b"1e30", b"18446744073709551616", b"1" + b"0" * 300])
def test_a_number_beyond_64_bits_is_no_count(name: str, number: bytes) -> None:
    """Where a whole number is asked for, one that lost its digits is refused."""
    line = request("a", CHAT, **{name: 7}).replace(b":7", b":" + number)
    found = outcome(line)
    assert isinstance(found, Fault)
    assert found.param == f"body.{name}"


# -- keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (b'"stream":true', b'"stream":false'),
        (b'"n":1000000', b'"n":1'),
        (b'"messages":[]', b'"messages":[{"role":"user","content":"hi"}]'),
        (b'"chat_template":"{{1}}"', b'"chat_template":null'),
        (b'"\\u0073tream":true', b'"stream":null'),
    ],
)
def test_of_two_equal_keys_the_one_that_was_checked_is_sent(bad: bytes, good: bytes) -> None:
    """Nothing can be hidden from the check by writing a key twice."""
    start = b'{"custom_id":"a","url":"/v1/chat/completions","body":{'
    message = b'"messages":[{"role":"user","content":"hi"}],'
    found = outcome(start + message + bad + b"," + good + b"}}")
    assert isinstance(found, Request)
    assert b"true" not in engine_body(found, None)
    assert isinstance(outcome(start + message + good + b"," + bad + b"}}"), Fault)


def test_the_last_of_two_bodies_counts() -> None:
    """Two bodies in a line are one, the last, which is the one that is checked."""
    line = request("a", CHAT)[:-1] + b',"body":{"stream":true}}'
    found = outcome(line)
    assert isinstance(found, Fault)
    assert found.param == "body.stream"


# -- nothing gets out unescaped -----------------------------------------------------

NASTY = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x00",
    "\u202egnp.exe",
    "\u2028",
    "\x85",
    "<script>alert(1)</script>\n",
    "a\r\nERROR forged=1",
    "\ufeff",
    "\U000e0041",
    "é" * 600,
]


@pytest.mark.parametrize("text", NASTY)
def test_a_senders_text_is_escaped_wherever_it_may_be_shown(text: str) -> None:
    """As a key, an id, a URL, a model or a role's neighbour, a text comes back printable."""
    lines: list[dict[str, Any]] = [
        {"custom_id": "a", "url": CHAT, "body": {text: 1}},
        {"custom_id": "a", "url": text, "body": {}},
        {"custom_id": "a", "url": CHAT, "body": {}, text: 1},
        {"custom_id": text * 600, "url": CHAT, "body": {}},
        {"custom_id": "a", "url": CHAT, "method": text, "body": {}},
        {"custom_id": "a", "url": CHAT, "body": {"messages": [{"role": "user", text: 1}]}},
        {
            "custom_id": "a",
            "url": CHAT,
            "body": {"messages": [{"role": "user", "content": [{"type": text}]}]},
        },
        {"custom_id": "a", "url": CHAT, "body": {"messages": [], "tools": [{"type": text}]}},
        {"custom_id": "a", "url": "/v1/responses", "body": {"input": [{"type": text}]}},
    ]
    for line in lines:
        assert isinstance(outcome(orjson.dumps(line)), Fault)
    found = check_file(orjson.dumps({**lines[0], "body": {"model": text}}))
    for fault in found.listed:
        check_shown(fault)


@pytest.mark.parametrize("text", NASTY)
def test_a_name_is_escaped(text: str) -> None:
    """A file's name, which may hold anything but a slash and NUL, is shown as ASCII."""
    shown = escape(text)
    assert shown.isascii()
    assert shown.isprintable()


# -- whole files --------------------------------------------------------------------


def check_file(data: bytes, **changed: int) -> Validation:
    """The validator's finding on some bytes."""
    rules = limits(**changed)
    lines = read_lines(io.BytesIO(data), rules.max_line_bytes)
    found = validate_lines(lines, rules, Served(names=frozenset({"m"})), keep_invalid=True)
    for fault in found.listed:
        check_shown(fault)
    return found


def codes(found: Validation) -> list[tuple[str, int | None]]:
    """The code and the line of each fault."""
    return [(fault.code, fault.line) for fault in found.listed]


GOOD = [request(f"r{number}", CHAT, model="m") for number in range(3)]


@pytest.mark.parametrize(
    ("data", "requests", "faults"),
    [
        (b"\r\n".join([*GOOD, b""]), 3, []),
        (b"\n".join(GOOD), 3, []),
        (b"\n\n \n".join(GOOD) + b"\n\t\n", 3, []),
        (b"\r".join(GOOD), 1, [("invalid_json", 1)]),
        (b"\xef\xbb\xbf" + b"\n".join(GOOD), 3, [("invalid_json", 1)]),
        (b"\n".join(GOOD) + b"\n\x00\n", 4, [("invalid_json", 4)]),
        (b"\x00" * 100, 1, [("invalid_json", 1)]),
        ("\n".join(line.decode() for line in GOOD).encode("utf-16"), 3, None),
        (b"\n".join(GOOD)[:-1], 3, [("invalid_json", 3)]),
        (b"\n" * 1_000_000, 0, [("empty", None)]),
        (b"\n" * 1_000_000 + GOOD[0], 1, []),
        (b"\n" * 1_000_000 + b"x", 1, [("invalid_json", 1_000_001)]),
    ],
    ids=[
        *("CRLF", "no final newline", "blank lines", "CR alone", "byte order mark", "NUL"),
        *("NULs alone", "UTF-16", "cut", "a million empty lines", "and a request", "and a letter"),
    ],
)
def test_a_file_of_an_odd_make_gets_a_verdict(
    data: bytes, requests: int, faults: list[tuple[str, int | None]] | None
) -> None:
    """Each line is read for itself, and a fault names the line as an editor counts."""
    found = check_file(data)
    assert found.requests == requests
    if faults is None:
        assert found.faults == requests
    else:
        assert codes(found) == faults


def test_random_bytes_get_a_verdict() -> None:
    """A thousand files of noise, of JSON's own characters for the most part, harm nothing."""
    chance = random.Random(7)
    alphabet = b'{}[]",:\\u0019eE+-.truefalsnl \t\r\n\x00\x80\xff'
    for _ in range(1_000):
        check_file(bytes(chance.choices(alphabet, k=chance.randrange(200))))


# -- memory -------------------------------------------------------------------------


def bomb(unit: bytes, size: int) -> bytes:
    """A request of about so many bytes that holds a list of this again and again."""
    return inside(b"[" + (unit * (size // len(unit)))[:-1] + b"]")


SIZE = 1 << 22
BOMBS: dict[str, bytes] = {
    "lists": b"[],",
    "objects": b"{},",
    "pairs": b'{"a":0},',
    "lists in lists": b"[[]],",
    "fractions": b"0.5,",
    "short texts": b'"ab",',
    "numbers": b"999,",
    "escapes": b'"\\n\\n",',
    "emoji": '"😀",'.encode(),
}


@pytest.mark.parametrize("name", ["lists", "objects", "pairs", "lists in lists"])
def test_a_line_that_would_take_far_more_than_its_bytes_is_refused(name: str) -> None:
    """Empty lists and objects, which grow thirty-fold, are counted before they are read."""
    found = outcome(bomb(BOMBS[name], 1 << 20))
    assert isinstance(found, Fault)
    assert found.code == "too_many_values"
    assert custom_id_of(bomb(BOMBS[name], 1 << 20)) is None


@pytest.mark.parametrize("text", [b"[{" * 200_000, b'\\"[' * 200_000, b"\\\\{" * 200_000])
def test_brackets_inside_a_text_are_no_values(text: bytes) -> None:
    """A prompt may be full of brackets, quotes and backslashes, as code and data are."""
    assert isinstance(outcome(inside(b'"' + text + b'"')), Request)


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 400_000, b'"\\' * 400_000, b'"' * 400_000])
def test_counting_is_not_slowed_by_texts_that_do_not_end(tail: bytes) -> None:
    """Quotes that are never closed cost one pass and no more; this ends at once or never."""
    assert isinstance(outcome(b"[" * 70_000 + tail), Fault)


WATCHED = """
import re, sys
from pathlib import Path
from inbox_daemon.contract.config import LimitsConfig
from inbox_daemon.request.validation import Served, validate_file
limits = LimitsConfig(max_line_bytes=int(sys.argv[2]))
found = validate_file(Path(sys.argv[1]), limits, Served(), keep_invalid=True)
# Not ru_maxrss: Linux starts it at the size of the process that forked this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(found.requests, found.faults, peak[1])
"""


def memory_of(path: Path, max_line_bytes: int) -> tuple[int, int, int]:
    """Requests, faults and the most bytes of memory of a process that checks a file."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, path, str(max_line_bytes)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    requests, faults, kibibytes = map(int, done.stdout.split())
    return requests, faults, kibibytes << 10


def allowed(max_line_bytes: int) -> int:
    """What checking a file may take: twenty times its longest line, and 100 MiB."""
    return 20 * max_line_bytes + (100 << 20)


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_within_its_bound(name: str, tmp_path: Path) -> None:
    """Whatever a line of the largest length holds, reading it takes a known multiple."""
    path = tmp_path / "bomb.jsonl"
    line = bomb(BOMBS[name], SIZE)
    path.write_bytes(line + b"\n" + line + b"\n")
    requests, _, used = memory_of(path, len(line))
    assert requests == 2
    assert used <= allowed(len(line))


def many_long_ids() -> Iterator[bytes]:
    """As many requests as a job may have, with the longest ids that there are."""
    for number in range(50_000):
        yield request("😀" * 500 + str(number)) + b"\n"


def many_faults() -> Iterator[bytes]:
    """As many lines, none of which is a request."""
    for number in range(50_000):
        yield orjson.dumps({"custom_id": str(number), "url": CHAT, "body": {"\x1b" * 99: 1}})
        yield b"\n"


@pytest.mark.slow
@pytest.mark.parametrize("lines", [many_long_ids, many_faults], ids=["ids", "faults"])
def test_memory_does_not_grow_with_the_lines(lines: Any, tmp_path: Path) -> None:  # noqa: ANN401 - a function
    """As many lines as a job may have, each with the longest id or a fault, take no more."""
    path = tmp_path / "many.jsonl"
    with path.open("wb") as file:
        file.writelines(lines())
    requests, _, used = memory_of(path, 1 << 20)
    assert requests == 50_000
    assert used <= allowed(1 << 20)


def test_a_line_of_200_mb_costs_no_memory(tmp_path: Path) -> None:
    """What is over the limit is skipped and never held, and the line after it is read."""
    path = tmp_path / "long.jsonl"
    path.touch()
    os.truncate(path, 200 << 20)
    with path.open("ab") as file:
        file.write(b"\n" + GOOD[0] + b"\n")
    requests, faults, used = memory_of(path, 1 << 20)
    assert (requests, faults) == (2, 1)
    assert used <= allowed(1 << 20)

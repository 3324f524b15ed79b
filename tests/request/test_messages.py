"""Messages, items and media: found wherever they are, and held to the hosts."""

from typing import Any

import pytest

from bodies import (
    DATA,
    EMBEDDINGS,
    NOT_ALLOWED,
    RERANK,
    RESPONSES,
    SCORE,
    chat_part,
    check,
    fault_of,
    said,
)
from builders import CHAT

# -- media --------------------------------------------------------------------------

URL = "https://pics.example/a.png?x=1"
MEDIA = [
    chat_part({"type": "image_url", "image_url": {"url": URL}}),
    chat_part({"type": "image_url", "image_url": URL}),
    chat_part({"type": "video_url", "video_url": {"url": URL}}),
    chat_part({"type": "audio_url", "audio_url": {"url": URL}}),
    chat_part({"type": "input_image", "image_url": URL}),
    {"messages": [{"role": "tool", "content": [{"type": "input_file", "file_url": URL}]}]},
]


@pytest.mark.parametrize("body", MEDIA)
def test_media_of_a_host_need_the_host_named(body: dict[str, Any]) -> None:
    """Nothing is fetched from anywhere unless the operator lists the host."""
    fault = fault_of(CHAT, body)
    assert fault.code == NOT_ALLOWED
    assert "media_domains in [limits.body]" in fault.message
    check(CHAT, body, media_domains=["pics.example"])
    assert said(CHAT, body, media_domains=["example", "s.example"])[0] == NOT_ALLOWED


def test_media_are_found_in_every_endpoint_that_takes_them() -> None:
    """Responses, what functions gave, embeddings and scores are looked through as chats are."""
    image = {"type": "input_image", "image_url": URL, "detail": "auto"}
    part = {"type": "image_url", "image_url": {"url": URL}}
    found = [
        said(RESPONSES, {"input": [{"role": "user", "content": [image]}]}),
        said(RESPONSES, {"input": [{"type": "function_call_output", "output": [image]}]}),
        said(EMBEDDINGS, {"messages": [{"role": "user", "content": [part]}]}),
        said(EMBEDDINGS, {"input": [{"role": "user", "content": [part]}]}),
        said(SCORE, {"data_1": {"content": [part]}, "data_2": "x"}),
        said(RERANK, {"documents": ["x", {"content": [part]}]}),
    ]
    assert found == [
        (NOT_ALLOWED, "body.input[0].content[0].image_url"),
        (NOT_ALLOWED, "body.input[0].output[0].image_url"),
        (NOT_ALLOWED, "body.messages[0].content[0].image_url.url"),
        (NOT_ALLOWED, "body.input[0].content[0].image_url.url"),
        (NOT_ALLOWED, "body.data_1.content[0].image_url.url"),
        (NOT_ALLOWED, "body.documents[1].content[0].image_url.url"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "ftp://pics.example/a",
        "gopher://pics.example/a",
        "https://user@pics.example/a",
        "https://pics.example\\@evil.example/",
        "https://pics.example\\.evil.example/",
        "https://evil.example#@pics.example/",
        "https://pics.example:80@evil.example/",
        "https://pics.example%2eevil.example/",
        "https://pics.example\n.evil.example/",
        "https://pics.example /a",
        " https://pics.example/a",
        "https:pics.example/a",
        "https:///pics.example/a",
        "https://[::1]/a",
        "https://pics.example。evil.example/",
        "https://evil.example/https://pics.example/",
        "https://evil.example?x=https://pics.example/",
        "https://pics.example.evil.example/",
        "https://notpics.example/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:8000/",
        "DATA:image/png;base64,AAAA",
        "",
    ],
)
def test_only_a_plain_url_of_a_listed_host_is_fetched(url: str) -> None:
    """No other scheme and no spelling that URL parsers read differently gets through."""
    body = chat_part({"type": "image_url", "image_url": {"url": url}})
    where = "body.messages[1].content[1].image_url.url"
    assert said(CHAT, body, media_domains=["pics.example"]) == (NOT_ALLOWED, where)


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "text", "text": "t", "image_url": {"url": "http://x/"}}, "image_url"),
        ({"type": "text", "text": "t", "uuid": "u", "image_url": "http://x/"}, "image_url"),
        ({"type": "image_url", "image_url": DATA, "video_url": "file:///x"}, "video_url"),
    ],
)
def test_a_medium_in_another_parts_clothes_is_found(part: dict[str, Any], where: str) -> None:
    """The key that an engine would look at counts, whatever type the part claims to have."""
    assert said(CHAT, chat_part(part)) == (NOT_ALLOWED, f"body.messages[1].content[1].{where}")
    opened = ["uuid", "image_url", "video_url"]
    assert said(CHAT, chat_part(part), allow=opened)[0] == NOT_ALLOWED


def test_a_part_that_was_opened_still_has_its_media_looked_at() -> None:
    """Opening an unknown type of part opens no way to fetch anything."""
    part = {"type": "hologram", "video_url": "http://x/"}
    assert said(CHAT, chat_part(part), allow=["hologram"])[0] == NOT_ALLOWED


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "http://x/a.wav", "format": "wav"}},
        {"type": "file", "file": {"file_data": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_file", "file_data": "https://x/y"},
    ],
)
def test_a_files_data_are_in_the_request(part: dict[str, Any]) -> None:
    """Neither a place to fetch a file from nor the id of an upload stands in for its bytes."""
    assert said(CHAT, chat_part(part))[0] == NOT_ALLOWED

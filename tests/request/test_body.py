"""What of a request's body may reach the engine."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodies import (
    DATA,
    EMBEDDINGS,
    NOT_ALLOWED,
    OVER,
    RERANK,
    RESPONSES,
    SCORE,
    WRONG,
    chat_part,
    check,
    fault_of,
    json_schema,
    said,
    tool,
)
from builders import BODIES, CHAT, limits, nested, request
from inbox_daemon.contract.config import BodyConfig
from inbox_daemon.contract.documents import URLS
from inbox_daemon.request import endpoints
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import parse_request

COMPLETIONS = "/v1/completions"


# -- what passes --------------------------------------------------------------------


@pytest.mark.parametrize("url", URLS)
def test_the_least_that_an_endpoint_needs_is_enough(url: str) -> None:
    """A body with nothing but what is to be answered passes."""
    check(url, {})


SAMPLING = {
    "temperature": 0.7,
    "top_p": 1,
    "frequency_penalty": 0.1,
    "presence_penalty": -1,
    "max_tokens": 9,
    "seed": -3,
    "n": 2,
    "stop": ["a", "b"],
    "logit_bias": {"50256": -100},
    "top_k": -1,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "length_penalty": 1.0,
    "min_tokens": 1,
    "stop_token_ids": [2],
    "bad_words": ["x"],
    "allowed_token_ids": [1, 2],
    "ignore_eos": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": True,
    "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": 100,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "cache_salt": "s",
    "user": "u",
    "repetition_detection": {"max_pattern_size": 20, "min_pattern_size": 3, "min_count": 4},
    "response_format": {"type": "json_object"},
}
PASSING = [
    (CHAT, SAMPLING | {"logprobs": True, "top_logprobs": 5, "max_completion_tokens": 7}),
    (CHAT, {"reasoning_effort": "low", "metadata": {"a": "b"}, "service_tier": "auto"}),
    (CHAT, {"modalities": ["text"], "store": False, "verbosity": "low", "stop": "a"}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "include_reasoning": False}),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    (CHAT, {"structured_outputs": {"choice": ["yes", "no"]}}),
    (CHAT, {"structured_outputs": {"json": '{"type": "object"}', "regex": None}}),
    (CHAT, {"stream": False, "chat_template": None, "use_beam_search": False, "priority": 0}),
    (CHAT, dict.fromkeys(("n", "stop", "tools", "response_format", "temperature", "logit_bias"))),
    (CHAT, {"functions": [{"name": "f", "parameters": {"type": "object"}}]}),
    (COMPLETIONS, SAMPLING | {"logprobs": 2, "echo": True, "suffix": "!", "best_of": 2}),
    (COMPLETIONS, {"prompt": ["a", "b"]}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
    (RESPONSES, {"instructions": "i", "max_output_tokens": 5, "reasoning": {"effort": "low"}}),
    (RESPONSES, {"text": {"format": {"type": "text"}, "verbosity": "low"}, "store": True}),
    (EMBEDDINGS, {"input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
    (EMBEDDINGS, {"input": [1, 2]}),
    (EMBEDDINGS, {"input": [{"role": "user", "content": "hi"}]}),
    (SCORE, {"text_1": "a", "text_2": ["b", {"content": [{"type": "text", "text": "c"}]}]}),
    (RERANK, {"top_n": 2, "return_documents": True, "truncate_prompt_tokens": 9}),
]


@pytest.mark.parametrize(("url", "body"), PASSING)
def test_documented_parameters_pass(url: str, body: dict[str, Any]) -> None:
    """What OpenAI documents, and vLLM's sampling parameters, need no setting."""
    check(url, body)


def test_embeddings_may_be_asked_for_as_a_chat() -> None:
    """Where vLLM takes messages in place of an input, so does the gate."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "url": EMBEDDINGS, "body": body}
    parse_request(orjson.dumps(line), limits())


CONVERSATION = [
    {"role": "developer", "content": "d"},
    {"role": "user", "name": "me", "content": [{"type": "text", "text": "t"}, "plain"]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA}}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": DATA, "detail": "low"}]},
    {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4,x"}}]},
    {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav,"}}]},
    {
        "role": "user",
        "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
    },
    {"role": "user", "content": [{"type": "file", "file": {"file_data": DATA, "filename": "f"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "reasoning": "r"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "refusal": None},
    {"role": "tool", "tool_call_id": "1", "content": "done"},
]


def test_a_conversation_of_all_sorts_passes() -> None:
    """Each role and each kind of part that is documented may be used, media as data: URLs."""
    check(CHAT, {"messages": CONVERSATION})


INPUT = [
    {"role": "user", "content": "a"},
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "b"},
            {"type": "input_image", "image_url": DATA, "detail": "auto", "file_id": None},
            {"type": "input_file", "file_data": "AAAA", "filename": "f.pdf"},
        ],
    },
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [{"type": "output_text", "text": "c", "annotations": []}],
    },
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "d"}],
        "content": [{"type": "reasoning_text", "text": "e"}],
    },
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "g"},
    {
        "type": "function_call_output",
        "call_id": "1",
        "output": [{"type": "input_image", "image_url": DATA, "detail": "auto"}],
    },
]


def test_the_items_of_a_response_pass() -> None:
    """Messages, calls of functions, what these gave and reasoning may be sent."""
    check(RESPONSES, {"input": INPUT})


# -- what is refused and can be opened ----------------------------------------------

OPENABLE = [
    (CHAT, "chat_template", "{{ 1 }}"),
    (CHAT, "mm_processor_kwargs", {"a": 1}),
    (CHAT, "media_io_kwargs", {"video": {"num_frames": 10**9}}),
    (CHAT, "kv_transfer_params", {}),
    (CHAT, "vllm_xargs", {"kv_transfer_params": "x"}),
    (CHAT, "request_id", "mine"),
    (CHAT, "priority", -1),
    (CHAT, "use_beam_search", True),
    (CHAT, "guided_regex", "(a+)+$"),
    (CHAT, "guided_grammar", "root ::= root"),
    (CHAT, "guided_json", {}),
    (CHAT, "structural_tag", "{}"),
    (CHAT, "stream_options", {"include_usage": True}),
    (CHAT, "no_such_key", None),
    (CHAT, "a.b", 1),
    (CHAT, "x" * 60, 1),
    (CHAT, "best_of", 2),
    (COMPLETIONS, "prompt_embeds", "AAAA"),
    (COMPLETIONS, "messages", []),
    (RESPONSES, "previous_response_id", "resp_1"),
    (RESPONSES, "prompt", {"id": "p"}),
    (RESPONSES, "messages", []),
    (EMBEDDINGS, "mm_processor_kwargs", {"a": 1}),
    (SCORE, "n", 2),
    (RERANK, "request_id", "mine"),
]


@pytest.mark.parametrize(("url", "name", "value"), OPENABLE)
def test_a_refused_parameter_is_named_and_can_be_opened(url: str, name: str, value: object) -> None:
    """The fault has the parameter's path and the setting that lets it pass, and that works."""
    fault = fault_of(url, {name: value})
    assert fault.code == NOT_ALLOWED
    assert fault.param in {f"body.{name}", f"body.'{name}'"}
    assert f'allow = ["{name}"] in [limits.body]' in fault.message
    check(url, {name: value}, allow=[name])


@pytest.mark.parametrize(
    ("url", "name"), [(CHAT, "stream"), (COMPLETIONS, "stream"), (RESPONSES, "background")]
)
@pytest.mark.parametrize("value", [True, "yes", 1])
def test_what_would_leave_no_answer_cannot_be_opened(url: str, name: str, value: object) -> None:
    """A stream is no result, so no setting is offered for it."""
    fault = fault_of(url, {name: value})
    assert (fault.code, fault.param) == (NOT_ALLOWED, f"body.{name}")
    assert "limits.body" not in fault.message


@pytest.mark.parametrize("name", ["\x1b[31m", "a" * 500, "ключ", "", 'a"]', "\U0001f600" * 60])
def test_an_unknown_name_is_shown_in_printable_characters(name: str) -> None:
    """Whatever a sender calls a key, the fault can be printed."""
    fault = fault_of(CHAT, {name: 1})
    assert fault.code == NOT_ALLOWED
    assert "allow = " not in fault.message
    assert fault.param
    assert fault.param.isascii()
    assert fault.param.isprintable()


INNER = [
    ("regex", CHAT, {"structured_outputs": {"regex": "(a+)+"}}, "body.structured_outputs.regex"),
    ("grammar", CHAT, {"structured_outputs": {"grammar": "x"}}, "body.structured_outputs.grammar"),
    (
        "structural_tag",
        COMPLETIONS,
        {"structured_outputs": {"structural_tag": "{}"}},
        "body.structured_outputs.structural_tag",
    ),
    (
        "whitespace_pattern",
        RESPONSES,
        {"structured_outputs": {"choice": ["a"], "whitespace_pattern": " *"}},
        "body.structured_outputs.whitespace_pattern",
    ),
    (
        "structural_tag",
        CHAT,
        {"response_format": {"type": "structural_tag", "format": {}}},
        "body.response_format.type",
    ),
    (
        "grammar",
        RESPONSES,
        {"text": {"format": {"type": "grammar", "grammar": "x"}}},
        "body.text.format.type",
    ),
    (
        "grammar",
        RESPONSES,
        {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]},
        "body.tools[0].format",
    ),
    (
        "grammar",
        CHAT,
        {"tools": [{"type": "custom", "custom": {"name": "c", "format": {"type": "grammar"}}}]},
        "body.tools[0].format",
    ),
    (
        "mcp",
        RESPONSES,
        {"tools": [{"type": "mcp", "server_url": "http://x"}]},
        "body.tools[0].type",
    ),
    (
        "code_interpreter",
        RESPONSES,
        {
            "tools": [
                {"type": "namespace", "name": "n", "tools": [{"type": "code_interpreter"}]},
            ]
        },
        "body.tools[0].tools[0].type",
    ),
    (
        "chat_template",
        CHAT,
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        "body.chat_template_kwargs.chat_template",
    ),
    (
        "max_length",
        SCORE,
        {"chat_template_kwargs": {"padding": "max_length", "max_length": 10**12}},
        "body.chat_template_kwargs.max_length",
    ),
    (
        "prompt_embeds",
        CHAT,
        chat_part({"type": "prompt_embeds", "data": "AAAA"}),
        "body.messages[1].content[1].type",
    ),
    (
        "image_embeds",
        CHAT,
        chat_part({"type": "image_embeds", "image_embeds": "AAAA"}),
        "body.messages[1].content[1].type",
    ),
    ("hologram", CHAT, chat_part({"type": "hologram"}), "body.messages[1].content[1].type"),
    (
        "uuid",
        CHAT,
        chat_part({"type": "text", "text": "t", "uuid": "u"}),
        "body.messages[1].content[1].uuid",
    ),
    (
        "prefix",
        CHAT,
        {"messages": [{"role": "user", "content": "a", "prefix": True}]},
        "body.messages[0].prefix",
    ),
    (
        "item_reference",
        RESPONSES,
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        "body.input[0].type",
    ),
    (
        "computer_call_output",
        RESPONSES,
        {"input": [{"type": "computer_call_output", "output": {"image_url": "http://x"}}]},
        "body.input[0].type",
    ),
]


@pytest.mark.parametrize(("name", "url", "body", "param"), INNER)
def test_what_is_refused_inside_is_named_by_its_path(
    name: str, url: str, body: dict[str, Any], param: str
) -> None:
    """Formats, tools, parts and items are refused and opened by name as parameters are."""
    allow = {"max_length": ["padding"]}.get(name, [])
    fault = fault_of(url, body, allow=allow)
    assert (fault.code, fault.param) == (NOT_ALLOWED, param)
    assert f'allow = ["{name}"] in [limits.body]' in fault.message
    check(url, body, allow=[name, *allow])


# -- caps ---------------------------------------------------------------------------


def deep(levels: int) -> Any:  # noqa: ANN401 - JSON is any value
    """A schema of so many nested objects."""
    return orjson.loads(b'{"items":' * (levels - 1) + b"{}" + b"}" * (levels - 1))


# Each: the key of [limits.body], a value for it, and a body at the limit and one above.
CAPS: list[tuple[str, int, str, dict[str, Any], dict[str, Any], str]] = [
    ("max_n", 3, CHAT, {"n": 3}, {"n": 4}, "n"),
    ("max_n", 3, COMPLETIONS, {"best_of": 3}, {"best_of": 4}, "best_of"),
    ("max_inputs", 6, COMPLETIONS, {"prompt": ["a"] * 6}, {"prompt": ["a"] * 7}, "prompt"),
    (
        *("max_inputs", 6, COMPLETIONS),
        *({"prompt": ["a"] * 3, "n": 2}, {"prompt": ["a"] * 3, "n": 3}, "n"),
    ),
    (
        *("max_inputs", 2, COMPLETIONS),
        *({"prompt": [5, 6, 7], "n": 2}, {"prompt": [[5], [6], [7]]}, "prompt"),
    ),
    ("max_inputs", 2, EMBEDDINGS, {"input": ["a"] * 2}, {"input": ["a"] * 3}, "input"),
    ("max_inputs", 2, RERANK, {"documents": ["a"] * 2}, {"documents": ["a"] * 3}, "documents"),
    ("max_inputs", 2, SCORE, {"text_2": ["a"] * 2}, {"text_2": ["a"] * 3}, "text_2"),
    ("max_logprobs", 5, CHAT, {"top_logprobs": 5}, {"top_logprobs": 6}, "top_logprobs"),
    ("max_logprobs", 5, COMPLETIONS, {"logprobs": 5}, {"logprobs": 6}, "logprobs"),
    ("max_logprobs", 5, CHAT, {"prompt_logprobs": 5}, {"prompt_logprobs": 6}, "prompt_logprobs"),
    ("max_stop", 2, CHAT, {"stop": ["a"] * 2}, {"stop": ["a"] * 3}, "stop"),
    ("max_stop_chars", 5, CHAT, {"stop": "a" * 5}, {"stop": "a" * 6}, "stop"),
    ("max_stop_chars", 5, RESPONSES, {"stop": ["é" * 5]}, {"stop": ["é" * 6]}, "stop"),
    ("max_bad_words", 2, CHAT, {"bad_words": ["a"] * 2}, {"bad_words": ["a"] * 3}, "bad_words"),
    ("max_stop_chars", 5, CHAT, {"bad_words": ["a" * 5]}, {"bad_words": ["a" * 6]}, "bad_words"),
    (
        "max_token_ids",
        1,
        CHAT,
        {"logit_bias": {"1": 1}},
        {"logit_bias": {"1": 1, "2": 1}},
        "logit_bias",
    ),
    (
        "max_token_ids",
        1,
        CHAT,
        {"stop_token_ids": [1]},
        {"stop_token_ids": [1, 2]},
        "stop_token_ids",
    ),
    ("max_tools", 2, CHAT, {"tools": [tool()] * 2}, {"tools": [tool()] * 3}, "tools"),
    (
        *("max_tools", 3, RESPONSES),
        {"tools": [{"type": "namespace", "tools": [{"type": "function"}] * 2}]},
        {"tools": [{"type": "namespace", "tools": [{"type": "function"}] * 3}]},
        "tools",
    ),
    (
        *("max_tools_bytes", 200, CHAT),
        *({"tools": [tool(name="f" * 100)]}, {"tools": [tool(name="f" * 200)]}, "tools"),
    ),
    (
        *("max_schema_bytes", 200, CHAT),
        {"response_format": json_schema({"title": "t" * 100})},
        {"response_format": json_schema({"title": "t" * 200})},
        "response_format",
    ),
    (
        *("max_schema_bytes", 200, CHAT),
        {"structured_outputs": {"choice": ["c" * 100]}},
        {"structured_outputs": {"choice": ["c" * 200]}},
        "structured_outputs",
    ),
    (
        *("max_schema_bytes", 200, CHAT),
        *({"tools": [tool({"title": "t" * 90})]}, {"tools": [tool({"title": "t" * 200})]}),
        "tools[0]",
    ),
    (
        *("max_schema_depth", 6, CHAT),
        {"response_format": json_schema(deep(6))},
        {"response_format": json_schema(deep(7))},
        "response_format",
    ),
    (
        *("max_schema_depth", 6, CHAT),
        *({"tools": [tool(deep(6))]}, {"tools": [tool(deep(7))]}, "tools[0]"),
    ),
    (
        *("max_schema_depth", 6, RESPONSES),
        {"text": {"format": {"type": "json_schema", "schema": deep(6)}}},
        {"text": {"format": {"type": "json_schema", "schema": deep(8)}}},
        "text.format",
    ),
    (
        *("max_schema_depth", 6, CHAT),
        {"structured_outputs": {"json": orjson.dumps(deep(8)).decode()}},
        {"structured_outputs": {"json": orjson.dumps(deep(9)).decode()}},
        "structured_outputs.json",
    ),
    (
        *("max_template_kwargs_bytes", 200, CHAT),
        {"chat_template_kwargs": {"a": "a" * 100}},
        {"chat_template_kwargs": {"a": "a" * 200}},
        "chat_template_kwargs",
    ),
    (
        *("max_template_kwargs_depth", 3, CHAT),
        {"chat_template_kwargs": {"a": [[1]]}},
        {"chat_template_kwargs": {"a": [[[1]]]}},
        "chat_template_kwargs",
    ),
    (
        *("max_media", 1, CHAT),
        chat_part({"type": "image_url", "image_url": DATA}),
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": DATA}]},
                {"role": "user", "content": [{"type": "video_url", "video_url": DATA}]},
            ]
        },
        "messages[1].content[0].video_url",
    ),
]


@pytest.mark.parametrize(("key", "limit", "url", "at", "above", "param"), CAPS)
def test_a_cap_is_held_to_exactly(
    key: str, limit: int, url: str, at: dict[str, Any], above: dict[str, Any], param: str
) -> None:
    """As much as the setting says passes, more is refused with the setting's name."""
    check(url, at, **{key: limit})
    fault = fault_of(url, above, **{key: limit})
    assert (fault.code, fault.param) == (OVER, f"body.{param}")
    assert f"({key} in [limits.body])" in fault.message


def test_every_cap_is_tried() -> None:
    """Each number of [limits.body] has its case above."""
    assert {case[0] for case in CAPS} == set(BodyConfig.model_fields) - {"allow", "media_domains"}


# -- values of the wrong kind -------------------------------------------------------

MANY = 1e30  # which is what an integer past 64 bits becomes
Case = tuple[str, dict[str, Any], str]


def odd(url: str, name: str, values: list[Any]) -> list[Case]:
    """A case for each value of one parameter."""
    return [(url, {name: value}, name) for value in values]


def odd_message(param: str, *messages: object) -> list[Case]:
    """A case for each first message of a chat."""
    return [(CHAT, {"messages": [message]}, f"messages[0]{param}") for message in messages]


WRONG_VALUES: list[Case] = [
    *odd(CHAT, "n", [0, -1, 1.0, True, "2", [1], {}, MANY]),
    *odd(CHAT, "top_logprobs", [-1, True, "5", 2.5]),
    *odd(CHAT, "max_tokens", ["9", 1.5, True, [], MANY]),
    *odd(CHAT, "temperature", ["0", True, [0]]),
    *odd(CHAT, "stop", [1, [1], [""], {"a": 1}, ""]),
    *odd(CHAT, "bad_words", ["a", [None], [""]]),
    *odd(CHAT, "logit_bias", [[1], {"a": 1}, {"-1": 1}, {"1": "1"}, {"1": True}, {"²": 1}]),
    *odd(CHAT, "stop_token_ids", ["1", [1.0], [True], [-1], [2**31], [[1]]]),
    *odd(CHAT, "allowed_token_ids", [{}, [None], [2**31]]),
    *odd(CHAT, "logprob_token_ids", [1, ["1"], [-1]]),
    *odd(CHAT, "messages", [[], "hi", {}, None, {"role": "user", "content": "hi"}]),
    *odd_message("", "hi", [], None, 1),
    *odd_message(".role", {}, {"role": None}, {"role": 1, "content": "hi"}),
    *odd_message(
        ".content", {"role": "a", "content": 1}, {"role": "a", "content": {"type": "text"}}
    ),
    (CHAT, chat_part(1), "messages[1].content[1]"),
    (CHAT, chat_part([]), "messages[1].content[1]"),
    (CHAT, chat_part({"text": "t"}), "messages[1].content[1].type"),
    (CHAT, chat_part({"image_url": DATA}), "messages[1].content[1].type"),
    (CHAT, chat_part({"type": ["text"]}), "messages[1].content[1].type"),
    (CHAT, chat_part({"type": "text", "text": {}}), "messages[1].content[1].text"),
    (
        CHAT,
        chat_part({"type": "image_url", "image_url": {}}),
        "messages[1].content[1].image_url.url",
    ),
    (CHAT, chat_part({"type": "image_url", "image_url": 1}), "messages[1].content[1].image_url"),
    (
        CHAT,
        chat_part({"type": "input_audio", "input_audio": ""}),
        "messages[1].content[1].input_audio",
    ),
    (
        *(CHAT, chat_part({"type": "file", "file": {"file_data": 1}})),
        "messages[1].content[1].file.file_data",
    ),
    (CHAT, {"tools": {}}, "tools"),
    (CHAT, {"tools": ["f"]}, "tools[0]"),
    (CHAT, {"tools": [{"type": 1}]}, "tools[0].type"),
    (
        *(RESPONSES, {"tools": [{"type": "namespace", "tools": [{"type": "namespace"}]}]}),
        "tools[0].tools[0]",
    ),
    (CHAT, {"messages": [{"role": "developer", "tools": "f"}]}, "messages[0].tools"),
    (CHAT, {"response_format": "json"}, "response_format"),
    (CHAT, {"response_format": {}}, "response_format.type"),
    (CHAT, {"structured_outputs": []}, "structured_outputs"),
    (CHAT, {"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    (CHAT, {"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    (CHAT, {"structured_outputs": {"choice": [1]}}, "structured_outputs.choice"),
    (CHAT, {"chat_template_kwargs": []}, "chat_template_kwargs"),
    (CHAT, {"repetition_detection": {"max_pattern_size": 10**9}}, "repetition_detection"),
    (CHAT, {"repetition_detection": 1}, "repetition_detection"),
    (CHAT, {"metadata": []}, "metadata"),
    (CHAT, {"tool_choice": []}, "tool_choice"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    *odd(COMPLETIONS, "prompt", [None, 1, {}, [], [None], ["a", 1], [[]], [[1], ["a"]], [[True]]]),
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": [1]}, "input[0]"),
    (RESPONSES, {"input": [{"type": 1}]}, "input[0].type"),
    (RESPONSES, {"input": [{"content": "a"}]}, "input[0].role"),
    (RESPONSES, {"text": []}, "text"),
    (EMBEDDINGS, {"input": [[{"role": "user", "content": "hi"}]]}, "input"),
    (EMBEDDINGS, {"messages": [[{"role": "user", "content": "hi"}]]}, "messages[0]"),
    (EMBEDDINGS, {"encoding_format": "bytes"}, "encoding_format"),
    (EMBEDDINGS, {"encoding_format": []}, "encoding_format"),
    (SCORE, {"text_1": 1}, "text_1"),
    (SCORE, {"text_1": [["a"]]}, "text_1[0]"),
    (RERANK, {"documents": [{"content": "a"}]}, "documents[0].content"),
    (RERANK, {"top_n": "1"}, "top_n"),
]


@pytest.mark.parametrize(("url", "body", "param"), WRONG_VALUES)
def test_a_value_of_the_wrong_kind_is_named(url: str, body: dict[str, Any], param: str) -> None:
    """A value that no engine can use is reported by its path, before the engine sees it."""
    assert said(url, body) == (WRONG, f"body.{param}")


@pytest.mark.parametrize("url", URLS)
def test_a_body_without_what_is_to_be_answered_is_refused(url: str) -> None:
    """Each parameter that an endpoint cannot do without is named when it is missing."""
    for missing in BODIES[url]:
        body = {key: value for key, value in BODIES[url].items() if key != missing}
        line = orjson.dumps({"custom_id": "a", "url": url, "body": body})
        with pytest.raises(LineFaultError) as caught:
            parse_request(line, limits())
        assert caught.value.fault.code == WRONG
        assert missing in caught.value.fault.message


# -- any body at all ----------------------------------------------------------------

NAMES = st.sampled_from(
    sorted(
        {name for each in endpoints.ENDPOINTS.values() for name in each.parameters}
        | endpoints.REFUSED.keys()
        | endpoints.MESSAGE_KEYS
        | endpoints.MEDIA_KEYS
        | {"type", "text", "url", "schema", "\x1b"}
    )
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**63) | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(URLS), st.dictionaries(NAMES, ANYTHING, max_size=4))
def test_any_body_passes_or_has_a_fault(url: str, body: dict[str, Any]) -> None:
    """No value, however odd, gets anything else than a yes or a printable no."""
    try:
        check(url, body)
    except LineFaultError as error:
        text = f"{error.fault.message}{error.fault.param}"
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 2_048


def test_depth_beyond_what_a_schema_may_have_harms_nothing() -> None:
    """Nesting to the limit of the whole line is walked without recursion."""
    levels = orjson.loads(nested(240))
    rules = limits(max_json_depth=250)
    for body in (
        {"metadata": {"a": levels}},
        {"tools": [tool({"a": levels})]},
        {"chat_template_kwargs": {"a": levels}},
        {"structured_outputs": {"json": "[" * 500 + "]" * 500}},
        chat_part({"type": "text", "text": "t", "prompt_cache_breakpoint": levels}),
    ):
        with contextlib.suppress(LineFaultError):
            parse_request(request("a", CHAT, **body), rules)

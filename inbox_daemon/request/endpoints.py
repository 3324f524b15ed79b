"""The endpoints: which parameters a request's body may have, as data.

Purpose: what passes, what is refused by name and why, what parts of a message there
are, and what of a body tells how much work it makes.  What is in no table is refused as
unknown.
Invariants: pure data; a field that the installed vLLM or OpenAI's client knows is in one
of the tables (a test compares them), so that a new release shows up.
Sources: OpenAI's API reference and the types of its Python client 3.54 (chat,
completions, responses, embeddings); the request models of vLLM 0.32 in
vllm/entrypoints/{openai,pooling}/**/protocol.py and its content parts in
vllm/renderers/chat_utils.py; for rerank also Cohere's and Jina's references.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto

from inbox_daemon.contract.config import NEVER, STREAMED


class ParameterKind(StrEnum):
    """What a parameter's value is; those after CHOICE have a check of their own."""

    TEXT = auto()
    NUMBER = auto()
    INTEGER = auto()
    SWITCH = auto()
    OBJECT = auto()
    ARRAY = auto()
    CHOICE = auto()
    # Checked one by one in body.py, messages.py and schemas.py.
    COUNT = auto()
    LOGPROBS = auto()
    STOP = auto()
    WORDS = auto()
    TOKEN_IDS = auto()
    BIAS = auto()
    REPETITION = auto()
    ENCODING = auto()
    MESSAGES = auto()
    PROMPT = auto()
    EMBEDDED = auto()
    ITEMS = auto()
    SCORED = auto()
    TOOLS = auto()
    FORMAT = auto()
    TEXT_FORMAT = auto()
    STRUCTURED = auto()
    TEMPLATE_KWARGS = auto()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL: what a body for it may have, must have, and tells about the work it makes.

    `parameters` are those that pass; `needed` what a body must have, as alternatives, the
    first being the usual one; `refused` gives the reason for names that are a parameter of
    another endpoint.  `prompt` names the parts of the prompt in the order in which chat
    templates write them; `caps` the parameters that bound an answer's tokens, the first one
    that is there counts; `cap` is the bound where none is there, None if it is the context.
    """

    parameters: Mapping[str, ParameterKind]
    needed: tuple[frozenset[str], ...]
    prompt: tuple[str, ...]
    caps: tuple[str, ...] = ()
    cap: int | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


def _each(kind: ParameterKind, names: str) -> dict[str, ParameterKind]:
    return dict.fromkeys(names.split(), kind)


# -- parameters that pass -------------------------------------------------------------

_OPENAI_COMMON = (
    _each(ParameterKind.TEXT, "model user service_tier safety_identifier")
    | _each(ParameterKind.TEXT, "prompt_cache_key prompt_cache_retention")
    | _each(ParameterKind.NUMBER, "temperature top_p")
    | _each(ParameterKind.SWITCH, "store parallel_tool_calls")
    | _each(ParameterKind.OBJECT, "metadata prompt_cache_options moderation")
    | _each(ParameterKind.CHOICE, "tool_choice")
    | _each(ParameterKind.TOOLS, "tools")
    | _each(ParameterKind.LOGPROBS, "top_logprobs")
)
_OPENAI_SAMPLING = (
    _each(ParameterKind.NUMBER, "temperature top_p frequency_penalty presence_penalty")
    | _each(ParameterKind.INTEGER, "max_tokens seed")
    | _each(ParameterKind.COUNT, "n")
    | _each(ParameterKind.BIAS, "logit_bias")
    | _each(ParameterKind.STOP, "stop")
)
_VLLM_SAMPLING = (
    _each(ParameterKind.NUMBER, "min_p repetition_penalty length_penalty")
    | _each(ParameterKind.INTEGER, "top_k min_tokens truncate_prompt_tokens thinking_token_budget")
    | _each(ParameterKind.SWITCH, "include_stop_str_in_output ignore_eos skip_special_tokens")
    | _each(ParameterKind.SWITCH, "spaces_between_special_tokens add_special_tokens watermarking")
    | _each(ParameterKind.SWITCH, "return_tokens_as_token_ids return_token_ids")
    | _each(ParameterKind.TEXT, "truncation_side cache_salt")
    | _each(ParameterKind.LOGPROBS, "prompt_logprobs")
    | _each(ParameterKind.TOKEN_IDS, "stop_token_ids allowed_token_ids logprob_token_ids")
    | _each(ParameterKind.WORDS, "bad_words")
    | _each(ParameterKind.REPETITION, "repetition_detection")
    | _each(ParameterKind.FORMAT, "response_format")
    | _each(ParameterKind.STRUCTURED, "structured_outputs")
)
_CHAT = {
    **_OPENAI_COMMON,
    **_OPENAI_SAMPLING,
    **_VLLM_SAMPLING,
    **_each(ParameterKind.MESSAGES, "messages"),
    **_each(ParameterKind.INTEGER, "max_completion_tokens"),
    **_each(ParameterKind.TEXT, "reasoning_effort verbosity"),
    **_each(ParameterKind.OBJECT, "audio prediction web_search_options"),
    **_each(ParameterKind.ARRAY, "modalities documents"),
    **_each(ParameterKind.CHOICE, "function_call"),
    **_each(ParameterKind.TOOLS, "functions"),
    **_each(ParameterKind.SWITCH, "logprobs include_reasoning echo add_generation_prompt"),
    **_each(ParameterKind.SWITCH, "continue_final_message return_prompt_text"),
    **_each(ParameterKind.TEMPLATE_KWARGS, "chat_template_kwargs"),
}
_COMPLETIONS = {
    **_OPENAI_SAMPLING,
    **_VLLM_SAMPLING,
    **_each(ParameterKind.PROMPT, "prompt"),
    **_each(ParameterKind.TEXT, "model user suffix"),
    **_each(ParameterKind.SWITCH, "echo"),
    **_each(ParameterKind.COUNT, "best_of"),
    **_each(ParameterKind.LOGPROBS, "logprobs"),
}
_RESPONSES = {
    **_OPENAI_COMMON,
    **_each(ParameterKind.ITEMS, "input"),
    **_each(ParameterKind.TEXT, "instructions truncation cache_salt"),
    **_each(ParameterKind.INTEGER, "max_output_tokens max_tool_calls top_k seed"),
    **_each(ParameterKind.NUMBER, "min_p presence_penalty frequency_penalty repetition_penalty"),
    **_each(ParameterKind.OBJECT, "reasoning image"),
    **_each(ParameterKind.ARRAY, "include context_management access_programs"),
    **_each(
        ParameterKind.SWITCH, "include_reasoning skip_special_tokens include_stop_str_in_output"
    ),
    **_each(ParameterKind.SWITCH, "ignore_eos watermarking"),
    **_each(ParameterKind.BIAS, "logit_bias"),
    **_each(ParameterKind.STOP, "stop"),
    **_each(ParameterKind.TOKEN_IDS, "stop_token_ids"),
    **_each(ParameterKind.TEXT_FORMAT, "text"),
    **_each(ParameterKind.STRUCTURED, "structured_outputs"),
    **_each(ParameterKind.TEMPLATE_KWARGS, "chat_template_kwargs"),
}
_POOLING = (
    _each(ParameterKind.TEXT, "model user padding truncation_side cache_salt")
    | _each(ParameterKind.INTEGER, "truncate_prompt_tokens")
    | _each(ParameterKind.SWITCH, "use_activation")
    | _each(ParameterKind.TEMPLATE_KWARGS, "chat_template_kwargs")
)
_EMBEDDINGS = {
    **_POOLING,
    **_each(ParameterKind.EMBEDDED, "input"),
    **_each(ParameterKind.MESSAGES, "messages"),
    **_each(ParameterKind.INTEGER, "dimensions"),
    **_each(ParameterKind.ENCODING, "encoding_format"),
    **_each(ParameterKind.TEXT, "embed_dtype endianness"),
    **_each(
        ParameterKind.SWITCH, "add_special_tokens add_generation_prompt continue_final_message"
    ),
}
_SCORING = {
    **_POOLING,
    **_each(ParameterKind.INTEGER, "max_tokens_per_query max_tokens_per_doc"),
    **_each(ParameterKind.TEXT, "instruction"),
}
_SCORE = {
    **_SCORING,
    **_each(ParameterKind.SCORED, "data_1 data_2 text_1 text_2 queries documents items"),
}
_RERANK = {
    **_SCORING,
    **_each(ParameterKind.SCORED, "query documents"),
    **_each(ParameterKind.INTEGER, "top_n max_chunks_per_doc"),
    **_each(ParameterKind.SWITCH, "return_documents"),
}
# By URL; documents.Url, which the schemas are made from, has the same URLs (a test compares).
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(
        _CHAT,
        needed=(frozenset({"messages"}),),
        prompt=("tools", "messages"),
        caps=("max_completion_tokens", "max_tokens"),
    ),
    "/v1/completions": Endpoint(
        _COMPLETIONS,
        needed=(frozenset({"prompt"}),),
        prompt=("prompt",),
        caps=("max_tokens",),
        cap=16,  # OpenAI's and vLLM's default
    ),
    "/v1/responses": Endpoint(
        _RESPONSES,
        needed=(frozenset({"input"}),),
        prompt=("tools", "instructions", "input"),
        caps=("max_output_tokens",),
        refused={"prompt": "no prompt templates are kept here"},
    ),
    "/v1/embeddings": Endpoint(
        _EMBEDDINGS,
        needed=(frozenset({"input"}), frozenset({"messages"})),
        prompt=("messages", "input"),
    ),
    "/v1/score": Endpoint(
        _SCORE,
        needed=(
            frozenset({"data_1", "data_2"}),
            frozenset({"text_1", "text_2"}),
            frozenset({"queries", "documents"}),
            frozenset({"queries", "items"}),
        ),
        prompt=("queries", "data_1", "text_1"),
    ),
    "/v1/rerank": Endpoint(_RERANK, needed=(frozenset({"query", "documents"}),), prompt=("query",)),
}

# -- parameters that are known and refused --------------------------------------------

_BEAMS = "beam search holds many sequences for one answer"
_CACHES = "it steers the engine's caches, and a wrong value can crash it"
_DECODING = "it changes how media are decoded, and how much memory that takes"
_RENDERED = "it is for vLLM's render endpoints"
_GRAMMAR = "a hostile pattern or grammar can hang the engine"
_LEGACY = "vLLM ignores it now; use structured_outputs, as other engines may not"
_STATE = "each request stands alone, and no earlier response is kept"

REFUSED: dict[str, str] = {
    "stream_options": STREAMED,
    "stream_interval": STREAMED,
    "use_beam_search": _BEAMS,
    "early_stopping": _BEAMS,
    "best_of": _BEAMS,
    "chat_template": "a template is a program, and the engine runs it",
    "prompt_embeds": "a tensor from outside can crash the engine",
    "mm_processor_kwargs": _DECODING,
    "media_io_kwargs": _DECODING,
    "kv_transfer_params": _CACHES,
    "ec_transfer_params": _CACHES,
    "vllm_xargs": "it reaches the engine's extensions unchecked",
    "request_id": "the service names the requests itself",
    "session_id": "the service decides what runs together",
    "priority": "the service decides what runs first",
    "mm_payload": _RENDERED,
    "return_mm_kwargs": _RENDERED,
    "return_token_offsets": _RENDERED,
    "routed_experts_prompt_start": "it is for inspecting the engine",
    "enable_response_messages": "it is for inspecting the engine",
    "previous_input_messages": "its messages reach the engine unchecked",
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "background_options": NEVER["background"],
    "guided_json": _LEGACY,
    "guided_choice": _LEGACY,
    "guided_json_object": _LEGACY,
    "guided_decoding_backend": _LEGACY,
    "guided_regex": _GRAMMAR,
    "guided_grammar": _GRAMMAR,
    "guided_whitespace_pattern": _GRAMMAR,
    "structural_tag": _GRAMMAR,
    "grammar": _GRAMMAR,
    "regex": _GRAMMAR,
}

# -- messages and their parts ---------------------------------------------------------

MESSAGE_KEYS = frozenset(
    {
        *("role", "content", "name", "refusal", "audio", "function_call", "tool_calls"),
        *("tool_call_id", "annotations", "reasoning", "reasoning_content", "tools", "task"),
    }
)
_PART = frozenset({"type", "prompt_cache_breakpoint"})
PART_KEYS: dict[str, frozenset[str]] = {
    "text": _PART | {"text"},
    "input_text": _PART | {"text"},
    "output_text": _PART | {"text", "annotations", "logprobs"},
    "summary_text": _PART | {"text"},
    "reasoning_text": _PART | {"text"},
    "refusal": _PART | {"refusal"},
    "thinking": _PART | {"thinking", "closed"},
    "tool_reference": _PART | {"name"},
    "image_url": _PART | {"image_url", "detail"},
    "input_image": _PART | {"image_url", "detail", "file_id"},
    "audio_url": _PART | {"audio_url"},
    "input_audio": _PART | {"input_audio"},
    "video_url": _PART | {"video_url"},
    "file": _PART | {"file"},
    "input_file": _PART | {"file_data", "file_url", "file_id", "filename", "detail"},
}
_TENSOR = "a tensor from outside can crash the engine"
REFUSED_PARTS: dict[str, str] = {
    "image_embeds": _TENSOR,
    "audio_embeds": _TENSOR,
    "video_embeds": _TENSOR,
    "prompt_embeds": _TENSOR,
    "image_pil": "it is for callers inside Python",
}
# The keys of a part behind which media are, whatever type the part claims to have: given
# a `uuid`, vLLM looks at these alone.
URL_KEYS = frozenset({"image_url", "audio_url", "video_url", "file_url"})
MEDIA_KEYS = URL_KEYS | {"input_audio", "file", "file_data", "file_id"}

_ITEM = frozenset({"type", "id", "status"})
_CALL = _ITEM | {"call_id", "name", "namespace", "caller"}
ITEM_KEYS: dict[str, frozenset[str]] = {
    "message": _ITEM | {"role", "content", "phase", "name"},
    "function_call": _CALL | {"arguments", "async"},
    "function_call_output": _CALL | {"output"},
    "custom_tool_call": _CALL | {"input", "async"},
    "custom_tool_call_output": _CALL | {"output"},
    "reasoning": _ITEM | {"summary", "content", "encrypted_content"},
}

# -- tools and formats ----------------------------------------------------------------

TOOL_TYPES = frozenset({"function", "custom", "namespace"})
FORMAT_TYPES = frozenset({"text", "json_object", "json_schema"})
STRUCTURED_KEYS = frozenset(
    {
        *("json", "choice", "json_object"),
        *("disable_any_whitespace", "disable_additional_properties"),
    }
)
REFUSED_STRUCTURED: dict[str, str] = dict.fromkeys(
    ("regex", "grammar", "structural_tag", "whitespace_pattern"), _GRAMMAR
)
# Arguments of Hugging Face's apply_chat_template that are no variables of a template.
REFUSED_TEMPLATE_KWARGS: dict[str, str] = {
    "chat_template": REFUSED["chat_template"],
    **dict.fromkeys(
        (
            *("conversation", "tools", "tokenize", "tokenizer_kwargs", "padding", "truncation"),
            *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        ),
        "it is no variable of a template but an argument of the tokenizer",
    ),
}

"""The tables of endpoints: they know what the engine and the client know."""

from dataclasses import fields
from importlib import import_module
from typing import Any, get_args

import pytest

from bodies import EMBEDDINGS, RERANK, RESPONSES, SCORE
from builders import CHAT
from inbox_daemon.contract import config
from inbox_daemon.contract.documents import URLS
from inbox_daemon.request import endpoints

COMPLETIONS = "/v1/completions"


# -- the tables know what the engine and the client know ----------------------------

MODELS = [
    (CHAT, "vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    (COMPLETIONS, "vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    (RESPONSES, "vllm.entrypoints.openai.responses.protocol", "ResponsesRequest"),
    (EMBEDDINGS, "vllm.entrypoints.pooling.embed.protocol", "EmbeddingRequest"),
    (SCORE, "vllm.entrypoints.pooling.scoring.protocol", "ScoreRequest"),
    (RERANK, "vllm.entrypoints.pooling.scoring.protocol", "RerankRequest"),
]


def models_of(found: Any) -> list[Any]:  # noqa: ANN401 - a model, or a union of some
    """The pydantic models of a type, however they are put together."""
    if hasattr(found, "model_fields"):
        return [found]
    return [model for part in get_args(found) for model in models_of(part)]


def decided(url: str) -> set[str]:
    """Every name that the tables decide on for an endpoint."""
    endpoint = endpoints.ENDPOINTS[url]
    return {*endpoint.parameters, *endpoint.refused, *endpoints.REFUSED, *config.NEVER}


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("url", "module", "name"), MODELS)
def test_every_parameter_of_the_installed_vllm_is_decided(url: str, module: str, name: str) -> None:
    """A field that a new vLLM brings is let through or refused on purpose."""
    pytest.importorskip("vllm")
    models = models_of(getattr(import_module(module), name))
    known = {field for model in models for field in model.model_fields}
    assert known
    assert known - decided(url) == set()


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_every_part_of_the_installed_vllm_is_decided() -> None:
    """A type of content part, and a kind of structured output, that vLLM knows is in a table."""
    pytest.importorskip("vllm")
    parts = import_module("vllm.renderers.chat_utils")
    assert set(parts.MM_PARSER_MAP) <= {*endpoints.PART_KEYS, *endpoints.REFUSED_PARTS}
    message = parts.CustomChatCompletionMessageParam.__annotations__
    assert set(message) <= endpoints.MESSAGE_KEYS
    structured = import_module("vllm.sampling_params").StructuredOutputsParams
    names = {field.name for field in fields(structured) if not field.name.startswith("_")}
    assert names == {*endpoints.STRUCTURED_KEYS, *endpoints.REFUSED_STRUCTURED}


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("url", "module", "name"),
    [
        (CHAT, "openai.types.chat.completion_create_params", "CompletionCreateParamsBase"),
        (COMPLETIONS, "openai.types.completion_create_params", "CompletionCreateParamsBase"),
        (RESPONSES, "openai.types.responses.response_create_params", "ResponseCreateParamsBase"),
        (EMBEDDINGS, "openai.types.embedding_create_params", "EmbeddingCreateParams"),
    ],
)
def test_every_parameter_that_openai_documents_is_decided(url: str, module: str, name: str) -> None:
    """What OpenAI's own client can send is let through or refused on purpose."""
    pytest.importorskip("openai")
    known = set(getattr(import_module(module), name).__annotations__)
    assert known
    assert known - decided(url) == set()


@pytest.mark.parametrize("url", URLS)
def test_a_table_decides_once(url: str) -> None:
    """No parameter both passes and is refused, but for what one endpoint alone has."""
    endpoint = endpoints.ENDPOINTS[url]
    shared = endpoint.parameters.keys() & {*endpoints.REFUSED, *config.NEVER}
    assert shared <= {"best_of"}
    assert not endpoint.parameters.keys() & endpoint.refused.keys()
    needed = {name for names in endpoint.needed for name in names}
    assert needed <= endpoint.parameters.keys()
    assert {*endpoint.prompt, *endpoint.caps} <= endpoint.parameters.keys()


def test_each_url_of_the_documents_has_its_record() -> None:
    """The URLs that a line may name are those that the tables know."""
    assert tuple(endpoints.ENDPOINTS) == URLS

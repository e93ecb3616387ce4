"""The official `openai` and `anthropic` SDKs read the same transcripts as the relay's translators, and agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from penstock.relay.anthropic import AnthropicTranslator
from penstock.relay.openai import CompletionTranslator
from penstock.relay.protocol import Translator
from penstock.relay.responses import ResponsesTranslator
from penstock.wire.assembly import assemble
from penstock.wire.chunks import Finish
from penstock.wire.sse_parser import SseParser

DATA = Path(__file__).parent.parent / "data"


def http_client(transcript: Path) -> httpx2.Client:
    """Make a client that is answered with a transcript."""
    body = transcript.read_bytes()
    head = {"content-type": "text/event-stream"}
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, headers=head, content=body))
    )


class Ours:
    """What our translator makes of a transcript."""

    def __init__(self, transcript: Path, translator: Translator) -> None:
        chunks = [
            chunk for event in SseParser().feed(transcript.read_bytes()) for chunk in translator.feed(event)
        ]
        chunks += translator.finish()
        self.parts: list[dict[str, Any]] = assemble(chunks, "m")["parts"]
        self.metadata: dict[str, Any] = assemble(chunks, "m")["metadata"]
        finish = chunks[-1]
        assert isinstance(finish, Finish)
        self.finish_reason = finish.finish_reason

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the parts of a kind, in their order."""
        return [part for part in self.parts if part["type"] == kind]

    def text(self, kind: str) -> str:
        """Return all the text of a kind."""
        return "".join(part["text"] for part in self.of(kind))

    @property
    def calls(self) -> list[tuple[str, str, Any]]:
        """The tool calls: id, name, input."""
        return [
            (part["toolCallId"], part["type"].removeprefix("tool-"), part["input"])
            for part in self.parts
            if part["type"].startswith("tool-")
        ]


COMPLETIONS = ["openai-text", "openai-tools", "openai-refusal", "deepseek", "vllm", "openrouter", "azure"]
REASONING_FIELDS = ("reasoning_content", "reasoning")
"""The SDK accumulates fields that it does not know."""


@pytest.mark.parametrize("name", COMPLETIONS)
def test_chat_completions(name: str) -> None:
    """Text, reasoning, tool calls, finish reason and usage."""
    path = DATA / "openai" / f"{name}.sse"
    with (
        openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http_client(path)) as client,
        client.chat.completions.stream(model="m", messages=[]) as stream,
    ):
        # The final completion is an error where a filter ended it.
        completion = stream.until_done().current_completion_snapshot
    message = completion.choices[0].message
    ours = Ours(path, CompletionTranslator())
    assert ours.text("text") == (message.content or "") + (message.refusal or "")
    extra = message.model_extra or {}
    assert ours.text("reasoning") == next(
        (extra[field] for field in REASONING_FIELDS if extra.get(field)), ""
    )
    assert ours.calls == [
        (call.id, call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or ()
    ]
    assert ours.metadata["model"] == completion.model
    assert str(ours.finish_reason).replace("-", "_") == completion.choices[0].finish_reason
    if completion.usage is not None:
        assert ours.metadata["usage"] == {
            "inputTokens": completion.usage.prompt_tokens,
            "outputTokens": completion.usage.completion_tokens,
            "totalTokens": completion.usage.total_tokens,
        }


RESPONSES = ["text", "tools", "interleaved", "reasoning", "web-search", "refusal", "custom-tool"]


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(name: str) -> None:
    """Every item in its order, identity and usage."""
    path = DATA / "responses" / f"{name}.sse"
    with (
        openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http_client(path)) as client,
        client.responses.stream(model="m", input=[]) as stream,
    ):
        response = stream.get_final_response()
    ours = Ours(path, ResponsesTranslator())
    texts, reasoning, sources = [], [], []
    calls: list[tuple[str, str, Any]] = []
    for item in response.output:
        match item.type:
            case "message":
                for part in item.content:
                    texts.append(part.text if part.type == "output_text" else part.refusal)
                    if part.type == "output_text":
                        sources += [one.url for one in part.annotations if one.type == "url_citation"]
            case "reasoning":
                reasoning += [summary.text for summary in item.summary]
                kept = ours.of("reasoning")[-1]["providerMetadata"]["openai"]
                assert kept == {"itemId": item.id, "reasoningEncryptedContent": item.encrypted_content}
            case "function_call":
                calls.append((item.call_id, item.name, json.loads(item.arguments)))
            case "custom_tool_call":
                calls.append((item.call_id, item.name, item.input))
    assert [part["text"] for part in ours.of("text")] == texts
    assert [part["text"] for part in ours.of("reasoning")] == reasoning
    assert ours.calls == calls
    # One of a kind, and no link that runs a script.
    assert [part["url"] for part in ours.of("source-url")] == list(
        dict.fromkeys(url for url in sources if url.startswith("https://"))
    )
    assert ours.metadata["upstream"] == {"protocol": "responses", "id": response.id}
    assert ours.metadata["model"] == response.model
    assert response.usage is not None
    assert ours.metadata["usage"] == {
        "inputTokens": response.usage.input_tokens,
        "outputTokens": response.usage.output_tokens,
        "totalTokens": response.usage.total_tokens,
    }


MESSAGES = [
    "text",
    "tools",
    "thinking",
    "hidden-thinking",
    "web-search",
    "citations",
    "max-tokens",
    "refusal",
]
STOP_REASONS = {
    "end_turn": "stop",
    "tool_use": "tool-calls",
    "max_tokens": "length",
    "refusal": "content-filter",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_anthropic_messages(name: str) -> None:
    """Every block in its order, with what must be sent back, stop reason and usage."""
    path = DATA / "anthropic" / f"{name}.sse"
    with (
        anthropic.Anthropic(api_key="k", base_url="http://h", http_client=http_client(path)) as client,
        client.messages.stream(model="m", messages=[], max_tokens=1) as stream,
    ):
        message = stream.get_final_message()
    ours = Ours(path, AnthropicTranslator())
    blocks: list[tuple[Any, ...]] = []
    titles: list[str] = []
    for block in message.content:
        match block.type:
            case "text":
                blocks.append(("text", block.text))
                for citation in block.citations or ():
                    if (
                        citation.type == "web_search_result_location"
                        or citation.type == "search_result_location"
                    ):
                        titles.append(str(citation.title))
                    else:
                        titles.append(citation.document_title or f"Document {citation.document_index + 1}")
            case "thinking":
                blocks.append(("reasoning", block.thinking, {"signature": block.signature}))
            case "redacted_thinking":
                blocks.append(("reasoning", "", {"redactedData": block.data}))
            case "tool_use":
                blocks.append((block.id, block.name, block.input))
            case "web_search_tool_result":
                assert isinstance(block.content, list)
                titles += [result.title for result in block.content]
    shown: list[tuple[Any, ...]] = []
    for part in ours.parts:
        match part["type"]:
            case "text":
                shown.append(("text", part["text"]))
            case "reasoning":
                shown.append(("reasoning", part["text"], part["providerMetadata"]["anthropic"]))
            case kind if kind.startswith("tool-"):
                shown.append((part["toolCallId"], kind.removeprefix("tool-"), part["input"]))
    assert shown == blocks
    assert [part["title"] for part in ours.parts if part["type"].startswith("source-")] == list(
        dict.fromkeys(titles)
    )
    assert ours.metadata["model"] == message.model
    assert ours.finish_reason == STOP_REASONS[str(message.stop_reason)]
    usage = message.usage
    read = (
        usage.input_tokens + (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    )
    assert ours.metadata["usage"] == {
        "inputTokens": read,
        "outputTokens": usage.output_tokens,
        "totalTokens": read + usage.output_tokens,
    }

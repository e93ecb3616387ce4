"""Translates a conversation of `UIMessage`s into the `messages` of an OpenAI-compatible request. Sans-I/O.

What a model could not use is left out: reasoning (but for DeepSeek's way, see `PASSED_BACK`), sources, data, tool calls
without an outcome (every call must be answered by a message of the role `tool`, or the request is refused). A user's
file that is not an image becomes a line of text, so that the model can say that it does not see it.

Source: the API reference of OpenAI, "Create chat completion"; parts as in `UIMessage` of the npm package `ai`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.relay.model_calls import ModelCall, ToolOutcome, model_calls
from penstock.relay.tool_schema import ToolSchema
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage

PASSED_BACK = {"openai": {"reasoningField": "reasoning_content"}}
"""Provider metadata of reasoning that came as `reasoning_content`. DeepSeek refuses a request without it in the
messages whose tool calls it led to, and ignores it in others. Servers that name it otherwise refuse the field."""


def openai_messages(messages: Sequence[UIMessage]) -> list[dict[str, Any]]:
    """Return the conversation as the API wants it.

    Raises LocalProtocolError if a tool's input or output has no JSON form.
    """
    translated: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "assistant":
            for call in model_calls(message.parts):
                translated.extend(_assistant(call))
        elif message.role == "user":
            translated.append({"role": "user", "content": _user_content(message.parts)})
        else:
            translated.append({"role": "system", "content": message.text})
    return translated


def openai_tools(tools: Sequence[ToolSchema]) -> list[dict[str, Any]]:
    """Return tools as the API wants them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in tools
    ]


def _user_content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    content = [piece for part in parts if (piece := _user_piece(part)) is not None]
    if all(piece["type"] == "text" for piece in content):
        # Text alone goes as a string: small servers know no other form.
        return "\n".join(piece["text"] for piece in content)
    return content


def _user_piece(part: dict[str, Any]) -> dict[str, Any] | None:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "file", "url": str(url), "mediaType": str(media_type)}:
            if media_type.startswith("image/") and url.startswith(("data:image/", "https://", "http://")):
                return {"type": "image_url", "image_url": {"url": url}}
            return {
                "type": "text",
                "text": f"[a file that can't be read here: {part.get('filename') or media_type}]",
            }
    return None


def _assistant(call: ModelCall) -> Iterator[dict[str, Any]]:
    """Return one model call: text and tool calls, then what the tools said."""
    content = "".join(part["text"] for part in call.parts if part["type"] == "text")
    if not call.outcomes:
        if content:
            yield {"role": "assistant", "content": content}
        return
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if reasoning := "".join(
        part["text"] for part in call.parts if part.get("providerMetadata") == PASSED_BACK
    ):
        message["reasoning_content"] = reasoning
    yield {**message, "tool_calls": [_tool_call(outcome) for outcome in call.outcomes]}
    for outcome in call.outcomes:
        yield {"role": "tool", "tool_call_id": outcome.call_id, "content": outcome.text}


def _tool_call(outcome: ToolOutcome) -> dict[str, Any]:
    arguments = encode_json(outcome.input or {}).decode()
    return {
        "id": outcome.call_id,
        "type": "function",
        "function": {"name": outcome.name, "arguments": arguments},
    }

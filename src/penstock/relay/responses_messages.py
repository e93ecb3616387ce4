"""Translates a conversation of `UIMessage`s into the `input` of an OpenAI-compatible `/responses` request. Sans-I/O.

The whole conversation goes along each time, in items of the simplest form, which all servers know. What a model could
not use is left out: sources, data, tool calls without an outcome. Reasoning goes back encrypted as it came, and only
what followed the user's last message: the model goes on with it after a tool call, and ignores it afterwards.

Source: the API reference of OpenAI, "Create a model response"; its guide "Reasoning models"; parts as in `UIMessage` of
the npm package `ai`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.relay.model_calls import ModelCall, model_calls
from penstock.relay.tool_schema import ToolSchema
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage


def responses_input(messages: Sequence[UIMessage]) -> list[dict[str, Any]]:
    """Return the conversation as the API wants it.

    Raises LocalProtocolError if a tool's input or output has no JSON form.
    """
    items: list[dict[str, Any]] = []
    last_user = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            for call in model_calls(message.parts):
                items.extend(_items(call, with_reasoning=index > last_user))
        elif message.role == "user":
            items.append({"role": "user", "content": _user_content(message.parts)})
        else:
            items.append({"role": "system", "content": message.text})
    return items


def responses_tools(tools: Sequence[ToolSchema]) -> list[dict[str, Any]]:
    """Return tools as the API wants them. It would have them strict, where no argument may be left out."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": False,
        }
        for tool in tools
    ]


def _user_content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    content = [piece for part in parts if (piece := _user_piece(part)) is not None]
    if all(piece["type"] == "input_text" for piece in content):
        return "\n".join(piece["text"] for piece in content)
    return content


def _user_piece(part: dict[str, Any]) -> dict[str, Any] | None:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "input_text", "text": text}
        case {"type": "file", "url": str(url), "mediaType": str(media_type)}:
            name = str(part.get("filename") or media_type)
            if media_type.startswith("image/") and url.startswith(("data:image/", "https://", "http://")):
                return {"type": "input_image", "image_url": url, "detail": "auto"}
            if media_type == "application/pdf" and url.startswith("data:application/pdf;base64,"):
                return {"type": "input_file", "filename": name, "file_data": url}
            if media_type == "application/pdf" and url.startswith("https://"):
                return {"type": "input_file", "file_url": url}
            return {"type": "input_text", "text": f"[a file that can't be read here: {name}]"}
    return None


def _items(call: ModelCall, *, with_reasoning: bool) -> Iterator[dict[str, Any]]:
    if with_reasoning:
        yield from _reasoning(call.parts)
    texts = [part for part in call.parts if part["type"] == "text" and part["text"]]
    if texts:
        message = {"role": "assistant", "content": "".join(part["text"] for part in texts)}
        if isinstance(phase := _openai(texts[-1]).get("phase"), str):
            message["phase"] = phase
        yield message
    for outcome in call.outcomes:
        if isinstance(outcome.input, str):
            yield {
                "type": "custom_tool_call",
                "call_id": outcome.call_id,
                "name": outcome.name,
                "input": outcome.input,
            }
        else:
            yield {
                "type": "function_call",
                "call_id": outcome.call_id,
                "name": outcome.name,
                "arguments": encode_json(outcome.input or {}).decode(),
            }
    for outcome in call.outcomes:
        kind = "custom_tool_call_output" if isinstance(outcome.input, str) else "function_call_output"
        yield {"type": kind, "call_id": outcome.call_id, "output": outcome.text}


def _reasoning(parts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Put items together from their parts; the last of each has the encrypted content."""
    items: dict[str, dict[str, Any]] = {}
    for part in parts:
        kept = _openai(part)
        if part["type"] != "reasoning" or not isinstance(item_id := kept.get("itemId"), str):
            continue
        item = items.setdefault(item_id, {"type": "reasoning", "id": item_id, "summary": []})
        if part["text"]:
            item["summary"].append({"type": "summary_text", "text": part["text"]})
        if isinstance(encrypted := kept.get("reasoningEncryptedContent"), str):
            item["encrypted_content"] = encrypted
    yield from (item for item in items.values() if "encrypted_content" in item)


def _openai(part: dict[str, Any]) -> dict[str, Any]:
    metadata = part.get("providerMetadata")
    kept = metadata.get("openai") if isinstance(metadata, dict) else None
    return kept if isinstance(kept, dict) else {}

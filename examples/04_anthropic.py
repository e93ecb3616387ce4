"""Answers by the official `anthropic` SDK, on Trio as it is: thinking becomes reasoning, and the model may use a tool.

    pip install anthropic
    cd examples
    export ANTHROPIC_API_KEY=…
    penstock serve 04_anthropic:answer

Then open http://127.0.0.1:8000 and ask what the weather is like in Zürich.
"""

from __future__ import annotations

import os
from typing import Any, cast

from anthropic import APIConnectionError, AsyncAnthropic, OverloadedError, RateLimitError, Timeout
from anthropic.types import Message, MessageParam, ThinkingConfigParam, ToolParam, ToolResultBlockParam

from penstock import AnswerError, FinishReason, Turn

MODEL = os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-5-5")
MODEL_CALLS = 8  # a model that never stops calling tools would cost without end
ENDS: dict[str, FinishReason] = {"end_turn": "stop", "max_tokens": "length", "refusal": "content-filter"}
CITY: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
THINKING: ThinkingConfigParam = {"type": "adaptive", "display": "summarized"}
TOOLS: list[ToolParam] = [{"name": "get_weather", "description": "The weather now.", "input_schema": CITY}]

# One client for the process. 60 s is the longest silence between two pieces of an answer, not the longest answer.
client = AsyncAnthropic(timeout=Timeout(60.0, connect=5.0))


async def answer(turn: Turn) -> None:
    """Call the model, and the tools it asks for, until it has nothing more to ask."""
    history = [{"role": said.role, "content": said.text} for said in turn.messages if said.text]
    messages = cast("list[MessageParam]", history)
    turn.finish_reason = "tool-calls"  # what it is if the model is still calling tools at the end
    try:
        for _ in range(MODEL_CALLS):
            async with turn.step():
                message = await call_model(turn, messages)
                calls = [block for block in message.content if block.type == "tool_use"]
                results = [await run_tool(turn, call.id, call.name, call.input) for call in calls]
            if not results:
                turn.finish_reason = ENDS.get(message.stop_reason or "", "other")
                break
            # The whole message goes back, thinking with its signature too: the API checks it.
            messages.append({"role": "assistant", "content": message.content})
            messages.append({"role": "user", "content": results})
    except (RateLimitError, OverloadedError) as exc:
        raise AnswerError("The model is busy. Please try again in a moment.") from exc
    except APIConnectionError as exc:
        raise AnswerError("The model could not be reached.") from exc


async def call_model(turn: Turn, messages: list[MessageParam]) -> Message:
    """Stream one model call into the turn, and return the message whole. A stop closes the request at once."""
    async with client.messages.stream(
        model=MODEL, max_tokens=16_000, thinking=THINKING, tools=TOOLS, messages=messages
    ) as stream:
        events = aiter(stream)  # one iterator for both loops
        async for event in events:
            if event.type != "content_block_start" or event.content_block.type not in ("thinking", "text"):
                continue
            async with turn.reasoning() if event.content_block.type == "thinking" else turn.text() as part:
                async for piece in events:
                    if piece.type == "content_block_stop":
                        break
                    if piece.type == "thinking":
                        await part.write(piece.thinking)
                    elif piece.type == "text":
                        await part.write(piece.text)
        message = await stream.get_final_message()
    if message.stop_reason is None:
        raise AnswerError("The model's answer was cut off.")
    return message


async def run_tool(turn: Turn, call_id: str, name: str, given: Any) -> ToolResultBlockParam:
    """Run a tool. Its failure is not the answer's: the user sees it, and the model is told and may do without."""
    async with turn.tool_call(name, given, id=call_id) as call:
        try:
            output = await get_weather(given["city"])
        except (LookupError, TypeError):  # no such city, or no city was given
            await call.error("There is no weather for that.")
            return {"type": "tool_result", "tool_use_id": call_id, "content": "unknown", "is_error": True}
        await call.output(output)
        return {"type": "tool_result", "tool_use_id": call_id, "content": output}


async def get_weather(city: str) -> str:
    """Look the weather up. A real one asks a service, with a deadline: `with trio.fail_after(10):`."""
    return {"Zürich": "Rain, 11 °C", "Bergen": "Rain, 8 °C"}[city]

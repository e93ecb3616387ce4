"""Answers by a pydantic-ai agent: its tools, its reasoning, its text, in the AI SDK's own chunks.

    pip install 'pydantic-ai-slim[openai]' trio-asyncio
    cd examples
    export OPENAI_API_KEY=…                  # OPENAI_BASE_URL for another server
    penstock serve 05_pydantic_ai:answer

Then open http://127.0.0.1:8000 and ask what the weather is like in Zürich.

Agents need asyncio (`no running event loop` is what they say on Trio), so one runs in an asyncio loop inside the turn's
own task, by trio-asyncio. What needs no agent runs on Trio without it: `pydantic_ai.direct.model_request_stream`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import msgspec
import trio_asyncio
from openai import AsyncOpenAI, Timeout
from pydantic_ai import Agent, AgentRunResult
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from pydantic_ai.ui.vercel_ai.response_types import BaseChunk, DoneChunk, ErrorChunk

from penstock import AnswerError, Turn, decode_chunk

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5.4-mini")

agent = Agent(instructions="Be brief.")


@agent.tool_plain
async def get_weather(city: str) -> str:
    """The weather in a city now."""
    # This runs on asyncio: await its libraries here, or Trio's by `trio_asyncio.trio_as_aio`.
    return {"Zürich": "Rain, 11 °C", "Bergen": "Rain, 8 °C"}.get(city, "unknown")


async def answer(turn: Turn) -> None:
    """Run the agent on the conversation, and write what it streams."""
    request = {
        "trigger": "submit-message",
        "id": turn.chat_id,
        "messages": msgspec.to_builtins(turn.messages),
    }
    adapter = VercelAIAdapter(
        agent=agent, run_input=VercelAIAdapter.build_run_input(msgspec.json.encode(request)), sdk_version=6
    )

    whole = False

    async def note(result: AgentRunResult[Any]) -> None:
        nonlocal whole
        whole = "finish_reason" in (result.response.provider_details or {})

    async def run() -> None:
        write = trio_asyncio.trio_as_aio(turn.write)
        # Connections belong to the loop they were opened in, and that ends with the turn: so must the client. One that
        # turns share, as a model that is named by a string makes, would give them each other's dead connections.
        async with AsyncOpenAI(timeout=Timeout(60.0, connect=5.0)) as client:
            model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
            stream = cast("AsyncGenerator[BaseChunk]", adapter.run_stream(model=model, on_complete=note))
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, ErrorChunk):
                        # An exception's own text is for the log. Raised, it goes there, and the user reads less.
                        raise RuntimeError(f"the agent failed: {chunk.error_text}")
                    if not isinstance(chunk, DoneChunk):
                        await write(decode_chunk(chunk.encode(adapter.sdk_version).encode()))

    # The bridge is crossed for the whole run, not for each await of it: its cancel scopes stay in one asyncio task. A stop
    # cancels that task, and the loop is gone before the turn's end is written.
    async with trio_asyncio.open_loop():
        await trio_asyncio.aio_as_trio(run)()
    if not whole:
        # A model's stream may end politely in the middle, without a reason; the agent takes that for success.
        raise AnswerError("The model's answer was cut off.")

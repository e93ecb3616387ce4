"""Answers by the official `openai` SDK, which runs on Trio as it is.

    pip install openai
    cd examples
    export OPENAI_API_KEY=…       # and OPENAI_BASE_URL for another server, as http://127.0.0.1:11434/v1 for Ollama
    penstock serve 03_openai:answer

Then open http://127.0.0.1:8000. Stop an answer: the request to the model ends at the same moment.
"""

from __future__ import annotations

import os
from typing import cast

from openai import APIConnectionError, AsyncOpenAI, RateLimitError, Timeout
from openai.types.chat import ChatCompletionMessageParam

from penstock import AnswerError, FinishReason, Turn, openai_messages

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5.4-mini")
FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
}

# One client for the process, so that turns share its connections; the key and the address are from the environment.
# 60 s is the longest silence between two pieces of an answer, not the longest answer.
client = AsyncOpenAI(timeout=Timeout(60.0, connect=5.0))


async def answer(turn: Turn) -> None:
    """Stream the model's text into the turn."""
    messages = cast("list[ChatCompletionMessageParam]", openai_messages(turn.messages))
    finish_reason = None
    try:
        # Left by a stop or an error, this block closes the request: the provider stops, and stops counting.
        async with await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True
        ) as completion:
            async with turn.text() as text:
                async for chunk in completion:
                    for choice in chunk.choices:  # none in the chunk that has the usage
                        await text.write(choice.delta.content or choice.delta.refusal or "")
                        finish_reason = choice.finish_reason or finish_reason
    # The user reads an AnswerError's text. Whatever else is raised goes to the log, and the user is told that it failed.
    except RateLimitError as exc:
        raise AnswerError("The model is busy. Please try again in a moment.") from exc
    except APIConnectionError as exc:  # a timeout is one too
        raise AnswerError("The model could not be reached.") from exc
    if finish_reason is None:
        # A stream may end politely in the middle. Half an answer must not look like a whole one.
        raise AnswerError("The model's answer was cut off.")
    turn.finish_reason = FINISH_REASONS.get(finish_reason, "other")

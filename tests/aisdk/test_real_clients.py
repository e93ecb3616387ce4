"""The real clients of `ai` 5, 6 and 7 take every chunk of every turn, and end with the message that we would say."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any, get_args

import pytest
from node import drive, require_node

from penstock import chat_app
from penstock.demo.model import answer
from penstock.testing import open_server
from penstock.wire.assembly import assemble
from penstock.wire.codec import decode_chunk
from penstock.wire.versions import SdkVersion

COMMANDS = (
    "Hello, my name is Ada.", "/long 500", "/slow", "/reason", "/tool", "/sources", "/file", "/data", "/error",
    "/silent 1", "/steps", "/approve",
)  # fmt: skip


@pytest.fixture(autouse=True)
def node() -> None:
    """The part that all of this needs."""
    require_node()


async def test_every_command_of_the_demo(caplog: pytest.LogCaptureFixture) -> None:
    """By every version, and all at the same time, each in a chat of its own: one of them takes six seconds."""
    sdks: tuple[SdkVersion, ...] = get_args(SdkVersion)
    async with AsyncExitStack() as stack:
        jobs = []
        for sdk in sdks:
            url = await stack.enter_async_context(open_server(chat_app(answer, sdk_version=sdk)))
            jobs += [
                {"version": sdk, "url": f"{url}/api/chat", "chatId": f"chat-{index}", "text": text}
                for index, text in enumerate(COMMANDS)
            ]
        driven = await drive(jobs)
    for number, sdk in enumerate(sdks):
        first = number * len(COMMANDS)
        check_demo(sdk, dict(zip(COMMANDS, driven[first : first + len(COMMANDS)], strict=True)))


def check_demo(sdk: SdkVersion, results: dict[str, Any]) -> None:
    """Check what the clients of one version have made of all commands."""
    for text, result in results.items():
        assert not result["timedOut"], text
        [response] = result["responses"]
        assert response["status"] == 200, text
        assert response["headers"]["content-type"] == "text/event-stream"
        assert response["headers"]["x-vercel-ai-ui-message-stream"] == "v1"
        assert response["text"].startswith(": ")
        assert response["text"].endswith("data: [DONE]\n\n")
        assert response["bodyError"] is None
        assert response["invalid"] == [], text
        chunks = [decode_chunk(json.dumps(chunk).encode()) for chunk in response["chunks"]]
        assert [chunk.kind for chunk in chunks].count("start") == 1
        assert chunks[-1].kind == ("error" if text == "/error" else "finish")
        [finish] = result["finish"]
        assert finish["message"] == result["messages"][-1] == assemble(chunks, "", sdk), text
        assert [message["role"] for message in result["messages"]] == ["user", "assistant"]
        assert result["status"] == ("error" if text == "/error" else "ready"), text
    assert results["/error"]["error"] == results["/error"]["responses"][0]["chunks"][-1]["errorText"]
    assert len(part(results["Hello, my name is Ada."], "text")["text"]) > 10
    assert part(results["/reason"], "reasoning")["state"] == "done"
    assert results["/tool"]["toolCalls"]
    assert part(results["/file"], "file")["url"]
    assert part(results["/sources"], "source-url")["url"]
    assert results["/data"]["data"]
    assert sum(each["type"] == "step-start" for each in results["/steps"]["messages"][-1]["parts"]) == 2


async def test_a_refusal_is_shown_as_it_is() -> None:
    """The client's error is the body, so that it must be a sentence for people."""
    async with open_server(chat_app(answer)) as url:
        jobs = [
            {"version": sdk, "url": f"{url}/api/chat", "chatId": "not a chat id", "text": "Hello"}
            for sdk in get_args(SdkVersion)
        ]
        for result in await drive(jobs):
            [response] = result["responses"]
            assert response["status"] == 400
            assert result["status"] == "error"
            assert result["error"] == response["text"]
            assert response["text"].endswith(".")


def part(result: dict[str, Any], kind: str) -> dict[str, Any]:
    """The first part of a kind in the answer."""
    found: dict[str, Any] = next(part for part in result["messages"][-1]["parts"] if part["type"] == kind)
    return found

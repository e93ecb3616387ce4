"""The real clients lose their connection after any chunk, come back, and show what one shows that never lost it.

What they may do is what `ai` does: `useChat` of 6 and 7 can resume on the page where the connection was lost, and all of
them on a new page. 5 keeps the parts that it has when it resumes on the same page, whatever it is sent then.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
from node import Job, drive, require_node

from penstock import Turn, chat_app
from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.demo.model import answer as demo
from penstock.testing import open_server
from penstock.wire.codec import decode_chunk
from penstock.wire.versions import SdkVersion

Result = dict[str, Any]
Step = dict[str, Any]

MIXED = [
    {"type": "message-metadata", "messageMetadata": {"model": "m"}},
    {"type": "start-step"},
    {"type": "reasoning-start", "id": "r"},
    {"type": "reasoning-delta", "id": "r", "delta": "Hm, "},
    {"type": "reasoning-delta", "id": "r", "delta": "well."},
    {"type": "reasoning-end", "id": "r"},
    {"type": "tool-input-start", "toolCallId": "c", "toolName": "add"},
    {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"a": [1, '},
    {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '2], "b": 3}'},
    {"type": "tool-input-available", "toolCallId": "c", "toolName": "add", "input": {"a": [1, 2], "b": 3}},
    {"type": "data-weather", "id": "w", "data": {"sun": 1}},
    {"type": "tool-output-available", "toolCallId": "c", "output": "some", "preliminary": True},
    {"type": "data-weather", "id": "w", "data": {"rain": 2}},
    {"type": "data-note", "data": "passing", "transient": True},
    {"type": "tool-output-available", "toolCallId": "c", "output": 6},
    {"type": "finish-step"},
    {"type": "start-step"},
    {"type": "source-url", "sourceId": "s", "url": "https://example.org/"},
    {"type": "source-document", "sourceId": "d", "mediaType": "text/plain", "title": "A paper"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "It is"},
    {"type": "text-delta", "id": "t", "delta": " 6."},
    {"type": "text-end", "id": "t"},
    {"type": "finish-step"},
]
"""Of every kind something, with what is replaced and what does not last."""

ASKS = [
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "Shall I?"},
    {"type": "text-end", "id": "t"},
    {"type": "tool-input-available", "toolCallId": "c", "toolName": "delete", "input": {"file": "a"}},
    {"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a"},
    {"type": "finish-step"},
]
GOES_ON = [
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "So "},
    {"type": "text-delta", "id": "t", "delta": "be it."},
    {"type": "text-end", "id": "t"},
    {"type": "finish-step"},
]
DELETED = {"type": "tool-output-available", "toolCallId": "c", "output": "deleted"}

EVERY_CHUNK = len(MIXED) + 2
"""With `start` and `finish`."""


@pytest.fixture(autouse=True)
def node() -> None:
    """The part that all of this needs."""
    require_node()


class Stage:
    """A server whose answers wait, where a request's `hold` says so, until somebody has come back to them."""

    def __init__(self) -> None:
        self._back: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._app: ASGIApp = chat_app(self._answer)

    async def _answer(self, turn: Turn) -> None:
        if turn.prompt.startswith("/"):
            await demo(turn)
        elif turn.prompt != "ask":
            await self._play(turn, MIXED)
        elif turn.messages[-1].role == "user":
            await self._play(turn, ASKS)
        else:
            await self._play(turn, [*(DELETED for _ in turn.approved_calls()), *GOES_ON])

    async def _play(self, turn: Turn, chunks: Sequence[dict[str, Any]]) -> None:
        hold = turn.body.get("hold")
        for index, chunk in enumerate([*chunks, None]):
            if index == hold:
                # The same event by either name: some clients come back by the chat's id, some by the turn's.
                self._back[turn.id] = self._back[turn.chat_id]
                await self._back[turn.chat_id].wait()
            if chunk is not None:
                await turn.write(decode_chunk(json.dumps(chunk).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the app, and notice whose return is being answered."""
        path = scope.get("path", "")

        async def noticing(event: dict[str, Any]) -> None:
            await send(event)
            if event["type"] == "http.response.start" and path.endswith("/stream"):
                self._back[path.split("/")[-2].partition("~")[0]].set()

        await self._app(scope, receive, noticing)


@asynccontextmanager
async def stage() -> AsyncIterator[str]:
    """Serve a stage, and yield its chat endpoint."""
    async with open_server(Stage()) as url:
        yield f"{url}/api/chat"


def visit(url: str, version: SdkVersion, chat_id: str, *steps: Step, **job: Any) -> Job:
    """A user's visit, by a client that says its version."""
    headers = {"x-penstock-sdk": str(version)}
    return {"url": url, "version": version, "chatId": chat_id, "headers": headers, "visit": steps, **job}


def do(name: str, **step: Any) -> Step:
    """A step of a visit."""
    return {"do": name, **step}


def shown(step: Result) -> list[dict[str, Any]]:
    """What a page shows, but for the messages' ids, which differ from turn to turn."""
    assert (step["status"], step["error"]) == ("ready", None)
    return anonymous(step["messages"])


def anonymous(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without their ids, which differ from turn to turn."""
    return [{**message, "id": ""} for message in messages]


async def test_after_a_loss_at_any_chunk_the_same_page_and_a_new_one_show_the_whole_answer() -> None:
    """Whether the answer goes on meanwhile, has ended, or is cut off once more while it is replayed."""
    jobs: dict[tuple[SdkVersion, str], Job] = {}
    async with stage() as url:
        for version in (5, 6, 7):
            jobs[version, "uncut"] = visit(url, version, f"{version}.uncut", do("send", text="Hello"))
            for k in range(EVERY_CHUNK + 1):
                for name, job in losses(url, version, k):
                    jobs[version, name] = job
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    for (version, name), result in results.items():
        whole = shown(results[version, "uncut"]["steps"][-1])
        assert shown(result["steps"][-1]) == whole, (version, name)
        assert {request["status"] for request in result["requests"]} == {200}, (version, name)
        if name != "uncut":
            assert result["steps"][0]["error"] == "terminated"
            assert result["steps"][0]["status"] == "error"
    assert len(whole[-1]["parts"]) == 8


def losses(url: str, version: SdkVersion, k: int) -> Iterable[tuple[str, Job]]:
    """Every way to come back after so many chunks."""
    # One is `start`, which the producer does not write.
    hold = {} if k == EVERY_CHUNK else {"hold": max(k - 1, 0)}
    lost = do("send", text="Hello", cuts=[k], body=hold)
    ways: dict[str, list[Step]] = {
        "new": [lost, do("reload"), do("resume")],
        "new, whose app keeps finished answers only": [lost, do("reload", without=True), do("resume")],
        "new, late": [do("send", text="Hello", cuts=[k]), do("wait", state="finished"), do("reload"), do("resume")],
    }
    if version > 5:
        ways |= {
            "same": [lost, do("resume")],
            "same, late": [do("send", text="Hello", cuts=[k]), do("wait", state="finished"), do("resume")],
            "same, twice": [lost, do("resume", cuts=[k // 2]), do("resume")],
        }
    for name, steps in ways.items():
        chat_id = f"{version}.{k}.{name.replace(' ', '-').replace(',', '')}"
        yield f"{name}, after {k}", visit(url, version, chat_id, *steps)

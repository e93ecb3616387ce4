"""The real clients lose their connection after any chunk, come back, and show what one shows that never lost it.

What they may do is what `ai` does: `useChat` of 6 and 7 can resume on the page where the connection was lost, and all of
them on a new page. 5 keeps the parts that it has when it resumes on the same page, whatever it is sent then.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, get_args

import pytest
import trio
from node import Job, drive, require_node

from penstock import Turn, chat_app
from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.demo.model import answer as demo
from penstock.testing import open_server
from penstock.wire.codec import decode_chunk
from penstock.wire.versions import SdkVersion

Json: TypeAlias = dict[str, Any]

MIXED: list[Json] = [
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

ASKS: list[Json] = [
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "Shall I?"},
    {"type": "text-end", "id": "t"},
    {"type": "tool-input-available", "toolCallId": "c", "toolName": "delete", "input": {"file": "a"}},
    {"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a"},
    {"type": "finish-step"},
]
GOES_ON: list[Json] = [
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "So "},
    {"type": "text-delta", "id": "t", "delta": "be it."},
    {"type": "text-end", "id": "t"},
    {"type": "finish-step"},
]
DELETED: Json = {"type": "tool-output-available", "toolCallId": "c", "output": "deleted"}

EVERY_CHUNK = len(MIXED) + 2
"""With `start` and `finish`."""
TEXT_END = EVERY_CHUNK - 3
"""The chunks that come before it; without it, the message isn't whole."""


@pytest.fixture(autouse=True)
def node() -> None:
    """The part that all of this needs."""
    require_node()


async def play(turn: Turn, come_back: Callable[[], Awaitable[None]]) -> None:
    """Answer with the chunks that the prompt asks for, and before the one that `hold` names wait for somebody."""
    if turn.prompt.startswith("/"):
        await demo(turn)
        return
    if turn.prompt != "ask":
        chunks = MIXED
    elif turn.messages[-1].role == "user":
        chunks = ASKS
    else:
        chunks = [*(DELETED for _ in turn.approved_calls()), *GOES_ON]
    held_at = turn.body.get("hold")
    for index, chunk in enumerate([*chunks, None]):
        if index == held_at:
            await come_back()
        if chunk is not None:
            await turn.write(decode_chunk(json.dumps(chunk).encode()))


class Stage:
    """A server whose answers wait, where a request's `hold` says so, until somebody has come back to them."""

    def __init__(self) -> None:
        self._back: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._app: ASGIApp = chat_app(self._answer)

    async def _answer(self, turn: Turn) -> None:
        await play(turn, self._back[turn.id].wait)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the app, and notice whose return is being answered."""
        path = scope.get("path", "")

        async def noticing(event: Json) -> None:
            await send(event)
            if event["type"] == "http.response.start" and path.endswith("/stream"):
                turn_id = dict(event["headers"]).get(b"x-penstock-turn", b"")
                self._back[turn_id.decode()].set()

        await self._app(scope, receive, noticing)


@asynccontextmanager
async def stage() -> AsyncIterator[str]:
    """Serve a stage, and yield its chat endpoint."""
    async with open_server(Stage()) as url:
        yield f"{url}/api/chat"


def visit(url: str, version: SdkVersion, chat_id: str, *steps: Json, **job: Any) -> Job:
    """A user's visit, by a client that says its version."""
    headers = {"x-penstock-sdk": str(version)}
    return {"url": url, "version": version, "chatId": chat_id, "headers": headers, "visit": steps, **job}


def do(name: str, **step: Any) -> Json:
    """A step of a visit."""
    return {"do": name, **step}


def hold(index: int) -> Json:
    """What a request says for the producer to wait before this one of its chunks."""
    return {"hold": max(index, 0)}


def shown(step: Json) -> list[Json]:
    """What a page shows, but for the messages' ids, which differ from turn to turn."""
    assert (step["status"], step["error"]) == ("ready", None)
    return anonymous(step["messages"])


def anonymous(messages: Iterable[Json]) -> list[Json]:
    """Messages without their ids, which differ from turn to turn."""
    return [{**message, "id": ""} for message in messages]


async def test_after_a_loss_at_any_chunk_the_same_page_and_a_new_one_show_the_whole_answer() -> None:
    """Whether the answer goes on meanwhile, has ended, or is cut off once more while it is replayed."""
    jobs: dict[tuple[SdkVersion, str], Job] = {}
    async with stage() as url:
        for version in get_args(SdkVersion):
            jobs[version, "uncut"] = visit(url, version, f"uncut{version}", do("send", text="Hello"))
            for k in range(EVERY_CHUNK + 1):
                for way, steps in ways_back(version, k).items():
                    jobs[version, f"{way}, {k}"] = visit(url, version, f"c{len(jobs)}", *steps)
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    for (version, way), result in results.items():
        whole = shown(results[version, "uncut"]["steps"][-1])
        assert len(whole[-1]["parts"]) == 8
        assert shown(result["steps"][-1]) == whole, (version, way)
        if way != "uncut":
            assert (result["steps"][0]["status"], result["steps"][0]["error"]) == ("error", "terminated")
            assert {request["status"] for request in result["requests"]} == {200}
        if way in {f"new page, {k}" for k in range(TEXT_END)}:
            assert shown(result["steps"][1]) != whole


def ways_back(version: SdkVersion, k: int) -> dict[str, list[Json]]:
    """What a user may do after so many chunks. In `lost` the answer stops there until the user is back."""
    lost = do("send", text="Hello", cuts=[k], body=hold(k - 1) if k < EVERY_CHUNK else {})
    ended = [do("send", text="Hello", cuts=[k]), do("wait", state="finished")]
    if version == 5:
        return {"new page, with what is over only": [lost, do("reload", without=True), do("resume")]}
    if version == 6:
        return {
            "same page": [lost, do("resume")],
            "same page, twice": [lost, do("resume", cuts=[k // 2]), do("resume")],
            "new page": [lost, do("reload"), do("resume")],
        }
    return {
        "same page": [lost, do("resume")],
        "new page": [lost, do("reload"), do("resume")],
        "same page, late": [*ended, do("resume")],
        "new page, late": [*ended, do("reload"), do("resume")],
    }


async def test_who_only_left_comes_back_to_the_whole_answer() -> None:
    """A page that stops reading stops nothing."""
    async with stage() as url:
        steps = [do("send", text="Hello", until=9, body=hold(8)), do("leave"), do("resume")]
        jobs = [visit(url, version, f"c{version}", *steps) for version in (6, 7)]
        jobs += [visit(url, version, f"d{version}", do("send", text="Hello")) for version in (6, 7)]
        left6, left7, whole6, whole7 = await drive(jobs)
    assert left6["steps"][1]["status"] == "ready"
    assert shown(left6["steps"][-1]) == shown(whole6["steps"][-1])
    assert shown(left7["steps"][-1]) == shown(whole7["steps"][-1])


async def test_a_stopped_answer_is_the_same_on_every_page() -> None:
    """The page that reads it is told, and a page that comes later gets it as it was then."""
    steps = [
        do("send", text="Hello", until=9, body=hold(8)),
        do("stop"),
        do("settle"),
        do("reload"),
        do("resume"),
    ]
    async with stage() as url:
        results = await drive(
            [visit(url, version, f"c{version}", *steps) for version in get_args(SdkVersion)]
        )
    for result in results:
        _, _, settled, new, resumed = result["steps"]
        *_, step_start, reasoning, tool = shown(settled)[-1]["parts"]
        assert (step_start["type"], reasoning["text"]) == ("step-start", "Hm, well.")
        assert tool["state"] == "output-error"
        assert shown(settled) == shown(new) == shown(resumed)


@pytest.mark.parametrize("approved", [True, False])
async def test_the_demo_asks_and_goes_on_from_whichever_page_answers(approved: bool) -> None:
    """A page that was loaded while the answer waited goes on with it like the page that asked."""
    decide = do("approve", approved=approved, reason="so be it")
    async with open_server(chat_app(demo)) as url:
        jobs = [
            visit(f"{url}/api/chat", version, f"{way}{version}", do("send", text="/approve"), *steps)
            for version in (6, 7)
            for way, steps in {
                "same": [decide, do("reload"), do("resume")],
                "new": [do("reload"), decide, do("reload"), do("resume")],
                "resumed": [do("reload"), do("resume"), decide, do("reload"), do("resume")],
            }.items()
        ]
        results = await drive(jobs)
    for job, result in zip(jobs, results, strict=True):
        answered, new, resumed = (shown(step) for step in result["steps"][-3:])
        text, tool, last = [part for part in answered[-1]["parts"] if part["type"] != "step-start"]
        assert text["text"] == "I won't do this without your word."
        assert tool["state"] == ("output-available" if approved else "output-denied")
        assert (tool["approval"]["approved"], tool["approval"]["reason"]) == (approved, "so be it")
        assert last["text"] == ("The gate is open." if approved else "The gate stays shut.")
        assert [message["role"] for message in answered] == ["user", "assistant"]
        assert new == answered, job["chatId"]
        assert resumed == as_replayed(answered, job["version"]), job["chatId"]
        assert [request["method"] for request in result["requests"]].count("POST") == 2


@pytest.mark.parametrize("approved", [True, False])
async def test_after_a_loss_at_any_chunk_of_a_continuation_the_whole_answer_is_shown(approved: bool) -> None:
    """The continuation is a stream of its own, and what is replayed is nevertheless the message from its beginning."""
    jobs: dict[tuple[SdkVersion, str], Job] = {}
    decide = do("approve", approved=approved)
    async with stage() as url:
        for version in (6, 7):
            jobs[version, "uncut"] = visit(url, version, f"uncut{version}", do("send", text="ask"), decide)
            # What is written before the producer goes on: `start`, the decision, and that the call was denied.
            before = 1 + (version == 7) + (not approved)
            every_chunk = before + approved + len(GOES_ON) + 1
            for k in range(every_chunk + 1):
                lost = decide | {"cuts": [k], "body": hold(k - before) if k < every_chunk else {}}
                for way, steps in {"same page": [], "new page": [do("reload")]}.items():
                    jobs[version, f"{way}, {k}"] = visit(
                        url, version, f"c{len(jobs)}", do("send", text="ask"), lost, *steps, do("resume")
                    )
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    for (version, way), result in results.items():
        whole = shown(results[version, "uncut"]["steps"][-1])
        assert len(whole[-1]["parts"]) == 5
        if way != "uncut":
            assert result["steps"][1]["error"] == "terminated", (version, way)
            whole = as_replayed(whole, version)
        assert shown(result["steps"][-1]) == whole, (version, way)


def as_replayed(messages: list[Json], version: SdkVersion) -> list[Json]:
    """Messages without what no chunk can tell a client of 6: how an approval was decided, but by what came of it."""
    if version == 6:
        for part in messages[-1]["parts"]:
            if "approval" in part:
                part["approval"] = {"id": part["approval"]["id"]}
    return messages


async def test_the_workflow_transport_reconnects_by_itself_after_a_loss_at_any_chunk() -> None:
    """It says how many chunks it has; of those it gets none again and misses none."""
    jobs: dict[str, Job] = {}
    async with stage() as url:
        jobs["uncut"] = visit(url, 7, "uncut", do("send", text="Hello"))
        for k in range(EVERY_CHUNK):
            for cut in (k, {"after": k, "ends": True}):
                send = do("send", text="Hello", cuts=[cut], body=hold(k - 1))
                jobs[f"{cut}"] = visit(url, 7, f"c{len(jobs)}", send, transport="workflow")
        thrice = do("send", text="Hello", cuts=[3, 4, {"after": 5, "ends": True}, 6])
        jobs["thrice"] = visit(url, 7, "thrice", thrice, transport="workflow")
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    whole = shown(results["uncut"]["steps"][-1])
    for way, result in results.items():
        assert shown(result["steps"][-1]) == whole, way
    assert asked(results["7"]) == ["7"]
    assert asked(results["thrice"]) == ["3", "7", "12", "18"]


@pytest.mark.parametrize("sdk", ["7", "6"])
async def test_the_workflow_transport_reconnects_in_a_continuation(sdk: str) -> None:
    """Its chunks are counted from where it begins, as they were sent to this client."""
    jobs: dict[str, Job] = {}
    async with stage() as url:
        for k in range(10):
            decide = do("approve", approved=True, cuts=[k])
            jobs[f"{k}"] = visit(url, 7, f"c{k}", do("send", text="ask"), decide, transport="workflow")
            jobs[f"{k}"]["headers"] = {"x-penstock-sdk": sdk}
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    whole = shown(results["0"]["steps"][-1])
    assert len(whole[-1]["parts"]) == 5
    for way, result in results.items():
        assert shown(result["steps"][-1]) == whole, way


@pytest.mark.parametrize("transport", ["workflow", "workflow run"])
async def test_the_workflow_transport_resumes_on_a_new_page(transport: str) -> None:
    """By the run's id, if the app kept it, and else by the chat's."""
    jobs = []
    async with stage() as url:
        for k in range(1, EVERY_CHUNK, 4):
            lost = do("send", text="Hello", until=k, body=hold(k - 1))
            steps = [lost, do("leave"), do("reload", without=True), do("resume")]
            jobs.append(visit(url, 7, f"c{k}", *steps, transport=transport))
        jobs.append(visit(url, 7, "uncut", do("send", text="Hello")))
        *results, uncut = await drive(jobs)
    whole = shown(uncut["steps"][-1])
    for result in results:
        assert shown(result["steps"][-1]) == whole


def asked(result: Json) -> list[str]:
    """The `startIndex` of each request for the rest of the run that the first one began."""
    post, *gets = result["requests"]
    part, said = zip(*(get["path"].split("?startIndex=") for get in gets), strict=True)
    assert set(part) == {f"{post['path']}/{post['run']}/stream"}
    return list(said)

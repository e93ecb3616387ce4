"""The real `WebSocketChatTransport` of `ai` 7: it shows what its sibling over SSE shows, whatever happens to its socket."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from node import drive, require_node
from raw import TestServer, open_server
from test_coming_back import (
    EVERY_CHUNK,
    Json,
    do,
    hold,
    play,
    shown,
    visit,
)

from penstock import Turn, chat_app
from penstock.limits import ServerLimits
from penstock.web.auth import Request

COMMANDS = ("Hello, my name is Ada.", "/long 200", "/reason", "/tool", "/sources", "/file", "/data", "/steps")


@pytest.fixture(autouse=True)
def node() -> None:
    """The part that all of this needs."""
    require_node()


class Stage:
    """A server whose answers wait, where a request's `hold` says so, until somebody reads their chat."""

    def __init__(self) -> None:
        self._back: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.begun: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.app = chat_app(self._answer, authorize=self._authorize)

    async def _authorize(self, request: Request, chat_id: str, action: str) -> str:
        if action == "read" and request.path.endswith("/ws"):
            self._back[chat_id].set()
        return "ada"

    async def _answer(self, turn: Turn) -> None:
        async def come_back() -> None:
            self.begun[turn.chat_id].set()
            await self.back(turn.chat_id)

        await play(turn, come_back)

    async def back(self, chat_id: str) -> None:
        """Wait until somebody reads a chat over a WebSocket."""
        await self._back[chat_id].wait()

    def go_on(self, chat_id: str) -> None:
        """Wait for nobody any more."""
        self._back[chat_id].set()


@asynccontextmanager
async def stage() -> AsyncIterator[tuple[Stage, TestServer, str]]:
    """Serve a stage, and yield it with its chat endpoint."""
    stage = Stage()
    async with open_server(stage.app, limits=ServerLimits(drain_s=5, abort_s=0.2), lifespan=True) as server:
        yield stage, server, f"http://127.0.0.1:{server.port}/api/chat"


def over_websocket(url: str, chat_id: str, *steps: Json, **job: Any) -> Json:
    """A user's visit over a WebSocket."""
    return visit(url, 7, chat_id, *steps, transport="websocket", **job)


async def test_every_command_of_the_demo_is_shown_as_on_a_page_that_comes_later_over_sse() -> None:
    """All chats share one socket."""
    async with stage() as (_, _, url):
        results = await drive(
            [
                over_websocket(url, f"c{n}", do("send", text=text), socket="one")
                for n, text in enumerate(COMMANDS)
            ]
        )
        later = await drive(
            [visit(url, 7, f"c{n}", do("reload"), do("resume")) for n, _ in enumerate(COMMANDS)]
        )
    for text, websocket, sse in zip(COMMANDS, results, later, strict=True):
        assert shown(websocket["steps"][0]) == shown(sse["steps"][0]) == shown(sse["steps"][1]), text
    assert sum(len(result["sockets"]) for result in results) == 1


async def test_a_loss_at_any_chunk_is_made_good_on_the_same_page_and_on_a_new_one() -> None:
    jobs: dict[str, Json] = {}
    async with stage() as (_, _, url):
        jobs["sse"] = visit(url, 7, "sse", do("send", text="Hello"))
        jobs["uncut"] = over_websocket(url, "uncut", do("send", text="Hello"))
        for k in range(EVERY_CHUNK + 1):
            lost = do("send", text="Hello", cuts=[k], body=hold(k - 1) if k < EVERY_CHUNK else {})
            ended = [do("send", text="Hello", cuts=[k]), do("wait", state="finished")]
            for way, steps in {
                "same page": [lost, do("resume")],
                "same page, twice": [lost, do("resume", cuts=[k // 2]), do("resume")],
                "new page": [lost, do("reload"), do("resume")],
                "new page, late": [*ended, do("reload"), do("resume")],
            }.items():
                jobs[f"{way}, {k}"] = over_websocket(url, f"c{len(jobs)}", *steps)
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
    whole = shown(results["sse"]["steps"][-1])
    assert len(whole[-1]["parts"]) == 8
    for way, result in results.items():
        assert shown(result["steps"][-1]) == whole, way
        if "page" in way:
            assert "connection closed" in result["steps"][0]["error"], way
            assert result["sockets"][0] == 1006


async def test_a_stop_of_the_page_lets_go_and_a_stop_of_the_turn_is_shown() -> None:
    async with stage() as (_, _, url):
        send = do("send", text="Hello", until=9, body=hold(8))
        left, stopped, whole = await drive(
            [
                over_websocket(url, "left", send, do("leave"), do("resume")),
                over_websocket(url, "stopped", send, do("stop"), do("settle"), do("reload"), do("resume")),
                visit(url, 7, "whole", do("send", text="Hello")),
            ]
        )
    assert left["steps"][1]["status"] == "ready"
    assert shown(left["steps"][-1]) == shown(whole["steps"][-1])
    assert left["sockets"] == [None]
    _, _, settled, new, resumed = stopped["steps"]
    assert shown(settled) == shown(new) == shown(resumed)
    assert shown(settled)[-1]["parts"][-1]["state"] == "output-error"


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_goes_on_over_the_socket(approved: bool) -> None:
    async with stage() as (_, _, url):
        steps = [do("send", text="ask"), do("approve", approved=approved)]
        websocket, sse = await drive([over_websocket(url, "w", *steps), visit(url, 7, "s", *steps)])
    assert shown(websocket["steps"][-1]) == shown(sse["steps"][-1])
    assert websocket["sockets"] == [None]


async def test_two_requests_on_one_socket_end_each_by_itself() -> None:
    async with stage() as (stage_, _, url):
        jobs = [
            over_websocket(url, "held", do("send", text="Hello", body=hold(8)), socket="one"),
            over_websocket(url, "free", do("send", text="Hello"), do("wait", state="finished"), socket="one"),
        ]

        async def let_go() -> None:
            await stage_.begun["held"].wait()
            await trio.sleep(0.2)
            stage_.go_on("held")
            stage_.go_on("free")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go)
            results = await drive(jobs)
    assert shown(results[0]["steps"][-1]) == shown(results[1]["steps"][0])
    assert [result["sockets"] for result in results] == [[None], []]


async def test_a_refusal_is_shown_as_it_is_and_nothing_to_resume_is_nothing() -> None:
    async with stage() as (_, _, url):
        refused, nothing = await drive(
            [
                over_websocket(url, "not a chat id", do("send", text="x")),
                over_websocket(url, "none", do("resume")),
            ]
        )
    assert refused["steps"][0]["error"].startswith("A chat id must be")
    assert (nothing["steps"][0]["status"], nothing["steps"][0]["messages"]) == ("ready", [])


async def test_a_drain_lets_the_answer_end() -> None:
    async with stage() as (stage_, server, url):
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await stage_.begun["c"].wait()
                await trio.sleep(0.1)
                server.shutdown.set()
                await trio.sleep(0.1)
                stage_.go_on("c")

            nursery.start_soon(drain)
            send = do("send", text="Hello", body=hold(8))
            [result] = await drive([over_websocket(url, "c", send, do("closed"))])
    assert len(shown(result["steps"][0])[-1]["parts"]) == 8
    assert result["sockets"] == [1001]

"""Watching a chat: every viewer sees what happens, in order, and can come back; and approvals and lanes on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import lanes
import pytest
import trio

from penstock import Turn, chat_app
from penstock.limits import ServerLimits
from penstock.testing import open_server, record
from penstock.turns.approvals import Decision, Holder, Verdict
from penstock.web.auth import Action, Denied, Request
from penstock.wire.assembly import assemble
from penstock.wire.codec import decode_chunk
from penstock.wire.sse_parser import ServerSentEvent, SseParser

Answer = Callable[[Turn], Awaitable[None]]

lane = lanes.lane
pytestmark = pytest.mark.usefixtures("lane")


async def two_words(turn: Turn) -> None:
    """Says two words."""
    async with turn.text() as text:
        await text.write("two ")
        await text.write(turn.prompt)


class Viewer:
    """One watching client."""

    def __init__(self) -> None:
        self.events: list[ServerSentEvent] = []
        self.status = 0
        self.raw = b""
        self.ended = False

    async def run(self, url: str, last_event_id: str | None = None) -> None:
        """Watch until cancelled or the server ends it."""
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        parser = SseParser()
        async with (
            httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            self.status = response.status_code
            async for data in response.aiter_raw():
                self.raw += data
                self.events += parser.feed(data)
        self.ended = True

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to have been seen."""
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.005)

    def of(self, name: str) -> list[Any]:
        """The data of all events of a name."""
        return [json.loads(event.data) for event in self.events if event.event == name]


@asynccontextmanager
async def watching(
    answer: Answer, query: str = "", limits: ServerLimits = ServerLimits(drain_s=1.0), **options: Any
) -> AsyncIterator[tuple[str, Viewer, trio.Nursery]]:
    """Serve a producer and watch the chat `c`."""
    async with open_server(chat_app(answer, **options), limits=limits) as url, trio.open_nursery() as nursery:
        viewer = Viewer()
        nursery.start_soon(viewer.run, f"{url}/api/chat/c/watch{query}")
        await viewer.until(lambda: bool(viewer.events))
        yield f"{url}/api/chat", viewer, nursery
        nursery.cancel_scope.cancel()


async def test_a_viewer_sees_turn_after_turn() -> None:
    async with watching(two_words) as (url, viewer, _):
        assert viewer.raw.startswith(b": ok\n\n")
        assert viewer.of("snapshot") == [{"id": "c", "turn": None, "messages": []}]
        first = await record(url, "one", chat_id="c")
        second = await record(url, "more", chat_id="c")
        await viewer.until(lambda: len(viewer.of("message")) == 4)
    assert [message["role"] for message in viewer.of("message")] == ["user", "assistant"] * 2
    assert viewer.of("message")[1] == first.message
    assert viewer.of("message")[3] == second.message
    chunks = [event for event in viewer.events if event.event == "chunk"]
    posted = [event for event in first.events + second.events if event.data != "[DONE]"]
    assert [(event.data, event.last_event_id) for event in chunks] == [
        (event.data, event.last_event_id) for event in posted
    ]


async def test_a_viewer_that_comes_late_is_given_what_is_there_and_then_what_comes() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half")
            await go_on.wait()
            await text.write(" and half")

    async with watching(answer) as (url, viewer, nursery):
        nursery.start_soon(lambda: record(url, "q", chat_id="c"))
        await viewer.until(lambda: any(chunk.get("delta") == "Half" for chunk in viewer.of("chunk")))
        late = Viewer()
        nursery.start_soon(late.run, f"{url}/c/watch")
        await late.until(lambda: bool(late.events))
        assert late.of("snapshot")[0]["messages"][-1]["parts"][0]["text"] == "Half"
        assert late.of("snapshot")[0]["turn"]["state"] == "running"
        go_on.set()
        await late.until(lambda: bool(late.of("message")))
        await viewer.until(lambda: len(viewer.of("message")) == 2)
    assert late.of("message")[-1] == viewer.of("message")[-1]
    assert [chunk.get("delta") for chunk in late.of("chunk") if chunk["type"] == "text-delta"] == [
        " and half"
    ]


async def test_a_viewer_that_comes_back_with_its_last_id_misses_and_repeats_nothing() -> None:
    async with watching(two_words) as (url, viewer, nursery):
        await record(url, "one", chat_id="c")
        await viewer.until(lambda: len(viewer.of("message")) == 2)
        chunks = [event for event in viewer.events if event.event == "chunk"]
        for index, event in enumerate(chunks):
            again = Viewer()
            nursery.start_soon(again.run, f"{url}/c/watch", event.last_event_id)
            await again.until(lambda again=again: bool(again.of("message")))  # type: ignore[misc]
            assert [event for event in again.events if event.event == "chunk"] == chunks[index + 1 :]
            assert not again.of("snapshot")
            assert not again.of("gap")
        await record(url, "two", chat_id="c")
        across = Viewer()
        nursery.start_soon(across.run, f"{url}/c/watch", chunks[2].last_event_id)
        await across.until(lambda: bool(across.of("snapshot")))
        assert [event for event in across.events if event.event == "chunk"] == chunks[3:]
        assert across.of("snapshot")[0]["messages"][-1]["parts"][0]["text"] == "two two"
        void = Viewer()
        nursery.start_soon(void.run, f"{url}/c/watch", "msg_gone.1-5")
        await void.until(lambda: bool(void.of("snapshot")))
        assert [event.event for event in void.events] == ["gap", "snapshot"]


async def test_types_filter_and_unknown_names_are_reported_and_ignored() -> None:
    async with watching(two_words, "?types=text-delta,finish,nonsense,message") as (url, viewer, _):
        assert viewer.of("notice") == [{"ignored": ["nonsense"]}]
        await record(url, "one", chat_id="c")
        await viewer.until(lambda: len(viewer.of("message")) == 2)
    assert [chunk["type"] for chunk in viewer.of("chunk")] == ["text-delta", "text-delta", "finish"]
    assert not viewer.of("snapshot")


async def test_envelopes_carry_the_kind() -> None:
    async with watching(two_words, "?envelope=1") as (url, viewer, _):
        await record(url, "one", chat_id="c")
        await viewer.until(lambda: any('"event":"message"' in event.data for event in viewer.events[3:]))
        await viewer.until(lambda: viewer.events[-1].data.startswith('{"event":"message"'))
    kinds = [json.loads(event.data)["event"] for event in viewer.events]
    assert kinds == [
        "snapshot", "message", "start", "text-start", "text-delta", "text-delta", "text-end", "finish", "message",
    ]  # fmt: skip
    assert {event.event for event in viewer.events} == {"message"}  # EventSource's default


async def test_drain_says_why_and_when_to_come_back() -> None:
    viewer = Viewer()

    async def serve_a_while(nursery: trio.Nursery) -> None:
        async with open_server(chat_app(two_words), limits=ServerLimits(drain_s=2.0)) as url:
            nursery.start_soon(viewer.run, f"{url}/api/chat/c/watch")
            await viewer.until(lambda: bool(viewer.events))

    async with trio.open_nursery() as nursery:
        await serve_a_while(nursery)
        await viewer.until(lambda: viewer.ended)
    closing = viewer.of("closing")[0]
    assert (closing["reason"], closing["reconnect"]) == ("drain", True)
    assert 500 <= closing["retryMs"] <= 3000


async def test_lanes_are_seen_by_those_who_ask_and_reports_by_all() -> None:
    async def answer(turn: Turn) -> None:
        async with trio.open_nursery() as nursery:

            async def work(name: str) -> None:
                async with turn.lane(name) as lane, lane.text() as text:
                    await text.write(f"{name} works")
                    await lane.report({"percent": 50})

            nursery.start_soon(work, "worker:1")
            nursery.start_soon(work, "worker:2")
        with pytest.raises(ZeroDivisionError):
            async with turn.lane("worker:3"):
                raise ZeroDivisionError("secret")
        async with turn.text() as text:
            await text.write("All done.")

    async with watching(answer, "?lane=worker:2") as (url, viewer, nursery):
        plain = Viewer()
        nursery.start_soon(plain.run, f"{url}/c/watch")
        await plain.until(lambda: bool(plain.events))
        recording = await record(url, "go", chat_id="c")
        await viewer.until(lambda: len(viewer.of("message")) == 2)
        await plain.until(lambda: len(plain.of("message")) == 2)
    lanes = [part for part in recording.message["parts"] if part["type"] == "data-lane"]
    assert {part["data"]["lane"]: part["data"]["state"] for part in lanes} == {
        "worker:1": "finished",
        "worker:2": "finished",
        "worker:3": "failed",
    }
    assert b"works" not in recording.raw
    assert b"secret" not in recording.raw
    assert "works" not in json.dumps(plain.of("chunk"))
    assert "worker:2 works" in json.dumps(viewer.of("chunk"))
    assert "worker:1 works" not in json.dumps(viewer.of("chunk"))
    assert plain.of("message")[-1] == recording.message


@asynccontextmanager
async def asking(
    holder: Holder, wait_s: float = 60.0
) -> AsyncIterator[tuple[str, Viewer, trio.Nursery, list[Verdict]]]:
    """Serve a producer that asks in the stream, and run one turn to the question."""
    verdicts: list[Verdict] = []

    async def answer(turn: Turn) -> None:
        async with turn.tool_call("delete", {"file": "a"}, id="d") as call:
            verdict = await call.approval(holder=holder, wait_s=wait_s)
            verdicts.append(verdict)
            if verdict.approved:
                await call.output("deleted")
        async with turn.text() as text:
            await text.write("On we go.")

    async with watching(answer) as (url, viewer, nursery):
        yield url, viewer, nursery, verdicts


def question(viewer: Viewer) -> list[str]:
    """The ids of the approvals that were asked for."""
    return [chunk["approvalId"] for chunk in viewer.of("chunk") if chunk["type"] == "tool-approval-request"]


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_in_the_stream_is_decided_once(approved: bool) -> None:
    async with (
        asking("turn") as (url, viewer, nursery, verdicts),
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
    ):
        nursery.start_soon(lambda: record(url, "q", chat_id="c"))
        await viewer.until(lambda: bool(question(viewer)))
        where = f"{url}/c/approvals/{question(viewer)[0]}"
        assert (await client.post(f"{url}/c/approvals/none", json={"approved": True})).status_code == 404
        assert (await client.post(where, json={"approved": "yes"})).status_code == 400
        said = {"approved": approved, "reason": "because"}
        assert (await client.post(where, json=said)).status_code == 200
        await viewer.until(lambda: len(viewer.of("message")) == 2)
    expected = Decision.approved if approved else Decision.denied
    assert verdicts == [Verdict(expected, "because", "anyone")]
    tool = viewer.of("message")[-1]["parts"][0]
    assert tool["state"] == ("output-available" if approved else "output-denied")


async def test_two_who_decide_at_once_have_one_winner() -> None:
    async with (
        asking("turn") as (url, viewer, nursery, verdicts),
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
    ):
        nursery.start_soon(lambda: record(url, "q", chat_id="c"))
        await viewer.until(lambda: bool(question(viewer)))
        where = f"{url}/c/approvals/{question(viewer)[0]}"
        statuses: list[int] = []

        async def decide(approved: bool) -> None:
            statuses.append((await client.post(where, json={"approved": approved})).status_code)

        async with trio.open_nursery() as deciders:
            for approved in (True, False, True, False):
                deciders.start_soon(decide, approved)
    assert set(statuses) <= {200, 409, 404}
    assert 200 in statuses
    assert len(verdicts) == 1


async def test_nobody_decided_is_expired_and_never_denied() -> None:
    async with asking("turn", wait_s=0.1) as (url, viewer, nursery, verdicts):
        nursery.start_soon(lambda: record(url, "q", chat_id="c"))
        await viewer.until(lambda: len(viewer.of("message")) == 2)
    assert verdicts == [Verdict(Decision.expired)]
    assert viewer.of("message")[-1]["parts"][0]["state"] == "output-error"
    assert not [chunk for chunk in viewer.of("chunk") if chunk["type"] == "tool-approval-response"]


async def test_an_approval_held_by_the_connection_ends_with_it_at_once() -> None:
    async with asking("connection") as (url, viewer, nursery, verdicts):
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as browser:
                browser.start_soon(lambda: record(url, "q", chat_id="c"))
                await viewer.until(lambda: bool(question(viewer)))
                leaving.cancel()
        left = trio.current_time()
        await viewer.until(lambda: bool(verdicts))
        assert trio.current_time() - left < 1
        await viewer.until(lambda: len(viewer.of("message")) == 2)
        assert nursery is not None
    assert verdicts == [Verdict(Decision.client_gone)]
    assert viewer.of("message")[-1]["parts"][-1]["text"] == "On we go."


async def test_authorize_sees_a_header_of_several_lines_as_one() -> None:
    """As browsers send cookies over HTTP/2."""
    cookies: list[str] = []

    async def authorize(request: Request, chat_id: str, action: Action) -> str:
        cookies.append(request.headers["cookie"])
        return "ada"

    async with open_server(chat_app(two_words, authorize=authorize)) as root, httpx2.AsyncClient() as client:
        await client.get(
            f"{root}/api/chat/c/stream", headers=[("cookie", "session=1"), ("cookie", "theme=2")]
        )
    assert cookies == ["session=1; theme=2"]


async def test_authorize_is_asked_on_every_route() -> None:
    asked: list[tuple[str, Action]] = []

    async def authorize(request: Request, chat_id: str, action: Action) -> str | Denied:
        asked.append((chat_id, action))
        user = request.headers.get("authorization")
        if user is None:
            return Denied.anonymous
        return user if chat_id.startswith(user) else Denied.hidden

    async with (
        open_server(chat_app(two_words, authorize=authorize)) as root,
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
    ):
        url = f"{root}/api/chat"
        ada = {"authorization": "ada"}
        recording = await record(url, "x", chat_id="ada-1", headers=ada)
        assert recording.status == 200
        turn = recording.headers["x-penstock-turn"]
        body = {"id": "ada-1", "message": {"id": "u", "role": "user", "parts": []}}
        for method, path, none in (
            ("POST", "", 404),
            ("GET", "/ada-1", 404),
            ("GET", "/ada-1/stream", 204),
            ("GET", f"/{turn}/stream?startIndex=0", 404),
            ("GET", "/ada-1/watch", 404),
            ("GET", f"/ada-1/turns/{turn}", 404),
            ("GET", f"/ada-1/turns/{turn}/recover", 404),
            ("POST", "/ada-1/stop", 404),
            ("POST", "/ada-1/approvals/x", 404),
        ):
            content = body if path == "" else {"approved": True}
            anonymous = await client.request(method, url + path, json=content if method == "POST" else None)
            assert (anonymous.status_code, anonymous.text) == (401, "Please sign in."), path
            eve = await client.request(
                method,
                url + path,
                json=content if method == "POST" else None,
                headers={"authorization": "eve"},
            )
            assert eve.status_code == none, path
        stopped = await client.post(f"{url}/ada-1/stop", headers=ada)
        assert stopped.json() == {"state": "finished"}
    assert {action for _, action in asked} == {"read", "write", "stop", "approve"}


async def test_assembled_chunks_of_a_viewer_are_the_message() -> None:
    async with watching(two_words) as (url, viewer, _):
        recording = await record(url, "x", chat_id="c")
        await viewer.until(lambda: len(viewer.of("message")) == 2)
    chunks = [decode_chunk(event.data.encode()) for event in viewer.events if event.event == "chunk"]
    assert assemble(chunks, "") == recording.message

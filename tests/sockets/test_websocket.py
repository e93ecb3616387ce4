"""`/api/chat/ws`: many requests on one socket, each with its own frames, errors and end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import lanes
import pytest
import trio
from chat_socket import ChatSocket, Json, chat_server, connect, handshake, user
from raw import TestServer, parse_head, wait_for
from test_server_tls import certificate
from test_server_tls import connect as connect_tls
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from penstock import Limits, Turn, chat_app
from penstock.limits import ConnectionLimits, HubLimits, ServerLimits, TurnLimits, ViewerLimits
from penstock.web.auth import Denied, Request
from penstock.wire.sse_parser import ServerSentEvent, SseParser

__all__ = ["certificate"]

lane = lanes.lane
both_lanes = pytest.mark.usefixtures("lane")


class Told:
    """A producer that writes the words that its test gives it, to each chat its own."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[trio.MemorySendChannel[str], trio.MemoryReceiveChannel[str]]] = {}
        self.ended: list[str] = []

    def _channel(self, chat: str) -> tuple[trio.MemorySendChannel[str], trio.MemoryReceiveChannel[str]]:
        return self._words.setdefault(chat, trio.open_memory_channel[str](10_000))

    def write(self, *words: str, chat: str = "c") -> None:
        """Have words written."""
        for word in words:
            self._channel(chat)[0].send_nowait(word)

    def end(self, chat: str = "c") -> None:
        """Have the answer end."""
        self._channel(chat)[0].close()

    async def __call__(self, turn: Turn) -> None:
        try:
            async with turn.text() as text:
                while True:
                    try:
                        word = await self._channel(turn.chat_id)[1].receive()
                    except trio.EndOfChannel:
                        break
                    await text.write(word)
        finally:
            self.ended.append(turn.chat_id)


async def hello(turn: Turn) -> None:
    """A short answer."""
    async with turn.text() as text:
        for word in ("Hello", ", ", "you", "."):
            await text.write(word)


async def endless(turn: Turn) -> None:
    """An answer that only a stop ends."""
    async with turn.text() as text:
        while True:
            await text.write("word ")
            await trio.sleep(0.002)


@asynccontextmanager
async def one_socket(
    answer: Any, *, limits: ServerLimits | None = None, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[TestServer, ChatSocket]]:
    """Serve a producer, and open one WebSocket."""
    async with chat_server(chat_app(answer, **options), *([limits] if limits else [])) as server:
        yield server, await connect(server, **(headers or {}))


async def sse(server: TestServer, chat: str, after: str | None = None) -> list[ServerSentEvent]:
    """Resume a chat's turn over SSE, to the end of what there is."""
    query = f"?after={after}&sdk=7" if after else "?sdk=7"
    # Without the certificates that are of no use here, and take 30 ms to read.
    async with httpx2.AsyncClient(timeout=5, trust_env=False, verify=False) as client:
        response = await client.get(f"http://127.0.0.1:{server.port}/api/chat/{chat}/stream{query}")
    assert response.status_code == 200
    return [event for event in SseParser().feed(response.content) if event.data != "[DONE]"]


async def get(server: TestServer, path: str) -> Json:
    """Get JSON."""
    status, _, body = await server.get(path)
    assert status == 200
    value: Json = json.loads(body)
    return value


@both_lanes
async def test_a_send_is_answered_with_numbered_chunks_and_an_end() -> None:
    async with one_socket(hello) as (server, client):
        await client.send("r", "hi", body={"more": 1})
        await client.until("end", "r")
        assert client.text("r") == "Hello, you."
        assert [frame["type"] for frame in client.frames] == ["start"] + ["chunk"] * 8 + ["end"]
        kinds = [chunk["type"] for chunk in client.chunks("r")]
        assert (kinds[0], kinds[-1]) == ("start", "finish")
        turn = client.frames[0]["turn"]
        assert client.chunks("r")[0]["messageId"] == turn
        assert [frame["position"] for frame in client.of("r")[1:-1]] == [f"{turn}.1-{n}" for n in range(8)]
        state = await get(server, "/api/chat/c")
        assert state["messages"][-1]["parts"][0]["text"] == "Hello, you."


async def test_binary_json_is_read_and_body_reaches_the_producer() -> None:
    bodies: list[Any] = []

    async def answer(turn: Turn) -> None:
        bodies.append(dict(turn.body))
        await hello(turn)

    async with one_socket(answer) as (_, client):
        frame = {
            "type": "send", "requestId": "r", "id": "c", "messages": [user("x")], "body": {"a": 1},
            "metadata": 2, "headers": {}, "trigger": "submit-message",
        }  # fmt: skip
        await client.say(BytesMessage(data=json.dumps(frame).encode()))
        await client.until("end", "r")
        assert bodies == [{"a": 1}]


@both_lanes
async def test_two_requests_on_one_socket_do_not_mix() -> None:
    told = Told()
    async with one_socket(told) as (_, client):
        await client.send("1", "x", chat="a")
        await client.send("2", "x", chat="b")
        for number in range(20):
            told.write(f"a{number} ", chat="a")
            told.write(f"b{number} ", chat="b")
        told.end("a")
        await client.until("end", "1")
        assert client.text("1") == "".join(f"a{number} " for number in range(20))
        told.write("last", chat="b")
        told.end("b")
        await client.until("end", "2")
        assert client.text("2") == "".join(f"b{number} " for number in range(20)) + "last"


@both_lanes
async def test_resume_is_the_whole_or_what_follows_a_position() -> None:
    told = Told()
    async with one_socket(told) as (server, client):
        await client.send("1", "x")
        told.write("one ", "two ", "three ")
        while client.text("1") != "one two three ":
            await client.next()
        positions = [frame["position"] for frame in client.of("1") if frame["type"] == "chunk"]
        other = await connect(server)
        await other.ask("resume", "whole", id="c")
        await other.ask("resume", "tail", id="c", after=positions[-2])
        await other.ask("resume", "void", id="c", after="nonsense")
        await other.chunk("text-delta")
        while not all(other.text(each) for each in ("whole", "tail", "void")):
            await other.next()
        assert other.text("whole") == other.text("void") == "one two three "
        assert other.text("tail") == "three "
        # Of a short form only the last chunk has a position, from which one can go on.
        short = [frame.get("position") for frame in other.of("whole") if frame["type"] == "chunk"]
        assert short == [None, None, positions[-1]]
        told.write("four")
        told.end()
        for each in ("whole", "tail", "void"):
            await connect_end(other, each)
        assert other.text("whole") == other.text("void") == "one two three four"
        assert other.text("tail") == "three four"
        await other.ask("resume", "late", id="c", after=other.of("tail")[-2]["position"])
        await connect_end(other, "late")
        assert [frame["type"] for frame in other.of("late")] == ["start", "end"]


async def connect_end(client: ChatSocket, request_id: str) -> None:
    """Wait for the end of a request, which may have come."""
    while not any(frame["type"] == "end" for frame in client.of(request_id)):
        await client.next()


async def test_nothing_to_resume_is_no_active() -> None:
    async with one_socket(hello, limits=None) as (_, client):
        await client.ask("resume", "r", id="never")
        assert await client.next() == {"type": "no-active", "requestId": "r"}


async def test_an_old_turn_is_resumed_by_position_only() -> None:
    limits = Limits(hub=HubLimits(replay_finished_s=0))
    async with one_socket(hello, limits=None) as (_, client):
        await client.send("1", "x")
        await client.until("end")
    async with chat_server(chat_app(hello, limits=limits)) as server:
        client = await connect(server)
        await client.send("1", "x")
        position = (await client.chunk("text-start"))["position"]
        await client.until("end", "1")
        await client.ask("resume", "2", id="c")
        assert (await client.next())["type"] == "no-active"
        await client.ask("resume", "3", id="c", after=position)
        await client.until("end", "3")
        assert client.text("3") == "Hello, you."


@both_lanes
async def test_abort_only_lets_go() -> None:
    told = Told()
    async with one_socket(told) as (server, client):
        await client.send("1", "x")
        told.write("one ")
        await client.chunk("text-delta")
        await client.ask("abort", "1")
        await client.ask("abort", "unknown")
        await client.ask("resume", "2", id="none")
        await client.until("no-active", "2")
        seen = len(client.of("1"))
        told.write("two")
        told.end()
        await client.ask("resume", "3", id="c")
        await client.until("end", "3")
        assert client.text("3") == "one two"
        assert len(client.of("1")) == seen
        assert (await get(server, "/api/chat/c"))["turn"]["state"] == "finished"


async def test_abort_stops_where_the_app_says_so_even_if_the_client_leaves_at_once() -> None:
    told = Told()
    async with one_socket(told, abort_stops=True) as (server, client):
        for chat, leaves in (("a", False), ("b", True)):
            await client.send(chat, "x", chat=chat)
            told.write("one ", chat=chat)
            await client.chunk("text-delta")
            abort = json.dumps({"type": "abort", "requestId": chat})
            last_words = client.protocol.send(TextMessage(data=abort))
            if leaves:
                last_words += client.protocol.send(CloseConnection(code=1000))
            await client.raw.send(last_words)
            await wait_for(lambda chat=chat: chat in told.ended)  # type: ignore[misc]
            assert (await get(server, f"/api/chat/{chat}"))["turn"]["state"] == "stopped"


async def test_abort_stops_the_requests_own_turn_and_no_other() -> None:
    """A message that is refused, because another is being answered, has no turn to be stopped."""
    told = Told()
    async with one_socket(told, abort_stops=True, on_conflict="queue") as (_, client):
        await client.send("1", "first")
        await client.until("chunk")
        await client.send("2", "second")
        await client.ask("resume", "3", id="none")
        await client.until("no-active")
        await client.ask("abort", "2")
        await client.ask("resume", "4", id="none")
        await client.until("no-active")
        told.write("still here")
        assert (await client.chunk("text-delta"))["chunk"]["delta"] == "still here"
        assert not told.ended


@pytest.mark.parametrize("may", [True, False])
async def test_abort_of_a_resume_stops_for_who_may_stop(may: bool) -> None:
    told = Told()

    async def authorize(request: Request, chat_id: str, action: str) -> str | Denied:
        return "ada" if may or action != "stop" else Denied.hidden

    async with one_socket(told, abort_stops=True, authorize=authorize) as (server, client):
        await client.send("1", "x")
        await client.until("chunk")
        other = await connect(server)
        await other.ask("resume", "2", id="c")
        await other.until("chunk")
        await other.ask("abort", "2")
        await other.ask("resume", "3", id="none")
        await other.until("no-active")
        if may:
            await wait_for(lambda: told.ended == ["c"])
        told.write("on")
        if not may:
            await client.chunk("text-delta")


async def test_stop_and_what_its_followers_see() -> None:
    async with one_socket(endless) as (_, client):
        await client.send("1", "x")
        await client.chunk("text-delta")
        await client.ask("stop", "2", id="c", reason="enough")
        assert (await client.until("result", "2"))["value"] == {"state": "stopped"}
        await connect_end(client, "1")
        *_, abort, finish = client.chunks("1")
        assert (abort["type"], abort["reason"]) == ("abort", "anyone: enough")
        assert finish["type"] == "finish"
        await client.ask("stop", "3", id="never")
        assert (await client.next())["errorText"] == "There is no such chat."


async def asking(turn: Turn) -> None:
    """A tool call that somebody must allow, while the connection is there."""
    async with turn.tool_call("open", input={"gate": 1}, id="call") as call:
        verdict = await call.approval(holder="connection")
        if verdict.approved:
            await call.output("opened")


async def test_approve_answers_the_one_who_asks() -> None:
    async with one_socket(asking) as (server, client):
        await client.send("1", "x")
        approval = (await client.chunk("tool-approval-request"))["chunk"]["approvalId"]
        other = await connect(server)
        for request_id, more in {
            "none": {},
            "number": {"approvalId": 5, "approved": True},
            "word": {"approvalId": approval, "approved": "yes"},
            "unknown": {"approvalId": "x", "approved": True},
        }.items():
            await other.ask("approve", request_id, id="c", **more)
            error = await other.next()
            assert (error["type"], error["requestId"]) == ("error", request_id)
        await other.ask("approve", "2", id="c", approvalId=approval, approved=True, reason="go on")
        assert (await other.next())["value"] == {"decision": "approved"}
        await client.until("end", "1")
        assert [c["output"] for c in client.chunks("1") if c["type"] == "tool-output-available"] == ["opened"]
        await other.ask("approve", "3", id="c", approvalId=approval, approved=False)
        assert (await other.next())["type"] == "error"


@pytest.mark.parametrize("how", ["close", "reset", "abort", "second holder"])
@both_lanes
async def test_an_approval_ends_with_its_holder(how: str) -> None:
    async with one_socket(asking) as (server, client):
        watcher = await connect(server)
        await client.send("1", "x")
        await client.chunk("tool-approval-request")
        if how == "second holder":
            await watcher.send("same", "x")
            await watcher.chunk("tool-approval-request")
        await watcher.ask("resume", "w", id="c")
        await watcher.until("start", "w")
        if how == "abort":
            await client.ask("abort", "1")
        elif how == "reset":
            client.raw.reset()
        else:
            await client.say(CloseConnection(code=1000))
        if how == "second holder":
            with trio.move_on_after(0.1):
                while True:
                    assert (await watcher.next())["type"] != "end"
            await watcher.ask("abort", "same")
        await watcher.until("end", "w")
        errors = [c["errorText"] for c in watcher.chunks("w") if c["type"] == "tool-output-error"]
        assert errors == ["The page that was asked about this tool call was closed."]


@both_lanes
async def test_watch_shows_a_chat_turn_after_turn_until_unwatch() -> None:
    async with one_socket(hello) as (server, client):
        await client.ask("watch", "w", id="c")
        snapshot = await client.next()
        assert snapshot == {
            "type": "event", "requestId": "w", "event": "snapshot",
            "data": {"id": "c", "turn": None, "messages": []},
        }  # fmt: skip
        await client.ask("watch", "t", id="c", types="text-delta,nonsense")
        assert (await client.next())["data"] == {"ignored": ["nonsense"]}
        other = await connect(server)
        for text in ("first", "second"):
            await other.send(text, text)
            await other.until("end", text)
            while True:
                event = await client.next()
                if event["event"] == "message" and event["data"]["role"] == "assistant":
                    break
            assert event["data"]["parts"][0]["text"] == "Hello, you."
            assert event["position"].startswith(event["data"]["id"])
        seen = [f["event"] for f in client.of("w")]
        assert seen == ["snapshot", *(["message"] + ["chunk"] * 8 + ["message"]) * 2]
        while len(client.of("t")) < 9:
            await client.next()
        assert {frame["data"]["type"] for frame in client.of("t")[1:]} == {"text-delta"}
        await client.ask("unwatch", "w")
        await client.ask("unwatch", "t")
        await client.ask("resume", "r", id="none")
        await client.until("no-active")
        count = len(client.frames)
        await other.send("third", "third")
        await other.until("end", "third")
        await client.ask("resume", "r2", id="none")
        await client.until("no-active")
        assert len(client.frames) == count + 1


async def test_watch_goes_on_after_a_position_and_shows_a_lane() -> None:
    told = Told()

    async def answer(turn: Turn) -> None:
        async with turn.lane("worker:1") as worker, worker.text() as text:
            await text.write("aside")
        await told(turn)

    async with one_socket(answer) as (_, client):
        await client.send("1", "x")
        told.write("one ", "two")
        first = await client.chunk("text-delta")
        while first["chunk"]["delta"] != "one ":
            first = await client.chunk("text-delta")
        await client.ask("watch", "w", id="c", after=first["position"])
        while (event := await client.until("event", "w"))["data"].get("type") != "text-delta":
            pass
        assert event["data"]["delta"] == "two"
        await client.ask(
            "watch", "l", id="c", after=first["position"].rpartition("-")[0] + "-0", lane="worker:1"
        )
        while (event := await client.until("event", "l"))["data"].get("delta") != "aside":
            pass


async def test_errors_belong_to_their_request_and_the_socket_goes_on() -> None:
    async with one_socket(endless) as (_, client):
        await client.send("good", "x")
        await client.chunk("text-delta")
        bad: list[Json] = [
            {"type": "send", "id": "c", "messages": []},
            {"type": "send", "id": "../..", "messages": [user("x")]},
            {"type": "send", "id": "c", "messages": [user("another", "u2")]},
            {"type": "sing", "id": "c"},
            {"type": "resume", "id": "c", "headers": {"x": "€"}},
            {"type": "watch"},
        ]
        for number, frame in enumerate(bad):
            await client.say(TextMessage(data=json.dumps({**frame, "requestId": f"bad {number}"})))
            error = await client.until("error")
            assert error["requestId"] == f"bad {number}"
            assert error["errorText"].endswith(".")
        await client.chunk("text-delta")
        client.chunks("good")


async def test_what_an_apps_own_code_raises_is_the_end_of_that_request_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def authorize(request: Request, chat_id: str, action: str) -> str:
        if chat_id == "bad":
            raise ValueError("a secret")
        return "ada"

    async with one_socket(hello, authorize=authorize) as (_, client):
        await client.send("1", "x", chat="bad")
        error = await client.next()
        assert error == {
            "type": "error", "requestId": "1", "errorText": "The server failed to answer this request.",
            "status": 500,
        }  # fmt: skip
        await client.send("2", "x")
        await client.until("end", "2")
    assert "a secret" in caplog.text


async def test_a_request_id_that_is_used_twice_ends_both() -> None:
    told = Told()
    async with one_socket(told) as (_, client):
        await client.send("1", "x")
        await client.until("chunk")
        await client.ask("resume", "1", id="c")
        assert "both are over" in (await client.until("error", "1"))["errorText"]
        seen = len(client.of("1"))
        told.write("unheard")
        await client.ask("resume", "2", id="c")
        await client.chunk("text-delta")
        assert len(client.of("1")) == seen


async def test_the_cap_on_requests() -> None:
    limits = Limits(connection=ConnectionLimits(requests=3))
    async with one_socket(Told(), limits=None) as (_, client):
        for number in range(32):
            await client.ask("watch", f"{number}", id="c")
            await client.until("event", f"{number}")
        await client.ask("watch", "one more", id="c")
        assert (await client.next())["type"] == "error"
    async with chat_server(chat_app(Told(), limits=limits)) as server:
        client = await connect(server)
        for number in range(3):
            await client.ask("watch", f"{number}", id="c")
        await client.ask("stop", "4", id="c")
        assert "too many" in (await client.until("error", "4"))["errorText"]
        await client.ask("unwatch", "0")
        await client.ask("watch", "5", id="c")
        await client.until("event", "5")


async def test_authorize_sees_the_handshake_and_the_frame_apart() -> None:
    """A proxy has looked at the handshake's headers, and never at a frame's."""
    requests: list[tuple[Request, str]] = []

    async def authorize(request: Request, chat_id: str, action: str) -> str | Denied:
        requests.append((request, action))
        token = request.headers.get("authorization")
        return "ada" if token == "Bearer good" else Denied.anonymous if token is None else Denied.hidden

    async with chat_server(chat_app(hello, authorize=authorize)) as server:
        client = await connect(server, "/api/chat/ws?room=1", cookie="a=b", x_forwarded_user="ada")
        await client.send("1", "x")
        assert (await client.next())["errorText"] == "Please sign in."
        said = {"Authorization": "Bearer good", "X-Forwarded-User": "root", "Cookie": "a=c", "Host": "evil"}
        await client.send("2", "x", headers=said)
        await client.until("end", "2")
        request, action = requests[-1]
        assert action == "write"
        assert (request.method, request.path, request.query_string) == ("GET", "/api/chat/ws", "room=1")
        assert request.headers["x-forwarded-user"] == "ada"
        assert request.headers["cookie"] == "a=b"
        assert request.headers["host"] == "test"
        assert request.headers["authorization"] == "Bearer good"
        assert request.frame_headers["x-forwarded-user"] == "root"
        await client.ask("resume", "3", id="c", headers={"authorization": "Bearer bad"})
        assert (await client.next())["type"] == "no-active"
        await client.ask("watch", "4", id="c", headers={"authorization": "Bearer bad"})
        assert (await client.next())["errorText"] == "There is no such chat."
        await client.ask("stop", "5", id="c", headers=said)
        await client.until("result", "5")
        assert requests[-1][1] == "stop"
        other = await connect(server, authorization="Bearer bad")
        await other.send("1", "x", headers=said)
        assert (await other.next())["type"] == "error"
        assert requests[-1][0].headers["authorization"] == "Bearer bad"


@pytest.mark.parametrize(
    ("origin", "origins", "status"),
    [
        ("", [], 101),
        ("http://test", [], 101),
        ("https://TEST", [], 101),
        ("http://test:81", [], 403),
        ("http://test.evil", [], 403),
        ("http://eviltest", [], 403),
        ("http://evil/test", [], 403),
        ("null", [], 403),
        ("null", ["*"], 101),
        ("https://chat.example", ["https://chat.example"], 101),
        ("https://chat.example.evil", ["https://chat.example"], 403),
        ("http://chat.example", ["https://chat.example"], 403),
    ],
)
async def test_origins(origin: str, origins: list[str], status: int) -> None:
    async with chat_server(chat_app(hello, origins=origins)) as server:
        client = await server.connect(handshake(origin=origin))
        with trio.fail_after(2):
            head = await client.read_until(b"\r\n\r\n")
        assert parse_head(head)[0] == status
        if status == 403:
            _, end = await client.read_to_end()
            assert end == "eof"


async def test_an_origin_without_a_host_or_twice_is_refused() -> None:
    async with chat_server(chat_app(hello)) as server:
        for data in (
            handshake(host=" ", origin="null"),
            handshake(origin="http://test").replace(b"\r\n\r\n", b"\r\norigin: http://evil\r\n\r\n"),
        ):
            client = await server.connect(data)
            assert parse_head(await client.read_until(b"\r\n\r\n"))[0] in (400, 403)
    with pytest.raises(ValueError, match="origins"):
        chat_app(hello, origins="https://chat.example")


async def test_the_first_subprotocol_is_chosen() -> None:
    async with chat_server(chat_app(hello)) as server:
        client = await connect(server, sec_websocket_protocol="chat, other")
        assert client.headers["sec-websocket-protocol"] == "chat"
        client = await connect(server)
        assert "sec-websocket-protocol" not in client.headers


async def test_other_paths_and_versions_are_refused_in_words() -> None:
    async with chat_server(chat_app(hello)) as server:
        client = await server.connect(handshake("/api/chat/ws?sdk=9"))
        status, _, body = await client.read_response()
        assert status == 400
        assert body.decode().endswith(".")
        client = await server.connect(handshake("/api/chat/other"))
        assert parse_head(await client.read_until(b"\r\n\r\n"))[0] in (400, 403, 404)


async def test_a_client_of_6_is_sent_no_chunk_of_7() -> None:
    async with chat_server(chat_app(asking)) as server:
        client = await connect(server, "/api/chat/ws?sdk=5")
        await client.send("1", "x")
        await client.chunk("tool-input-available")
        other = await connect(server)
        await other.ask("resume", "1", id="c")
        approval = (await other.chunk("tool-approval-request"))["chunk"]["approvalId"]
        await other.ask("approve", "2", id="c", approvalId=approval, approved=True)
        await client.until("end", "1")
        assert "tool-approval-request" not in [chunk["type"] for chunk in client.chunks("1")]


@pytest.mark.parametrize(("reason", "code"), [("drain", 1001), ("restart", 1012)])
@both_lanes
async def test_a_drain_lets_turns_end_then_says_when_to_come_back(reason: str, code: int) -> None:
    told, restart = Told(), trio.Event()
    async with chat_server(chat_app(told), restart=restart) as server:
        client = await connect(server)
        idle = await connect(server)
        await client.send("1", "x")
        await client.until("chunk")
        await client.ask("watch", "w", id="c")
        (restart if reason == "restart" else server.shutdown).set()
        closing = await idle.next()
        assert closing["requestId"] == ""
        assert (closing["type"], closing["reason"], closing["reconnect"]) == ("closing", reason, True)
        assert 500 <= closing["retryMs"] <= 3_000
        assert await idle.end() == (code, reason)
        while not any(frame.get("event") == "closing" for frame in client.of("w")):
            await client.next()
        assert client.of("w")[-1]["data"]["reason"] == reason
        await client.send("2", "y", chat="new")
        assert (await client.until("error", "2"))["errorText"].endswith("Please try again.")
        told.write("to the end")
        told.end()
        await client.until("end", "1")
        assert client.text("1") == "to the end"
        assert await client.end() == (code, reason)
        assert client.frames[-1]["type"] == "closing"


@both_lanes
async def test_one_socket_too_many_is_told_to_try_later() -> None:
    """After the handshake: a page can read that, and of a 503 only that it failed. Those that are open go on."""
    limits = Limits(server=ServerLimits(websockets=2))
    async with chat_server(chat_app(hello, limits=limits)) as server:
        first, second, third = [await connect(server) for _ in range(3)]
        closing = await third.next()
        assert (closing["type"], closing["reason"], closing["reconnect"]) == ("closing", "try_later", True)
        assert 500 <= closing["retryMs"] <= 3_000
        assert await third.end() == (1013, "try_later")
        assert (await server.get("/api/chat/none"))[0] == 404
        first.raw.close()
        await wait_for(lambda: server.metrics.get("server_connections") == 1)
        for client in (second, await connect(server)):
            await client.send("1", "x")
            await client.until("end", "1")


async def test_what_a_full_server_refuses_is_the_request_and_not_the_socket() -> None:
    limits = Limits(hub=HubLimits(running_turns=1), connection=ConnectionLimits(requests=2))
    told = Told()
    async with chat_server(chat_app(told, limits=limits)) as server:
        client = await connect(server)
        await client.send("1", "x", chat="a")
        await client.until("chunk", "1")
        await client.send("2", "x", chat="b")
        error = await client.until("error", "2")
        assert (error["status"], error["retryMs"]) == (503, 5_000)
        await client.ask("watch", "w", id="a")
        await client.ask("watch", "one more", id="a")
        assert (await client.until("error", "one more"))["status"] == 429
        told.end("a")
        await client.until("end", "1")
        told.end("b")
        await client.send("3", "x", chat="b")
        await client.until("end", "3")


async def test_a_drain_does_not_wait_for_ever() -> None:
    """The turn ends as lost, and its follower is told so before the socket closes."""
    limits = ServerLimits(drain_s=0.4, abort_s=0.1, linger_s=0.1)
    async with one_socket(Told(), limits=limits) as (server, client):
        await client.send("1", "x")
        await client.until("chunk")
        began = trio.current_time()
        server.shutdown.set()
        assert await client.end() == (1001, "drain")
        assert trio.current_time() - began < 0.7
        assert client.chunks("1")[-1]["type"] == "error"


@both_lanes
async def test_a_slow_request_does_not_starve_another() -> None:
    """A megabyte is on its way; a word of another request gets through as soon as the client reads."""
    told = Told()
    async with chat_server(chat_app(told)) as server:
        client = ChatSocket(await server.connect(handshake(), receive_buffer=4096))
        await client.accepted()
        await client.send("big", "x", chat="big")
        await client.send("small", "x", chat="small")
        while {frame["requestId"] for frame in client.frames} != {"big", "small"}:
            await client.next()
        for _ in range(300):
            told.write("x" * 10_000, chat="big")
        await trio.sleep(0.1)
        told.write("small", chat="small")
        await trio.sleep(0.05)
        size = 0
        while (frame := await client.next())["requestId"] != "small":
            size += len(json.dumps(frame))
        while frame["type"] != "chunk" or frame["chunk"].get("delta") != "small":
            frame = await client.next()
            size += len(json.dumps(frame))
        assert size < 1_500_000


async def test_a_slow_client_is_told_and_closed_with_4429() -> None:
    """It reads, at half the pace of its turn: what it gets has no gap, and it is told why that ends."""
    limits = Limits(
        viewer=ViewerLimits(lag_s=0.2, batch_entries=20, merge_entries=20, pressure_entries=10),
        connection=ConnectionLimits(queue_bytes=50_000),
    )
    told = Told()
    async with chat_server(chat_app(told, limits=limits)) as server:
        client = ChatSocket(await server.connect(handshake(), receive_buffer=64 << 10))
        await client.accepted()
        await client.send("1", "x")
        await client.until("chunk")

        async def read_slowly() -> None:
            read = 0
            for number in range(80):
                told.write(*[f"{number:09} " * 1_000 for _ in range(40)])
                await trio.sleep(0.01)
                while read < number * 200_000:
                    read += await client.more()

        with pytest.raises(EOFError):
            await read_slowly()
        assert await client.end() == (4429, "slow_consumer")
        closing = client.frames[-1]
        assert (closing["type"], closing["reason"], closing["reconnect"]) == (
            "closing",
            "slow_consumer",
            True,
        )
        words = [int(word) for word in client.text("1").split()]
        assert words == sorted(words)
        assert all(words.count(number) == 40_000 for number in set(words[:-40_000]))


@pytest.mark.parametrize(("tls", "deflates"), [(False, False), (True, True)])
async def test_a_quiet_client_is_pinged_and_must_answer(
    tls: bool, deflates: bool, certificate: dict[str, Any]
) -> None:
    """One answers, and stays; the other does not. Neither is sent a ping as a message."""
    limits = Limits(connection=ConnectionLimits(keepalive_s=0.05))
    server_limits = ServerLimits(pong_wait_s=0.2, linger_s=0.1, drain_s=0.2)
    options = {"ws_deflate": deflates, **(certificate if tls else {})}
    async with chat_server(chat_app(hello, limits=limits), server_limits, **options) as server:
        said = handshake(sec_websocket_extensions="permessage-deflate")
        alive, dead = [
            ChatSocket(await connect_tls(server, certificate) if tls else await server.connect())
            for _ in range(2)
        ]
        for client in (alive, dead):
            await client.raw.send(said)
            await client.accepted()
        dead.answers_pings = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alive.end)
            with trio.fail_after(1):
                assert await dead.end() == (1006, "")
            assert server.metrics.get("server_timeouts", phase="pong") == 1
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel("it has lived long enough")
        assert dead.pings >= 1
        assert alive.pings >= 2
        assert alive.frames == dead.frames == []
        assert server.metrics.get("server_connections") == 1
        await alive.send("1", "x")
        await alive.until("end", "1")


async def test_a_client_whose_answers_wait_to_be_read_is_not_given_up() -> None:
    """Any byte is a sign of life, of a message that is not whole as well."""
    limits = Limits(connection=ConnectionLimits(keepalive_s=0.05))
    server_limits = ServerLimits(pong_wait_s=0.3, drain_s=0.1)
    async with chat_server(chat_app(hello, limits=limits), server_limits) as server:
        client = await connect(server)
        await client.raw.send(b"\x81\xfe\x7f\xff" + bytes(4))
        for _ in range(8):
            await client.raw.send(b"x")
            await trio.sleep(0.08)
        assert server.metrics.get("server_timeouts", phase="pong") == 0
        assert server.metrics.get("server_connections") == 1


async def test_where_the_server_has_no_ping_it_is_a_message() -> None:
    limits = Limits(connection=ConnectionLimits(keepalive_s=0.1))
    async with chat_server(lanes.fallback(chat_app(hello, limits=limits))) as server:
        client = await connect(server)
        assert await client.next() == {"type": "ping", "requestId": ""}


@pytest.mark.parametrize("to_sse", [True, False])
@both_lanes
async def test_a_follower_may_change_between_websocket_and_sse_at_every_chunk(to_sse: bool) -> None:
    """Each chunk's bytes are the same, none is missing and none comes twice."""

    async def answer(turn: Turn) -> None:
        await turn.metadata({"model": "m", "price": 0.1})
        async with turn.tool_call("add", id="c") as call:
            await call.write_input('{"a":1}')
            await call.output({"é": "\u2028"})
        async with turn.text() as text:
            for word in ("It", " is", ' "2"', "\n", "€"):
                await text.write(word)

    async with one_socket(answer) as (server, client):
        await client.send("all", "x")
        await client.until("end", "all")
        whole = client.raw_chunks["all"]
        positions = [frame["position"] for frame in client.of("all") if frame["type"] == "chunk"]
        assert len(whole) > 10
        for k, position in enumerate(positions, 1):
            if to_sse:
                events = await sse(server, "c", position)
                assert whole[:k] + [event.data for event in events] == whole
                assert [event.last_event_id for event in events] == positions[k:]
            else:
                events = (await sse(server, "c", positions[0]))[: k - 1]
                after = events[-1].last_event_id if events else positions[0]
                await client.ask("resume", f"{k}", id="c", after=after)
                await client.until("end", f"{k}")
                rest = client.raw_chunks.get(f"{k}", [])
                assert [whole[0], *(event.data for event in events), *rest] == whole


@both_lanes
async def test_a_drop_at_every_chunk_of_a_running_turn_is_resumed_over_sse() -> None:
    told = Told()
    async with chat_server(chat_app(told)) as server:
        for k in range(1, 6):
            chat = f"c{k}"
            client = await connect(server)
            await client.send("1", "x", chat=chat)
            told.write(*(f"w{n} " for n in range(k)), chat=chat)
            frame = await client.until("chunk")
            for _ in range(k):
                frame = await client.until("chunk")
            client.raw.reset()
            told.write("after ", chat=chat)
            told.end(chat)
            events = await sse(server, chat, frame["position"])
            texts = [json.loads(data) for data in client.raw_chunks["1"] + [event.data for event in events]]
            assert "".join(chunk.get("delta", "") for chunk in texts) == "".join(
                [*(f"w{n} " for n in range(k)), "after "]
            )
            assert [chunk["type"] for chunk in texts][-2:] == ["text-end", "finish"]


async def test_orphans_of_a_websocket_end_after_their_grace() -> None:
    told = Told()
    limits = Limits(turn=TurnLimits(orphan_grace_s=0))
    async with one_socket(told, limits=None) as (_, client):
        await client.send("1", "x")
        await client.until("chunk")
        client.raw.reset()
        await trio.sleep(0.05)
        assert not told.ended
    told = Told()
    async with chat_server(chat_app(told, limits=limits)) as server:
        client = await connect(server)
        await client.send("1", "x")
        await client.until("chunk")
        client.raw.reset()
        await wait_for(lambda: told.ended == ["c"])

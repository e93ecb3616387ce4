"""`penstock.client` and a server's frames: a scripted server says them, good ones and bad ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from raw import wait_for
from test_client import QUICK

from penstock import Position, open_client
from penstock.client import Client, Gap, Message, Received
from penstock.errors import RemoteProtocolError, RequestRefusedError, StreamLostError
from penstock.testing import user_message
from penstock.websocket import WebSocket, accept
from penstock.wire.chunks import AnyChunk

Script = Callable[[WebSocket, int, dict[str, Any]], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Serve WebSockets: `script` gets each, its number, and each frame but `abort`. Yield the URL and the frames so far."""
    heard: list[dict[str, Any]] = []
    sockets = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal sockets
        number, sockets = sockets, sockets + 1
        async with stream, trio.open_nursery() as nursery:
            handshake = await accept(nursery, stream, message_chars=1 << 20)
            assert handshake is not None
            websocket = await handshake.accept(None)
            while isinstance(message := await websocket.receive(), str):
                frame = msgspec.json.decode(message)
                heard.append(frame)
                if frame["type"] == "abort":
                    continue
                try:
                    await script(websocket, number, frame)
                except trio.BrokenResourceError:
                    break
            nursery.cancel_scope.cancel("the client has left")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/api/chat", heard
        nursery.cancel_scope.cancel("the test is over")


async def say(websocket: WebSocket, kind: str, frame: dict[str, Any], **fields: Any) -> None:
    """Answer a frame."""
    await websocket.send(
        msgspec.json.encode({"type": kind, "requestId": frame["requestId"], **fields}).decode()
    )


async def chunk(websocket: WebSocket, frame: dict[str, Any], offset: int, kind: str, **fields: Any) -> None:
    """Answer a frame with a chunk."""
    await say(
        websocket, "chunk", frame, sequence=offset, chunk={"type": kind, **fields}, position=f"t.1-{offset}"
    )


async def taken(client: Any, chat_id: str = "c") -> list[AnyChunk]:
    """Send, and take the answer."""
    async with client.send(chat_id, "Hello") as stream:
        return [event.chunk async for event in stream]


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4408, 4429, 4999])
async def test_close_codes_after_which_a_client_comes_back(code: int) -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        await say(websocket, "start", frame, turn="t")
        if number == 0:
            await chunk(websocket, frame, 0, "start", messageId="t")
            await websocket.aclose(code, "why")
        else:
            assert (frame["type"], frame["after"]) == ("resume", "t.1-0")
            await chunk(websocket, frame, 1, "finish")
            await say(websocket, "end", frame)

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        assert [chunk.kind for chunk in await taken(client)] == ["start", "finish"]


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1010])
async def test_close_codes_after_which_it_does_not(code: int) -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        if frame["id"] == "c":
            await say(websocket, "start", frame, turn="t")
            await chunk(websocket, frame, 0, "start", messageId="t")
        await websocket.aclose(code, "why")

    async with scripted(script) as (url, heard), open_client(url, limits=QUICK) as client:
        with pytest.raises(StreamLostError, match=rf"\({code}\): why\."):
            await taken(client)
        with pytest.raises(RequestRefusedError, match=rf"\({code}\): why\."):
            await taken(client, "d")
        assert len(heard) == 2


async def test_a_message_that_is_too_big_ends_nothing_but_its_own_request() -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        if frame["id"] == "big":
            await websocket.aclose(1009)
        elif number == 0:
            await say(websocket, "start", frame, turn="t")
            await chunk(websocket, frame, 0, "start", messageId="t")
        else:
            await say(websocket, "start", frame, turn="t")
            await chunk(websocket, frame, 1, "finish")

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        async with client.send("c", "Hello") as stream:
            await anext(stream)
            with pytest.raises(RequestRefusedError, match="1009") as caught:
                await taken(client, "big")
            assert caught.value.status == 413
            assert isinstance(await anext(stream), Received)


async def test_closing_says_when_to_come_back_or_never() -> None:
    times: list[float] = []

    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        times.append(trio.current_time())
        await say(websocket, "start", frame, turn="t")
        if number == 0:
            await chunk(websocket, frame, 0, "start", messageId="t")
        closing = {"type": "closing", "requestId": "", "reason": "drain", "reconnect": number == 0}
        await websocket.send(msgspec.json.encode({**closing, "retryMs": 150}).decode())
        await websocket.aclose(1001)

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        with pytest.raises(StreamLostError, match="does not want us back"):
            await taken(client)
        assert 0.15 <= times[1] - times[0] < 0.5


async def test_an_error_frame_may_say_a_status_and_when() -> None:
    """A refusal of the first request is the caller's to hear; a later one that will pass is waited for."""
    times: list[float] = []

    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        times.append(trio.current_time())
        if len(times) == 1:
            await say(websocket, "start", frame, turn="t")
            await chunk(websocket, frame, 0, "start", messageId="t")
            await say(websocket, "error", frame, errorText="The journal is not available.")
        elif len(times) == 2:
            await say(websocket, "error", frame, errorText="Not now.", status=503, retryMs=100)
        else:
            await say(websocket, "error", frame, errorText="Never.", status=409)

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        async with client.send("c", "Hello") as stream:
            await anext(stream)
            with pytest.raises(RequestRefusedError, match=r"^Never\.$") as caught:
                await anext(stream)
        assert caught.value.status == 409
        assert 0.1 <= times[2] - times[1] < 0.4
        with pytest.raises(RequestRefusedError, match="Never"):
            await taken(client)


@pytest.mark.parametrize(
    "said",
    [
        "x",
        "[]",
        '{"type":"chunk"}',
        '{"type":"news","requestId":"1"}',
        '{"type":"chunk","requestId":"1","chunk":{"type":"start"},"position":7}',
        '{"type":"chunk","requestId":"1","chunk":' + "[" * 100_000,
        '{"type":"chunk","requestId":"1","chunk":[]}',
        '{"type":"closing","requestId":"","retryMs":"soon"}',
    ],
    ids=range(8),
)
async def test_frames_that_are_none_are_an_error(said: str) -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        await say(websocket, "start", frame, turn="t")
        await websocket.send(said)

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        with pytest.raises(RemoteProtocolError):
            await taken(client)


async def test_frames_of_nobody_and_bytes_are_no_matter() -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        await websocket.send('{"type":"ping","requestId":""}')
        await say(websocket, "start", frame, turn="t")
        await say(websocket, "chunk", {"requestId": "other"}, chunk=7)
        await chunk(websocket, frame, 0, "finish")
        await say(websocket, "end", frame)
        await chunk(websocket, frame, 1, "text-start", id="late")

    async with scripted(script) as (url, heard), open_client(url, limits=QUICK) as client:
        assert [chunk.kind for chunk in await taken(client)] == ["finish"]
        assert [frame["type"] for frame in heard] == ["send"]
        assert set(heard[0]) == {"type", "requestId", "id", "message", "trigger", "body"}


async def test_an_event_without_a_position_has_the_last_ones() -> None:
    """As in an event stream: a client that is cut off after it goes on from there."""

    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        if number == 0:
            state: dict[str, Any] = {"id": "c", "turn": None, "messages": []}
            await say(websocket, "event", frame, event="snapshot", data=state, position="t.1-3")
            await say(websocket, "event", frame, event="message", data=user_message("x", id="u"))
            await websocket.aclose(1012)
        else:
            await say(websocket, "event", frame, event="gap", data={"reason": frame["after"]})

    async with scripted(script) as (url, _), open_client(url, limits=QUICK) as client:
        async with client.watch("c") as events:
            told = [await anext(events) for _ in range(3)]
            assert events.last_event_id == "t.1-3"
    assert told[1] == Message(user_message("x", id="u"), Position("t", 1, 3))
    assert told[2] == Gap("t.1-3", None)


async def test_a_request_that_is_cancelled_before_its_answer_is_let_go_of() -> None:
    async def script(websocket: WebSocket, number: int, frame: dict[str, Any]) -> None:
        pass

    async with scripted(script) as (url, heard), open_client(url, limits=QUICK) as client:
        for ask in (taken, Client.stop, Client.state):
            with trio.move_on_after(0.05):
                await ask(client, "c")
        await wait_for(lambda: len(heard) == 6)
        assert [frame["type"] for frame in heard] == ["send", "abort", "stop", "abort", "watch", "abort"]
        assert [frame["requestId"] for frame in heard] == list("112233")

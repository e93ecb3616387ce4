"""Chats on plain NATS subjects: our turns for other services, and what those say for who watches."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import chat_socket
import httpx2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_watch import Viewer, two_words

from nats_server import NatsServer, running_nats
from penstock import Limits, Turn, chat_app
from penstock.interop.nats import Listener, Others, read_foreign
from penstock.limits import NatsLimits, WireLimits
from penstock.metrics import Counters, NopMetrics
from penstock.testing import open_server, record
from penstock.turns.foreign import ForeignEvent
from penstock.web.auth import Action, Denied, Request
from penstock.web.watch import Filter
from penstock.wire.sse_parser import SseParser

QUICK = Limits(nats=NatsLimits(connect_s=0.5, first_backoff_s=0.02, backoff_max_s=0.1, close_s=0.3))
MESSAGE = {"id": "m1", "role": "assistant", "parts": []}


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """One for all who don't stop it."""
    with running_nats() as running:
        yield running


class Service:
    """Another service: it knows the text protocol, and nothing of penstock."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.heard: list[tuple[str, str, bytes]] = []
        """Subject, headers, payload."""
        self.pongs = 0

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish, and wait until the server has it."""
        await self._stream.send_all(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))

    async def subscribe(self, subject: str) -> None:
        """Listen, from the next thing on that is said."""
        await self._stream.send_all(f"SUB {subject} 1\r\n".encode())

    async def settle(self) -> None:
        """Wait until the server has done what was asked before."""
        pongs = self.pongs
        await self._stream.send_all(b"PING\r\n")
        with trio.fail_after(5):
            while self.pongs == pongs:
                await trio.sleep(0.002)

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some())
        except trio.BrokenResourceError:
            return b""  # it was killed

    async def run(self) -> None:
        """Take in what comes."""
        buffer = b""
        while data := await self._receive():
            buffer += data
            while b"\r\n" in buffer:
                line, _, rest = buffer.partition(b"\r\n")
                words = line.split(b" ")
                if words[0] == b"PONG":
                    self.pongs += 1
                elif words[0] in (b"MSG", b"HMSG"):
                    size = int(words[-1])
                    if len(rest) < size + 2:
                        break
                    head = int(words[-2]) if words[0] == b"HMSG" else 0
                    self.heard.append((words[1].decode(), rest[:head].decode(), rest[head:size]))
                    rest = rest[size + 2 :]
                buffer = rest

    def of(self, subject: str) -> list[Any]:
        """What was said on a subject."""
        return [json.loads(payload) for on, _, payload in self.heard if on == subject]


@asynccontextmanager
async def other_service(server: NatsServer) -> AsyncIterator[Service]:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream, trio.open_nursery() as nursery:
        await stream.send_all(b'CONNECT {"verbose":false,"headers":true}\r\n')
        service = Service(stream)
        nursery.start_soon(service.run)
        yield service
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to have happened."""
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def watched(
    server: NatsServer, query: str = "", **options: Any
) -> AsyncIterator[tuple[str, Viewer, Service]]:
    """Serve a producer, watch the chat `c`, and have another service that is heard in it."""
    app = chat_app(two_words, nats_watch=server.url(), limits=QUICK, **options)
    async with open_server(app) as url, trio.open_nursery() as nursery, other_service(server) as service:
        viewer = Viewer()
        nursery.start_soon(viewer.run, f"{url}/api/chat/c/watch{query}")
        with trio.fail_after(5):
            while not viewer.events or "chat.*.c" not in await subjects(server):
                await trio.sleep(0.01)
        yield f"{url}/api/chat", viewer, service
        nursery.cancel_scope.cancel()


async def subjects(server: NatsServer) -> set[str]:
    """The subjects that somebody listens to."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        found = await client.get(f"http://127.0.0.1:{server.monitor}/subsz?subs=1&limit=9999")
    return {each["subject"] for each in found.json().get("subscriptions_list") or ()}


@pytest.mark.parametrize("chat", ["plain-1_~", "a.b..c"])
async def test_what_a_turn_writes_is_mirrored_in_its_order(server: NatsServer, chat: str) -> None:
    token = chat.replace(".", "=2E")
    metrics = Counters()
    app = chat_app(two_words, nats_mirror=server.url(), limits=QUICK, metrics=metrics)
    async with other_service(server) as service, open_server(app) as url:
        await service.subscribe("chat.*.*")
        await service.settle()
        with trio.fail_after(5):
            while True:
                metrics.values.clear()
                recording = await record(f"{url}/api/chat", "one", chat_id=chat)
                if not metrics.get("mirror_dropped"):
                    break
        chunks = [json.loads(event.data) for event in recording.events if event.data != "[DONE]"]
        await until(lambda: service.of(f"chat.message.{token}")[-1:] == [recording.message])
        assert service.of(f"chat.chunk.{token}")[-len(chunks) :] == chunks
        roles = [message["role"] for message in service.of(f"chat.message.{token}")]
        assert roles[-2:] == ["user", "assistant"]
        heads = [head for subject, head, _ in service.heard if subject == f"chat.chunk.{token}"]
        assert f"Penstock-Position: {recording.events[-2].last_event_id}\r\n" in heads[-1]


async def test_a_mirror_that_is_away_or_paused_slows_nobody() -> None:
    metrics = Counters()
    limits = Limits(nats=NatsLimits(unsent_bytes=20_000, connect_s=0.2, backoff_max_s=0.1, close_s=0.2))

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(300):
                await text.write("x" * 1000)

    with running_nats() as server:
        app = chat_app(answer, nats_mirror=server.url(), limits=limits, metrics=metrics)
        async with open_server(app) as url:
            async with other_service(server) as service:
                await service.subscribe("chat.message.c")
                await service.settle()
                with trio.fail_after(5):
                    while not service.heard:
                        await record(f"{url}/api/chat", "one", chat_id="c")
            server.signal(signal.SIGSTOP)
            # More than the system holds for it.
            for _ in range(60):
                if metrics.get("mirror_dropped") > 300:
                    break
                with trio.fail_after(5):
                    assert (await record(f"{url}/api/chat", "two", chat_id="d")).events[-1].data == "[DONE]"
            paused = metrics.get("mirror_dropped")
            assert paused > 300
            server.kill()
            with trio.fail_after(5):
                assert (await record(f"{url}/api/chat", "three", chat_id="e")).events[-1].data == "[DONE]"
            await until(lambda: metrics.get("mirror_dropped") >= paused + 300)
            await trio.to_thread.run_sync(server.start)
            async with other_service(server) as service:
                await service.subscribe("chat.message.f")
                await service.settle()
                with trio.fail_after(5):
                    while not service.heard:
                        await record(f"{url}/api/chat", "four", chat_id="f")


async def test_what_other_services_say_is_watched_beside_the_turns(server: NatsServer) -> None:
    async with watched(server, nats_mirror=server.url()) as (url, viewer, service):
        seen = len(viewer.events)
        await service.publish("chat.chunk.c", b'{"chunk_type":"progress","done":0.5}')
        await service.publish("chat.chunk.c", b"half of a {")
        await service.publish("chat.message.c", json.dumps(MESSAGE).encode())
        await service.publish("chat.message.c", b"no JSON either")
        await service.publish("chat.chunk.c", b'{"chunk_type":"closing"}')
        await service.publish("chat.chunk.c", b'{"chunk_type":"x\\nid: 7"}')
        await service.publish("chat.chunk.c", b"two\nlines\r\nevent: closing\xff")
        await service.publish("chat.chunk.other", b'{"chunk_type":"progress"}')
        await service.publish("chat.chunk.c.d", b'{"chunk_type":"progress"}')
        await service.publish("chat.message.c", b'{"chunk_type":"last"}')
        await viewer.until(lambda: viewer.of("last") != [])
        assert [(event.event, event.data) for event in viewer.events[seen:]] == [
            ("progress", '{"chunk_type":"progress","done":0.5}'),
            ("chunk", "half of a {"),
            ("message", '{"id":"m1","role":"assistant","parts":[]}'),
            ("chunk", "no JSON either"),
            ("chunk", '{"chunk_type":"closing"}'),
            ("chunk", '{"chunk_type":"x\\nid: 7"}'),
            ("chunk", "two\nlines\nevent: closing\ufffd"),
            ("last", '{"chunk_type":"last"}'),
        ]
        # And ours is there once, although it is mirrored to where we listen.
        seen = len(viewer.events)
        await record(url, "one", chat_id="c")
        await service.publish("chat.message.c", b'{"chunk_type":"end"}')
        await viewer.until(lambda: viewer.of("end") != [])
        ours = viewer.events[seen:]
        assert [event.event for event in ours].count("message") == 2
        assert len([event for event in ours if '"two "' in event.data and event.event == "chunk"]) == 1


async def test_a_watcher_may_choose_and_have_envelopes(server: NatsServer) -> None:
    async with watched(server, "?types=progress,snapshot&envelope=1") as (_, viewer, service):
        await service.publish("chat.chunk.c", b'{"chunk_type":"other"}')
        await service.publish("chat.chunk.c", b"text")
        await service.publish("chat.chunk.c", b'{"chunk_type":"progress","n":1}')
        await viewer.until(lambda: "progress" in viewer.events[-1].data)
        found = [json.loads(event.data) for event in viewer.events]
    names = [each["event"] for each in found if each["event"] not in ("gap", "error")]
    assert names == ["snapshot", "progress"]
    assert found[-1]["data"] == {"chunk_type": "progress", "n": 1}


async def test_who_watches_is_told_when_others_can_not_be_heard() -> None:
    with running_nats() as server:
        async with watched(server) as (url, viewer, service):
            await service.publish("chat.chunk.c", b'{"chunk_type":"progress"}')
            await viewer.until(lambda: viewer.of("progress") != [])
            before = len(viewer.of("error"))
            server.kill()
            await viewer.until(lambda: len(viewer.of("error")) == before + 1)
            # Turns are watched as ever.
            recording = await record(url, "one", chat_id="c")
            await viewer.until(lambda: viewer.of("message")[-1:] == [recording.message])
            late = Viewer()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(late.run, f"{url}/c/watch")
                await late.until(lambda: late.of("error") != [] and late.of("snapshot") != [])
                nursery.cancel_scope.cancel()
            gaps = len(viewer.of("gap"))
            await trio.to_thread.run_sync(server.start)
            await viewer.until(lambda: len(viewer.of("gap")) == gaps + 1)
            async with other_service(server) as service:
                await service.publish("chat.chunk.c", b'{"chunk_type":"again"}')
                await viewer.until(lambda: viewer.of("again") != [])
            assert len(viewer.of("error")) == before + 1


async def test_others_are_heard_by_whom_the_app_lets_watch_and_in_no_other_chat(server: NatsServer) -> None:
    async def authorize(request: Request, chat_id: str, action: Action) -> str | Denied:
        return "me" if chat_id == "mine" else Denied.hidden

    app = chat_app(two_words, nats_watch=server.url(), limits=QUICK, authorize=authorize)
    async with open_server(app) as url, httpx2.AsyncClient(trust_env=False) as client:
        for chat in ("theirs", "*", "%3E", "a%20b", "mine.%3E", "mi%0Ane"):
            answer = await client.get(f"{url}/api/chat/{chat}/watch")
            assert answer.status_code in (400, 404), chat
        assert not any(subject.startswith("chat.") for subject in await subjects(server))


async def test_others_are_watched_on_a_websocket(server: NatsServer) -> None:
    app = chat_app(two_words, nats_watch=server.url(), limits=QUICK)
    async with (
        chat_socket.chat_server(app) as running,
        other_service(server) as service,
    ):
        socket = await chat_socket.connect(running)
        await socket.ask("watch", "w", id="c")
        with trio.fail_after(5):
            while "chat.*.c" not in await subjects(server):
                await trio.sleep(0.01)
        await service.publish("chat.chunk.c", b'{"chunk_type":"progress","n":1}')
        await service.publish("chat.chunk.c", b"no JSON")
        while (last := await socket.next()).get("data") != "no JSON":
            pass
        assert (last["type"], last["event"], last["requestId"]) == ("event", "chunk", "w")
        assert ("progress", {"chunk_type": "progress", "n": 1}) in [
            (frame.get("event"), frame.get("data")) for frame in socket.frames
        ]


@given(st.sampled_from(["chunk", "message"]), st.binary(max_size=50) | st.text().map(str.encode))
def test_anything_can_be_read_and_nothing_forges_an_event(kind: str, payload: bytes) -> None:
    limits = Limits()
    event = read_foreign(kind, payload, limits)
    named = read_foreign(kind, json.dumps({"chunk_type": payload.decode("latin-1")}).encode(), limits)
    for each in (event, named):
        (seen,) = SseParser(WireLimits()).feed(Filter(None, None, False).foreign(each))
        assert seen.event == each.name
        assert seen.last_event_id == ""
        assert each.name not in ("snapshot", "gap", "notice", "closing")
        assert Filter(None, None, True).foreign(each).count(b"\n\n") == 1


async def test_a_watcher_that_is_behind_is_told_so_and_holds_no_more() -> None:
    class NoLink:
        connected = True

        def listen(self, *args: Any, **options: Any) -> Any:
            return self

        def __enter__(self) -> None: ...

        def __exit__(self, *args: object) -> None: ...

    listener = Listener(Others(NoLink(), Limits(), NopMetrics()), "c", 3)  # type: ignore[arg-type]
    with listener:
        for i in range(5):
            listener.add(ForeignEvent("n", i))
        assert [event.name for event in await listener.next_events()] == ["gap", "n", "n"]

"""The relay in front of an app of one's own: a chat service that goes on without us, and a backend of the AI SDK."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fault_upstream import HEAD, Ended, Script, chunked, hang, impatient, reset, run_turn, scripted, sends

from penstock import Limits, TurnState, open_hub
from penstock.errors import UpstreamError, UpstreamTruncatedError, UpstreamUnreadableError
from penstock.journal.store import Batch, open_store
from penstock.limits import RelayLimits
from penstock.relay.ui_stream import UiStreamProtocol
from penstock.relay.upstream import open_upstream, relay
from penstock.testing import user_message
from penstock.turns.turn import Producer, TurnRequest
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    Finish,
    MessageMetadata,
    Start,
    StartStep,
    TextDelta,
    TextStart,
)
from penstock.wire.codec import encode

WHOLE = "Because it is so."
QUICK = Limits(
    relay=RelayLimits(recover_first_s=0.01, recover_max_s=0.02, retries=0, thinking_s=60, heartbeat_s=0)
)


def frame(**fields: Any) -> bytes:
    """Make a frame as one HTTP chunk."""
    return chunked(b"data: %b\n\n" % json.dumps(fields).encode())


CONVERSATION = frame(kind="conversation", id="c-17")
HEARTBEAT = chunked(b"event: heartbeat\ndata: {}\n\n")


class Service:
    """A chat service: how its streams go, and what it says of its conversation later, each time that it is asked."""

    def __init__(self, *pieces: bytes, breaks: bool = True, turns: Sequence[Any] = ()) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self._pieces = pieces
        self._breaks = breaks
        self._turns = list(turns)

    async def handle(self, stream: trio.SocketStream) -> None:
        """Answer one request."""
        async with stream:
            request = b""
            while not (head := re.match(rb"(?s)(.+?\r\n\r\n)", request)):
                request += await stream.receive_some() or pytest.fail("the client left")
            length = re.search(rb"(?i)content-length: (\d+)", head[1])
            while len(request) < len(head[1]) + (int(length[1]) if length else 0):
                request += await stream.receive_some() or pytest.fail("the client left")
            self.requests.append(request)
            if request.startswith(b"POST"):
                await stream.send_all(HEAD + b"".join(self._pieces) + (b"" if self._breaks else chunked(b"")))
                if self._breaks:
                    await reset(stream)
                return
            says = self._turns.pop(0)
            body = json.dumps({"turns": says}).encode()
            await stream.send_all(
                b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (404 if says is None else 200, len(body), body)
            )


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Producer]:
    """Serve it, and yield a producer that relays it."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, service.handle, 0, host="127.0.0.1"))
        service.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/api"
        yield relay(service.url, protocol="chat", api_key="key", limits=QUICK)
        nursery.cancel_scope.cancel()


def texts(chunks: Sequence[AnyChunk]) -> list[str]:
    """Return the texts of all deltas."""
    return [chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)]


def turns(answer: str, question: str = "Hello", **more: Any) -> list[dict[str, Any]]:
    """Make a conversation."""
    return [{"role": "user", "text": question}, {"role": "assistant", "text": answer, **more}]


async def test_a_chat_service_is_asked_and_heard() -> None:
    """Its heartbeats are passed on while it says nothing."""
    service = Service(
        CONVERSATION,
        HEARTBEAT,
        frame(kind="meta", model="m"),
        frame(kind="chunk", text=WHOLE),
        frame(kind="done"),
        breaks=False,
    )
    question = user_message("Why?")
    async with serving(service) as producer:
        turn = await run_turn(producer, question)
    assert turn.state is TurnState.finished
    assert turn.message.text == WHOLE
    assert turn.message.metadata == {"upstream": {"protocol": "chat", "id": "c-17"}, "model": "m"}
    head, _, body = service.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/chat HTTP/1.1\r\n")
    assert b"\r\nauthorization: bearer key" in head.lower()
    request = json.loads(body)
    assert request.pop("chat_id")
    assert request == {
        "message": "Why?",
        "message_id": question.id,
        "messages": [{"role": "user", "content": "Why?"}],
        "stream": True,
    }


async def test_heartbeats_of_a_chat_service_are_proof_of_life() -> None:
    async def thinks(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD + CONVERSATION)
        for _ in range(3):
            await trio.sleep(0.02)
            await stream.send_all(HEARTBEAT)
        await stream.send_all(frame(kind="chunk", text="ok") + frame(kind="done") + chunked(b""))

    async with scripted(thinks) as server:
        turn = await run_turn(relay(server.url, protocol="chat", limits=QUICK))
    assert turn.state is TurnState.finished
    assert [chunk.type for chunk in turn.chunks if isinstance(chunk, Data)] == ["data-thinking"] * 3


async def test_an_answer_whose_stream_broke_goes_on_from_the_conversation() -> None:
    """In the same part, once the service has it: at first it does not know, then it is still at it."""
    service = Service(
        CONVERSATION,
        frame(kind="chunk", text="Because "),
        turns=[turns("other", "What?"), turns("Because it", done=False), turns(WHOLE, done=True)],
    )
    async with serving(service) as producer:
        turn = await run_turn(producer)
    assert turn.state is TurnState.finished
    assert texts(turn.chunks) == ["Because ", "it is so."]
    assert [part["type"] for part in turn.message.parts] == ["step-start", "text"]
    assert "incomplete" not in turn.message.metadata
    assert service.requests[1].startswith(b"GET /api/chat/conversations/c-17/turns HTTP/1.1\r\n")
    assert b"\r\nauthorization: bearer key" in service.requests[1].lower()


@pytest.mark.parametrize("says", [turns("Besides, it is not."), None])
async def test_without_the_same_answer_it_stays_cut_off(says: Any) -> None:
    """The service has another one, or none any more."""
    service = Service(CONVERSATION, frame(kind="chunk", text="Because "), turns=[says])
    async with serving(service) as producer:
        turn = await run_turn(producer)
    check_failed(turn, UpstreamTruncatedError, "Because ")


async def test_what_the_service_says_of_a_failure_is_told_without_the_key() -> None:
    """Also where it says so only when it is asked for the rest."""
    says = turns("", error="no such token: key")
    service = Service(CONVERSATION, frame(kind="chunk", text="Because "), turns=[says])
    async with serving(service) as producer:
        turn = await run_turn(producer)
    check_failed(turn, UpstreamError, "Because ")
    assert str(turn.error) == "the upstream reported 'no such token: [key]'"


async def test_the_next_process_finishes_the_answer(tmp_path: Path) -> None:
    """The conversation's id is in the journal, as the metadata of the message."""
    journal = f"sqlite:{tmp_path / 'chat.db'}"
    identity = {"upstream": {"protocol": "chat", "id": "c-17"}}
    written: list[AnyChunk] = [
        Start(message_id="m"),
        StartStep(),
        MessageMetadata(message_metadata=identity),
        TextStart(id="part-1"),
        TextDelta(id="part-1", delta="Because "),
    ]
    async with open_store(journal) as store:
        question = user_message("Hello")
        now = time.time()
        record = await store.begin("chat", "m", question.id, [question], at=now, lease_until=now - 1)
        await store.append([Batch(record, 0, [encode(chunk) for chunk in written])])
    service = Service(turns=[turns(WHOLE)])
    async with (
        serving(service),
        open_upstream(service.url, protocol="chat", limits=QUICK) as upstream,
        open_hub(journal=journal, recover=upstream.recover) as hub,
    ):
        turn = await hub.newest_turn("chat")
        assert turn is not None
        with trio.fail_after(5):
            assert await turn.wait_ended() is TurnState.finished
        chat = await hub.chat("chat")
    assert chat is not None
    assert chat.messages[-1].text == WHOLE


def check_failed(turn: Ended, error: type[Exception], text: str) -> None:
    """Check that a turn failed once, keeps its text, and says that it is not the whole."""
    assert turn.state is TurnState.failed
    assert isinstance(turn.error, error)
    assert [chunk.kind for chunk in turn.chunks].count("error") == 1
    assert turn.message.text == text
    assert turn.message.metadata["incomplete"] is True


STREAM: list[dict[str, Any]] = [
    {"type": "start", "messageId": "theirs", "messageMetadata": {"a": 1}},
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "So far, "},
]


def streams(chunks: Sequence[Any], at_once: bool) -> Script:
    """Make a script that sends chunks, one by one or as one piece, and no end."""
    events = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    return sends(HEAD, *map(chunked, [b"".join(events)] if at_once else events), then=hang)


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "text-delta", "id": "other", "delta": "x"},
        {"type": "text-start", "id": "t"},
        {"type": "finish-step"},
        {"type": "tool-output-available", "toolCallId": "c", "output": 1},
        {"type": "a-kind-of-ai-9"},
        {"type": "text-delta", "id": "t"},
        {"type": "data-proto", "data": {"__proto__": {}}},
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_breaks_the_protocol_is_one_clear_error(bad: Any, at_once: bool) -> None:
    """What came before it is kept, also of the same piece of the network's."""
    script = streams([*STREAM, bad, {"type": "finish"}], at_once)
    async with scripted(script) as server:
        turn = await run_turn(relay(server.url, protocol="ui-stream", limits=impatient()))
    check_failed(turn, UpstreamUnreadableError, "So far, ")
    assert turn.error is not None
    assert turn.error.error_text == "The model's answer could not be understood."
    assert len(server.requests) == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_error_of_the_backends_own_keeps_its_words(at_once: bool) -> None:
    script = streams([*STREAM, {"type": "error", "errorText": "No more."}], at_once)
    async with scripted(script) as server:
        turn = await run_turn(relay(server.url, protocol="ui-stream", limits=impatient()))
    assert turn.state is TurnState.failed
    assert msgspec.to_builtins(turn.chunks[-1]) == {"type": "error", "errorText": "No more."}
    assert turn.message.metadata == {"a": 1, "incomplete": True}


async def test_an_abort_of_the_backends_own_stops_the_turn() -> None:
    pieces = [frame(**chunk) for chunk in [*STREAM, {"type": "abort", "reason": "enough"}]]
    async with scripted(sends(HEAD, *pieces, chunked(b""))) as server:
        turn = await run_turn(relay(server.url, protocol="ui-stream", limits=impatient()))
    assert turn.state is TurnState.stopped
    assert turn.message.text == "So far, "
    assert isinstance(turn.chunks[-1], Finish)


@pytest.mark.parametrize(
    ("head", "requests"),
    [
        ("500 Oh", 1),
        ("503 Busy", 1),
        ("503 Busy\r\nretry-after: 0", 3),
        ("429 Slow\r\nretry-after: 999", 1),
    ],
)
async def test_a_request_with_effects_is_made_once_unless_the_backend_asks(head: str, requests: int) -> None:
    """And what it says is for the user."""
    answer = f"HTTP/1.1 {head}\r\ncontent-type: text/plain\r\ncontent-length: 7\r\n\r\nNot now".encode()
    async with scripted(sends(answer)) as server:
        limits = impatient(retries=2, backoff_s=0.001)
        turn = await run_turn(relay(server.url, protocol="ui-stream", limits=limits))
    assert len(server.requests) == requests
    assert msgspec.to_builtins(turn.chunks[-1]) == {"type": "error", "errorText": "Not now"}


async def test_a_cookie_of_any_bytes_goes_on_with_the_same() -> None:
    """Pages set them in UTF-8; to HTTP, and so to ASGI, they are bytes."""
    cookie = "name=Zoë 🦊".encode()
    protocol = UiStreamProtocol(forward_headers=["cookie"])
    request = TurnRequest(b"{}", {"cookie": cookie.decode("latin-1")})
    async with (
        scripted(sends(HEAD, frame(type="finish"), chunked(b""))) as server,
        open_upstream(server.url, protocol=protocol, limits=impatient()) as upstream,
        open_hub() as hub,
    ):
        turn = await hub.start_turn("chat", upstream.answer, [user_message("Hello")], request=request)
        assert await turn.wait_ended() is TurnState.finished
    assert b"ookie: %b\r\n" % cookie in server.requests[0]


async def test_a_connection_that_broke_before_the_answer_is_not_tried_again() -> None:
    """The backend may have begun."""
    async with scripted(reset) as server:
        turn = await run_turn(relay(server.url, protocol="ui-stream", limits=impatient(retries=2)))
    assert turn.state is TurnState.failed
    assert len(server.requests) == 1

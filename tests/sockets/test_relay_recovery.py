"""Over real sockets: what the relay asks of `/responses` and of Anthropic, and an answer that survives its connection."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from penstock import Limits, TurnState, open_hub
from penstock.limits import RelayLimits
from penstock.relay.upstream import open_upstream
from penstock.testing import user_message
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import SseParser

DATA = Path(__file__).parent.parent / "data"
LIMITS = Limits(relay=RelayLimits(recover_first_s=0.01))


class Request(NamedTuple):
    """What the relay asked."""

    line: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What it is answered."""

    kind: str
    body: bytes
    breaks: bool = False
    """The connection is reset instead of ended."""


@asynccontextmanager
async def open_server(*answers: Answer) -> AsyncIterator[tuple[str, list[Request]]]:
    """Serve one answer to each connection; the base URL, and what was asked."""
    asked: list[Request] = []
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            head, _, body = data.partition(b"\r\n\r\n")
            line, *fields = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await stream.receive_some()
            asked.append(Request(line, headers, body))
            answer = left.pop(0)
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %s\r\n\r\n%s"
                % (answer.kind.encode(), answer.body)
            )
            if answer.breaks:
                await trio.sleep(0.1)  # or the reset would take back what was not read yet
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1", asked
        nursery.cancel_scope.cancel()


async def relayed(url: str, protocol: str) -> tuple[TurnState, UIMessage]:
    """Relay one turn."""
    async with (
        open_upstream(url, "m", protocol=protocol, api_key="key", limits=LIMITS) as upstream,
        open_hub(journal="memory:") as hub,
    ):
        turn = await hub.start_turn("chat", upstream.answer, [user_message("Hello")])
        with trio.fail_after(10):
            state = await turn.wait_ended()
        chat = await hub.chat("chat")
    assert chat is not None
    return state, chat.messages[-1]


def transcript(name: str) -> bytes:
    """Read a recorded stream."""
    return (DATA / f"{name}.sse").read_bytes()


def whole_text(message: UIMessage) -> list[dict[str, Any]]:
    """Return the parts that are text."""
    return [part for part in message.parts if part["type"] == "text"]


@pytest.mark.parametrize("breaks", [True, False])
async def test_an_answer_survives_its_connection(breaks: bool) -> None:
    """Reset, or ended without its end: the turn goes on by the identity, in the same part."""
    body = transcript("responses/text")
    half = body[: body.index(b" an \xf0")]
    response = json.loads(SseParser().feed(body)[-1].data)["response"]
    answers = [
        Answer("text/event-stream", half[: half.rindex(b"event: ")], breaks),
        Answer("application/json", json.dumps({**response, "status": "in_progress"}).encode()),
        Answer("application/json", json.dumps(response).encode()),
    ]
    async with open_server(*answers) as (url, asked):
        state, message = await relayed(url, "responses")
    assert state is TurnState.finished
    assert whole_text(message) == [{"type": "text", "text": "Grüße an 🦊.\n\nEnd", "state": "done"}]
    assert message.metadata == {
        "model": "gpt-5-mini-2025-08-07",
        "upstream": {"protocol": "responses", "id": "resp_text01"},
        "usage": {"inputTokens": 11, "outputTokens": 5, "totalTokens": 16},
    }
    assert [request.line for request in asked] == [
        "POST /v1/responses HTTP/1.1",
        "GET /v1/responses/resp_text01 HTTP/1.1",
        "GET /v1/responses/resp_text01 HTTP/1.1",
    ]
    assert {request.headers["authorization"] for request in asked} == {"Bearer key"}
    assert json.loads(asked[0].body)["store"] is True


async def test_anthropic_is_asked_its_way() -> None:
    """By its headers and its path; its stream is a turn's message."""
    answer = Answer("text/event-stream; charset=utf-8", transcript("anthropic/thinking"))
    async with open_server(answer) as (url, asked):
        state, message = await relayed(url, "anthropic")
    assert state is TurnState.suspended
    assert [part["type"] for part in message.parts] == [
        "step-start",
        "reasoning",
        "reasoning",
        "text",
        "tool-get_weather",
    ]
    request = asked[0]
    assert request.line == "POST /v1/messages HTTP/1.1"
    assert request.headers["x-api-key"] == "key"
    assert "authorization" not in request.headers
    assert json.loads(request.body)["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
    ]

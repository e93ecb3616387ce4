"""An answer whose stream broke off is asked for again: in the turn that lost it, and after the turn's process died."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from penstock import Limits, Turn, TurnState, open_hub
from penstock.errors import UpstreamError, UpstreamTooLongError, UpstreamTruncatedError
from penstock.journal.store import Batch, open_store
from penstock.limits import RelayLimits
from penstock.relay.recovery import recover_rest
from penstock.relay.responses import ResponsesTranslator
from penstock.relay.responses_protocol import ResponsesProtocol
from penstock.testing import user_message
from penstock.wire.chunks import AnyChunk, FinishStep, Start, ToolInputAvailable, ToolOutputAvailable
from penstock.wire.codec import encode
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import SseParser

DATA = Path(__file__).parent.parent / "data" / "responses"
URL = httpx2.URL("http://upstream.test/v1")
HALF = 4
"""Chunks of `text.sse` up to its first words."""

LIMITS = Limits()

Reply = tuple[int, bytes] | type[Exception] | None
"""A status and a body, an exception of the transport, or nothing at all, for ever."""


def events(name: str) -> list[Any]:
    """Read a transcript's events."""
    return SseParser().feed((DATA / f"{name}.sse").read_bytes())


def streamed(name: str) -> list[AnyChunk]:
    """Return the chunks of a transcript."""
    translator = ResponsesTranslator()
    return [chunk for event in events(name) for chunk in translator.feed(event)]


def response(name: str, **fields: Any) -> Reply:
    """Return what the API answers when it is asked for the transcript's response."""
    return 200, json.dumps({**json.loads(events(name)[-1].data)["response"], **fields}).encode()


class Body(httpx2.AsyncByteStream):
    """A body that comes in pieces."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for first in range(0, len(self._body), 1_000):
            await trio.lowlevel.checkpoint()
            yield self._body[first : first + 1_000]


class Upstream:
    """Answers each question with the next reply, and the last one again."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked: list[httpx2.Request] = []

    def client(self) -> httpx2.AsyncClient:
        """Make a client of it."""
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self._reply))

    async def _reply(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply is None:
            await trio.sleep_forever()
        if isinstance(reply, type):
            raise reply("broke", request=request)  # type: ignore[call-arg]
        status, body = reply
        return httpx2.Response(status, stream=Body(body))


async def recovered_turn(
    upstream: Upstream, chunks: Sequence[AnyChunk], limits: Limits = LIMITS
) -> tuple[bool | Exception, UIMessage, TurnState]:
    """Run a turn that has written these chunks, and asks for the rest."""
    result: list[bool | Exception] = []
    messages: list[UIMessage] = []

    async def answer(turn: Turn) -> None:
        for chunk in chunks:
            await turn.write(chunk)
        recoverer = ResponsesProtocol("m").recoverer(URL, "key")
        async with upstream.client() as client:
            try:
                result.append(await recover_rest(client, recoverer, turn, limits))
            except UpstreamError as exc:
                result.append(exc)
        messages.append(turn.message)

    async with open_hub(journal="memory:") as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        state = await turn.wait_ended()
    return result[0], messages[0], state


async def test_a_turn_goes_on_where_its_upstream_broke_off(autojump_clock: MockClock) -> None:
    """In the same part, however often it has to ask."""
    replies: list[Reply] = [
        httpx2.ConnectError,
        (503, b"busy"),
        response("text", status="queued", output=[]),
        response("text", status="in_progress"),
        response("text"),
    ]
    upstream = Upstream(*replies)
    result, message, state = await recovered_turn(upstream, streamed("text")[:HALF])
    assert result is True
    assert state is TurnState.finished
    assert message.parts[1:] == [{"type": "text", "text": "Grüße an 🦊.\n\nEnd", "state": "done"}]
    assert message.metadata["usage"] == {"inputTokens": 11, "outputTokens": 5, "totalTokens": 16}
    assert len(upstream.asked) == len(replies)
    asked = upstream.asked[-1]
    assert (asked.method, str(asked.url)) == ("GET", "http://upstream.test/v1/responses/resp_text01")
    assert asked.headers["authorization"] == "Bearer key"
    # 0.5 + 1 + 2 + 4 s at most, and half of it at least.
    assert 3.75 <= trio.current_time() <= 7.5


async def test_a_recovered_tool_call_suspends_the_turn(autojump_clock: MockClock) -> None:
    """As it would have done from the stream: the client has to execute it."""
    chunks = streamed("tools")
    result, message, state = await recovered_turn(Upstream(response("tools")), chunks[:4])
    assert result is True
    assert state is TurnState.suspended
    assert [part["input"] for part in message.parts[1:]] == [{"city": "Zürich"}, {}]


@pytest.mark.parametrize("status", [404, 401, 302, 410])
async def test_an_answer_that_is_gone_is_not_recovered(autojump_clock: MockClock, status: int) -> None:
    """Nothing is written then."""
    upstream = Upstream((status, b"{}"))
    result, message, _ = await recovered_turn(upstream, streamed("text")[:HALF])
    assert result is False
    assert message.text == "Grüße"
    assert len(upstream.asked) == 1


async def test_another_answer_is_refused(autojump_clock: MockClock) -> None:
    """The turn fails as truncated, rather than with two halves of two answers."""
    result, message, _ = await recovered_turn(Upstream(response("refusal")), streamed("text")[:HALF])
    assert type(result) is UpstreamTruncatedError
    assert message.text == "Grüße"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (response("text", status="failed", error={"code": "server_error"}), UpstreamError),
        (response("text", status="cancelled"), UpstreamTruncatedError),
        ((200, b"<html>"), UpstreamError),
        ((200, b" " * 100_000), UpstreamTooLongError),
    ],
)
async def test_a_failed_answer_is_an_error(
    autojump_clock: MockClock, reply: Reply, kind: type[Exception]
) -> None:
    """As it would have been in the stream."""
    limits = Limits(relay=RelayLimits(recovered_bytes=50_000))
    result, _, _ = await recovered_turn(Upstream(reply), streamed("text")[:HALF], limits)
    assert isinstance(result, kind)


@pytest.mark.parametrize(
    ("reply", "times"), [(None, range(3, 4)), (response("text", status="in_progress"), range(12, 30))]
)
async def test_waiting_has_an_end(autojump_clock: MockClock, reply: Reply, times: range) -> None:
    """An upstream that is silent, or never done, is given up."""
    upstream = Upstream(reply)
    limits = Limits(relay=RelayLimits(recover_s=60.0, recover_ask_s=20.0))
    result, message, _ = await recovered_turn(upstream, streamed("text")[:HALF], limits)
    assert result is False
    assert message.text == "Grüße"
    assert trio.current_time() == pytest.approx(60.0)
    assert len(upstream.asked) in times


def with_output() -> list[AnyChunk]:
    """A turn that has executed a tool, and asked the model again, which said nothing yet."""
    chunks = streamed("tools")
    return [*chunks[: chunks.index(FinishStep()) + 1], ToolOutputAvailable(tool_call_id="call_a", output=1)]


@pytest.mark.parametrize("chunks", [[], streamed("text")[:1], with_output()])
async def test_without_an_identity_nothing_is_asked(
    autojump_clock: MockClock, chunks: list[AnyChunk]
) -> None:
    """Nor with that of an earlier answer."""
    upstream = Upstream(response("text"))
    result, _, _ = await recovered_turn(upstream, chunks)
    assert result is False
    assert upstream.asked == []


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """A journal that outlives a hub."""
    return f"sqlite:{tmp_path}/chat.db"


async def leave_a_dead_turn(journal: str, chunks: Sequence[AnyChunk]) -> None:
    """Leave in a journal what a process leaves that is killed in mid-turn."""
    async with open_store(journal) as store:
        record = await store.begin(
            "chat", "msg_dead", "u", [user_message("Hello", id="u")],
            at=time.time(), lease_until=time.time() - 1.0,
        )  # fmt: skip
        first = Start(message_id="msg_dead")
        await store.append([Batch(record, 0, [encode(chunk) for chunk in [first, *chunks]])])


async def adopt(journal: str, upstream: Upstream) -> tuple[TurnState, UIMessage]:
    """Let another process find the turn, whose hub recovers by asking the upstream."""
    recoverer = ResponsesProtocol("m").recoverer(URL, "")

    async def recover(turn: Turn) -> bool:
        async with upstream.client() as client:
            return await recover_rest(client, recoverer, turn, LIMITS)

    async with open_hub(journal=journal, recover=recover) as hub:
        turn = await hub.newest_turn("chat")
        assert turn is not None
        with trio.fail_after(5), turn.follow() as subscription:
            try:
                while True:
                    await subscription.next_batch(100)
            except trio.EndOfChannel:
                pass
        chat = await hub.chat("chat")
    assert chat is not None
    return turn.state, chat.messages[-1]


async def test_a_turn_whose_process_died_is_recovered(journal: str) -> None:
    """The text is whole, in two parts: the first was ended with its process."""
    await leave_a_dead_turn(journal, streamed("text")[:HALF])
    state, message = await adopt(journal, Upstream(response("text")))
    assert state is TurnState.finished
    assert [part["text"] for part in message.parts if part["type"] == "text"] == ["Grüße", " an 🦊.\n\nEnd"]


async def test_a_tool_call_whose_process_died_is_made_again(journal: str) -> None:
    """The client can execute it, for the turn waits for it."""
    chunks = streamed("tools")
    ended = next(i for i, chunk in enumerate(chunks) if isinstance(chunk, ToolInputAvailable))
    await leave_a_dead_turn(journal, chunks[: ended + 1])
    state, message = await adopt(journal, Upstream(response("tools")))
    assert state is TurnState.suspended
    states = {part["toolCallId"]: part["state"] for part in message.parts if "toolCallId" in part}
    assert states == {"call_a": "output-error", "call_a-2": "input-available", "call_b": "input-available"}


@pytest.mark.parametrize(
    ("reply", "state"), [((404, b""), TurnState.lost), (response("refusal"), TurnState.failed)]
)
async def test_what_can_not_be_recovered_is_not_made_up(journal: str, reply: Reply, state: TurnState) -> None:
    """The partial text stays, and the turn says that it is not whole."""
    await leave_a_dead_turn(journal, streamed("text")[:HALF])
    ended, message = await adopt(journal, Upstream(reply))
    assert ended is state
    assert message.text == "Grüße"

"""Streams of `penstock.client` on a scripted transport: when it asks again, for what, and when it gives up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import httpx2
import msgspec
import pytest
import trio
from trio.testing import MockClock

from penstock.client.backoff import Backoff
from penstock.client.chunk_stream import RESTARTED
from penstock.client.client import Client
from penstock.client.endpoint import Endpoint
from penstock.client.events import Closing, Gap, Message, Other, Received, Snapshot
from penstock.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestRefusedError,
    ServerUnreachableError,
    StreamLostError,
)
from penstock.journal.position import Position
from penstock.limits import ClientLimits
from penstock.testing import run_cancelled_at, user_message
from penstock.wire.chunks import AnyChunk, Error, Finish, Start, TextDelta, TextEnd, TextStart
from penstock.wire.codec import encode, encode_json
from penstock.wire.sse import DONE, chunk_frame, comment, event

WHOLE: list[AnyChunk] = [
    Start(message_id="t1"),
    TextStart(id="a"),
    TextDelta(id="a", delta="one "),
    TextDelta(id="a", delta="two"),
    TextEnd(id="a"),
    Finish(finish_reason="stop"),
]


def at(offset: int, epoch: int = 1) -> Position:
    """A position of the turn."""
    return Position("t1", epoch, offset)


def tail(first: int, end: int = len(WHOLE), *, epoch: int = 1) -> bytes:
    """The frames of some entries, as they go out live."""
    frames = [
        chunk_frame(encode(WHOLE[offset]), str(at(offset, epoch)).encode()) for offset in range(first, end)
    ]
    return b"".join(frames)


def replay(end: int = len(WHOLE), *, epoch: int = 1) -> bytes:
    """The frames of a message that is sent as a whole: only the last has an id."""
    frames = [chunk_frame(encode(chunk)) for chunk in WHOLE[: end - 1]]
    return b"".join(frames) + tail(end - 1, end, epoch=epoch)


class Answer(httpx2.AsyncByteStream):
    """One scripted answer. It ends politely, or with `ends`."""

    def __init__(
        self,
        *pieces: bytes,
        status: int = 200,
        ends: httpx2.TransportError | None = None,
        lasts_s: float = 0.0,
        **headers: str,
    ) -> None:
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._pieces = pieces
        self._ends = ends
        self._lasts_s = lasts_s
        self.being_read = False
        self.pieces_read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.being_read = True
        try:
            for piece in self._pieces:
                await trio.lowlevel.checkpoint()
                self.pieces_read += 1
                yield piece
            if self._lasts_s:
                await trio.sleep(self._lasts_s)
                yield b": keepalive\n\n"
            if self._ends is not None:
                raise self._ends
        finally:
            self.being_read = False


def stream(*pieces: bytes, turn: str | None = "t1", **options: Any) -> Answer:
    """An answer that is an event stream of a penstock server; of another one without `turn`."""
    if turn is not None:
        options["x_penstock_turn"] = turn
    return Answer(comment("stream-start"), *pieces, content_type="text/event-stream", **options)


class Script(httpx2.AsyncBaseTransport):
    """Answers requests one by one, the last one for ever, and keeps what was asked and when."""

    def __init__(self, *answers: Answer | httpx2.TransportError) -> None:
        self._answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        self.times.append(trio.current_time())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, httpx2.TransportError):
            raise answer
        return httpx2.Response(answer.status, headers=answer.headers, stream=answer)

    @property
    def asked(self) -> list[str]:
        """Method, path and query of each request."""
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    @property
    def waits(self) -> list[float]:
        """Seconds between the requests."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    def client(
        self, limits: ClientLimits = ClientLimits(), jitter: Callable[[], float] = lambda: 1.0
    ) -> Client:
        """A client that talks to this script, and waits as long as it may."""
        http = httpx2.AsyncClient(transport=self)
        return Client(Endpoint(http, httpx2.URL("http://host/api/chat"), {}, limits), jitter)


async def followed(script: Script, after: Position | None = None, **options: Any) -> list[Received | Gap]:
    """Follow the chat to the end."""
    async with script.client(**options).follow("c", after) as chunks:
        return [item async for item in chunks]


async def take(script: Script) -> None:
    """Send a message and take the answer."""
    await sent(script)


async def sent(script: Script, content: Any = "Hello", **options: Any) -> list[Received | Gap]:
    """Send a message and take the answer to its end."""
    async with script.client(**options).send("c", content) as chunks:
        return [item async for item in chunks]


async def watched(script: Script, count: int, **options: Any) -> list[Any]:
    """Watch the chat for so many events."""
    async with script.client().watch("c", **options) as events:
        return [await anext(events) for _ in range(count)]


def live(first: int = 0, end: int = len(WHOLE), *, epoch: int = 1) -> list[Received | Gap]:
    """What `tail` is to the caller."""
    return [Received(WHOLE[offset], at(offset, epoch)) for offset in range(first, end)]


def replayed(end: int = len(WHOLE), *, epoch: int = 1) -> list[Received | Gap]:
    """What `replay` is to the caller."""
    return [*(Received(chunk, None) for chunk in WHOLE[: end - 1]), *live(end - 1, end, epoch=epoch)]


RESET = httpx2.ReadError("reset")


# Where it goes on


@pytest.mark.parametrize("count", range(1, len(WHOLE)))
@pytest.mark.parametrize("ends", [None, RESET, httpx2.ReadTimeout("silent")])
async def test_a_drop_is_made_good_from_the_last_position(
    count: int, ends: httpx2.TransportError | None, autojump_clock: MockClock
) -> None:
    script = Script(stream(tail(0, count), ends=ends), stream(tail(count), DONE))
    assert await sent(script) == live()
    assert script.asked == ["POST /api/chat", f"GET /api/chat/c/stream?after=t1.1-{count - 1}"]


async def test_an_event_that_was_cut_in_two_is_not_lost(autojump_clock: MockClock) -> None:
    whole = tail(0)
    cut = len(tail(0, 3)) + 20
    script = Script(stream(whole[:cut], ends=RESET), stream(tail(3), DONE))
    assert await sent(script) == live()


async def test_a_drop_before_the_first_chunk_asks_for_the_whole_without_a_gap(
    autojump_clock: MockClock,
) -> None:
    script = Script(stream(ends=RESET), stream(replay(4), tail(4), DONE))
    assert await sent(script) == [*replayed(4), *live(4)]
    assert script.asked[1] == "GET /api/chat/c/stream"


async def test_a_whole_message_in_place_of_a_tail_is_a_gap(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3), ends=RESET), stream(replay(4, epoch=2), tail(4, epoch=2), DONE))
    gap = Gap(RESTARTED, at(2))
    assert await followed(script) == [*live(0, 3), gap, *replayed(4, epoch=2), *live(4, epoch=2)]


async def test_a_replay_that_is_cut_begins_again_with_another_gap(autojump_clock: MockClock) -> None:
    half = chunk_frame(encode(WHOLE[0])) + chunk_frame(encode(WHOLE[1]))
    script = Script(stream(half, ends=RESET), stream(replay(), DONE))
    first: list[Received | Gap] = [Received(WHOLE[0], None), Received(WHOLE[1], None)]
    assert await followed(script) == [*first, Gap(RESTARTED, None), *replayed()]
    assert script.asked == ["GET /api/chat/c/stream"] * 2


async def test_following_from_a_void_position_is_a_gap_at_once(autojump_clock: MockClock) -> None:
    assert await followed(Script(stream(replay(), DONE)), at(40)) == [Gap(RESTARTED, at(40)), *replayed()]


async def test_a_continued_turn_that_is_cut_at_once_is_a_gap(autojump_clock: MockClock) -> None:
    """The caller has its first part, which comes again."""
    script = Script(stream(ends=RESET), stream(replay(), DONE))
    continued = msgspec.structs.replace(user_message(""), id="t1", role="assistant")
    assert await sent(script, [user_message("x"), continued]) == [Gap(RESTARTED, None), *replayed()]


async def test_a_turn_that_goes_on_after_its_suspension_is_no_gap(autojump_clock: MockClock) -> None:
    """Its second part begins with a `start` of its own, at the next position."""
    parts = [*WHOLE, *WHOLE]
    frames = [chunk_frame(encode(chunk), str(at(offset)).encode()) for offset, chunk in enumerate(parts)]
    wanted = [Received(chunk, at(offset)) for offset, chunk in enumerate(parts)]
    script = Script(stream(*frames[5:], DONE))
    assert await followed(script, at(4)) == wanted[5:]
    script = Script(stream(*frames[6:], DONE))
    assert await followed(script, at(5)) == wanted[6:]
    script = Script(stream(*frames[5:9]), stream(*frames[9:], DONE))
    assert await followed(script, at(4)) == wanted[5:]


async def test_a_server_that_goes_on_elsewhere_is_not_believed(autojump_clock: MockClock) -> None:
    for elsewhere in (tail(2), tail(3, epoch=2), replay()[len(chunk_frame(encode(WHOLE[0]))) :]):
        script = Script(stream(tail(0, 3), ends=RESET), stream(elsewhere))
        with pytest.raises(RemoteProtocolError, match="another place"):
            await followed(script)


async def test_another_turns_chunks_are_not_taken_for_the_rest(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3), ends=RESET), stream(replay(), turn="t2"))
    with pytest.raises(StreamLostError, match="another answer"):
        await sent(script)


async def test_iterating_goes_on_after_a_cancelled_wait(autojump_clock: MockClock) -> None:
    hangs = stream(tail(0, 2), lasts_s=1_000)
    script = Script(hangs, stream(tail(2), DONE))
    async with script.client().follow("c") as chunks:
        got = [await anext(chunks), await anext(chunks)]
        with trio.move_on_after(1):
            await anext(chunks)
        got += [item async for item in chunks]
    assert got == live()


async def test_cancelled_anywhere_it_leaves_no_answer_half_read(autojump_clock: MockClock) -> None:
    step = 1
    cancelled = True
    while cancelled:
        pieces = [tail(offset, offset + 1) for offset in range(len(WHOLE))]
        answers = [
            stream(*pieces[:2], ends=RESET),
            Answer(b"Not", b"now.", status=503),
            stream(*pieces[2:], DONE),
        ]

        cancelled = await run_cancelled_at(step, partial(take, Script(*answers)))
        assert not any(answer.being_read for answer in answers), f"cancelled at step {step}"
        step += 1
    assert step > 15


# Where it ends


async def test_nothing_to_follow_ends_at_once(autojump_clock: MockClock) -> None:
    assert await followed(Script(Answer(status=204))) == []


async def test_nothing_after_the_last_position_ends_at_once(autojump_clock: MockClock) -> None:
    """As the server answers for a turn that is over."""
    assert await followed(Script(stream(DONE)), at(5)) == []


@pytest.mark.parametrize("last", [Finish(), Error(error_text="no")])
@pytest.mark.parametrize("ends", [None, RESET])
async def test_a_terminal_chunk_ends_it_whatever_becomes_of_the_connection(
    last: AnyChunk, ends: httpx2.TransportError | None, autojump_clock: MockClock
) -> None:
    script = Script(stream(tail(0, 5), chunk_frame(encode(last), b"t1.1-5"), ends=ends))
    assert (await sent(script))[-1] == Received(last, at(5))
    assert len(script.requests) == 1


async def test_a_body_that_does_not_end_after_the_terminal_chunk_is_left(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    assert await sent(Script(stream(tail(0), lasts_s=1_000))) == live()
    assert trio.current_time() - started <= ClientLimits().trailer_s


@pytest.mark.parametrize("politely", [b"", DONE])
async def test_an_end_without_a_terminal_chunk_and_no_more_to_be_had_is_a_loss(
    politely: bytes, autojump_clock: MockClock
) -> None:
    script = Script(stream(tail(0, 3), politely), Answer(status=204))
    with pytest.raises(StreamLostError, match="does not have the rest"):
        await sent(script)
    script = Script(stream(tail(1, 3), politely), Answer(status=204))
    with pytest.raises(StreamLostError, match="does not have the rest"):
        await followed(script, at(0))


async def test_a_cut_of_a_server_that_is_not_penstock_is_a_loss(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3), turn=None))
    with pytest.raises(StreamLostError, match="The stream was cut"):
        await sent(script)
    assert len(script.requests) == 1


async def test_what_was_read_before_a_loss_is_handed_out(autojump_clock: MockClock) -> None:
    async with Script(stream(tail(0, 3), turn=None)).client().send("c", "x") as chunks:
        got = [await anext(chunks) for _ in range(3)]
        with pytest.raises(StreamLostError):
            await anext(chunks)
        assert [item async for item in chunks] == []
    assert got == live(0, 3)


async def test_what_is_no_chunk_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="not known"):
        await sent(Script(stream(b'data: {"type":"nope"}\n\n')))
    with pytest.raises(RequestError, match="event stream"):
        await sent(Script(Answer(b"<html>", content_type="text/html")))


async def test_a_closed_stream_says_so() -> None:
    chunks = Script(stream(tail(0))).client().send("c", "x")
    async with chunks:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await anext(chunks)


# Refusals


@pytest.mark.parametrize("status", [400, 401, 404, 409, 503])
async def test_a_refusal_is_the_servers_sentence_at_once(status: int) -> None:
    script = Script(Answer(b"Not now.\n", status=status, retry_after="7"))
    for ask in (sent, followed):
        with pytest.raises(RequestRefusedError, match=r"^Not now\.$") as caught:
            await ask(script)
        assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)
    with pytest.raises(RequestRefusedError):
        await watched(script, 1)
    assert len(script.requests) == 3


async def test_a_refusal_without_words_gets_some() -> None:
    with pytest.raises(RequestRefusedError, match="status 500"):
        await sent(Script(Answer(status=500)))


@pytest.mark.parametrize("said", ["soon", "-1", "1.5", ""])
async def test_a_wrong_retry_after_is_none(said: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        await sent(Script(Answer(status=503, retry_after=said)))
    assert caught.value.retry_after_s is None


async def test_a_retry_after_may_be_a_date() -> None:
    with pytest.raises(RequestRefusedError) as caught:
        await sent(Script(Answer(status=503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT")))
    assert caught.value.retry_after_s == 0


async def test_an_endless_refusal_is_read_for_its_beginning_only() -> None:
    answer = Answer(*[b"x" * 1_000] * 100, status=500)
    with pytest.raises(RequestRefusedError) as caught:
        await sent(Script(answer))
    assert len(str(caught.value)) == ClientLimits().refusal_bytes
    assert answer.pieces_read == 3


async def test_nobody_there_is_said_at_once(autojump_clock: MockClock) -> None:
    script = Script(httpx2.ConnectError("refused"))
    with pytest.raises(ServerUnreachableError, match="There is no answer from host"):
        await sent(script)
    assert len(script.requests) == 1


async def test_a_refusal_in_the_middle_is_final_unless_it_will_pass(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3)), Answer(b"Who are you?", status=401))
    with pytest.raises(RequestRefusedError, match="Who are you") as caught:
        await sent(script)
    assert caught.value.status == 401
    script = Script(stream(tail(0, 3)), Answer(status=502), httpx2.ConnectError("x"), stream(tail(3), DONE))
    assert await sent(script) == live()


# How long it waits


async def test_waits_double_up_to_their_cap_and_end(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3)), httpx2.ConnectError("refused"))
    with pytest.raises(StreamLostError, match="There is no answer from host"):
        await sent(script)
    assert script.waits == pytest.approx([0.5, 1, 2, 4, 8, 10, 10, 10])


async def test_waits_are_spread_over_all_of_their_length(autojump_clock: MockClock) -> None:
    seeds = [random.Random(seed) for seed in range(50)]
    waits = []
    for seed in seeds:
        script = Script(stream(tail(0, 3)), stream(tail(3), DONE))
        await sent(script, jitter=seed.random)
        waits += script.waits
    assert all(0 <= wait <= 0.5 for wait in waits)
    assert min(waits) < 0.05
    assert max(waits) > 0.45


async def test_a_server_that_never_gets_on_is_given_up(autojump_clock: MockClock) -> None:
    """It answers each time, and each time without anything new."""
    script = Script(stream(tail(0, 3)), stream())
    with pytest.raises(StreamLostError):
        await followed(script)
    assert len(script.requests) == 1 + ClientLimits().attempts
    script = Script(stream(replay(3)))
    with pytest.raises(StreamLostError):
        await followed(script)
    assert len(script.requests) <= 2 + ClientLimits().attempts


async def test_a_server_that_gets_on_is_never_given_up(autojump_clock: MockClock) -> None:
    limits = ClientLimits(attempts=1)
    script = Script(*[stream(tail(offset, offset + 1)) for offset in range(len(WHOLE))])
    assert await sent(script, limits=limits) == live()
    assert script.waits == pytest.approx([0.5] * 5)


async def test_a_stream_that_lived_long_counts_as_a_new_beginning(autojump_clock: MockClock) -> None:
    """A model that thinks for an hour behind a proxy that cuts each minute."""
    thinking = [stream(lasts_s=60) for _ in range(60)]
    script = Script(stream(tail(0, 1)), *thinking, stream(tail(1), DONE))
    assert await sent(script) == live()


async def test_retry_after_is_waited_in_full(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3)), Answer(status=503, retry_after="30"), stream(tail(3), DONE))
    assert await sent(script) == live()
    assert script.waits == pytest.approx([0.5, 31])


async def test_the_streams_own_retry_is_waited_in_full_each_time(autojump_clock: MockClock) -> None:
    said = b"retry: 3000\n\n"
    script = Script(stream(said, tail(0, 3)), stream(tail(3, 4)), stream(tail(4), DONE))
    assert await sent(script) == live()
    assert script.waits == pytest.approx([3.5, 3.5])


async def test_a_server_that_asks_for_too_long_a_wait_is_given_up(autojump_clock: MockClock) -> None:
    script = Script(stream(tail(0, 3)), Answer(b"Tomorrow.", status=503, retry_after="86400"))
    with pytest.raises(StreamLostError, match="Tomorrow"):
        await sent(script)
    assert len(script.requests) == 2


async def test_backoff_stays_within_its_cap_for_ever(autojump_clock: MockClock) -> None:
    backoff = Backoff(ClientLimits(attempts=1_100), lambda: 1.0)
    for _ in range(1_100):
        before = trio.current_time()
        assert await backoff.wait()
        assert trio.current_time() - before <= 10.001
    assert not await backoff.wait()


# A message that may not have arrived


def chat(*ids: str) -> Answer:
    """A chat's state with these messages of the user."""
    messages = [msgspec.to_builtins(user_message("x", id=id)) for id in ids]
    return Answer(encode_json({"id": "c", "turn": None, "messages": messages}))


async def test_a_message_without_any_answer_is_sent_again_under_the_same_id(
    autojump_clock: MockClock,
) -> None:
    script = Script(RESET, Answer(status=404), httpx2.ConnectError("x"), chat("other"), stream(tail(0), DONE))
    assert await sent(script) == live()
    posts = [request for request in script.requests if request.method == "POST"]
    assert len(posts) == 3
    assert len({post.content for post in posts}) == 1


class Posted(Script):
    """Answers a question for the chat's state with the id of the message that was posted, among others."""

    def __init__(self, ids: Callable[[str], Sequence[str]], *answers: Answer | httpx2.TransportError) -> None:
        super().__init__(*answers)
        self._ids = ids

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/chat/c":
            self._answers.insert(
                0, chat(*self._ids(msgspec.json.decode(self.requests[0].content)["message"]["id"]))
            )
        return await super().handle_async_request(request)


async def test_a_message_that_has_arrived_is_not_sent_again(autojump_clock: MockClock) -> None:
    """Its turn may be over by now; a second POST would begin another."""
    script = Posted(lambda id: ["earlier", id], RESET, stream(replay(), DONE))
    assert await sent(script) == replayed()
    assert script.asked == ["POST /api/chat", "GET /api/chat/c", "GET /api/chat/c/stream"]


async def test_a_message_that_arrived_and_whose_answer_is_gone_is_lost(autojump_clock: MockClock) -> None:
    with pytest.raises(StreamLostError, match="does not have the rest"):
        await sent(Posted(lambda id: [id], RESET, Answer(status=204)))


async def test_a_message_that_others_have_followed_is_lost_rather_than_edited(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(StreamLostError, match="another message"):
        await sent(Posted(lambda id: [id, "later"], RESET, stream(replay(), DONE)))


async def test_an_answer_that_began_is_never_posted_for_again(autojump_clock: MockClock) -> None:
    script = Script(stream(ends=RESET), RESET, stream(replay(), DONE))
    assert await sent(script) == replayed()
    assert [request.method for request in script.requests] == ["POST", "GET", "GET"]


async def test_a_history_replaces_the_servers_and_a_body_adds_to_the_request(
    autojump_clock: MockClock,
) -> None:
    script = Script(stream(tail(0), DONE))
    message = user_message("x")
    async with script.client().send("c", [message], body={"model": "m", "trigger": "regenerate-message"}):
        pass
    assert msgspec.json.decode(script.requests[0].content) == {
        "id": "c",
        "messages": [msgspec.to_builtins(message)],
        "trigger": "regenerate-message",
        "model": "m",
    }
    assert script.requests[0].headers["x-penstock-sdk"] == "7"


# Watching


def json_event(name: str, value: object, id: str = "") -> bytes:
    """A frame of the watch stream."""
    return event(encode_json(value), event=name, id=id)


STATE: dict[str, Any] = {"id": "c", "turn": None, "messages": []}
HELLO = user_message("Hello", id="u1")


async def test_every_event_of_a_watch_is_told(autojump_clock: MockClock) -> None:
    script = Script(
        Answer(
            comment("ok"),
            json_event("snapshot", STATE, "t1.1-2"),
            event(encode(WHOLE[3]), event="chunk", id="t1.1-3"),
            json_event("message", HELLO),
            json_event("gap", {"reason": "trimmed"}),
            event("[]", event="news"),
            json_event("closing", {"reason": "finished", "reconnect": False, "retryMs": 0}),
            content_type="text/event-stream",
        )
    )
    async with script.client().watch("c", types=["text-delta", "message"], lane="worker:7") as events:
        assert [item async for item in events] == [
            Snapshot(STATE, at(2)),
            Received(WHOLE[3], at(3)),
            Message(HELLO, at(3)),
            Gap("trimmed", at(3)),
            Other("news", "[]"),
            Closing("finished", False, 0.0),
        ]
    assert script.asked == ["GET /api/chat/c/watch?types=text-delta%2Cmessage&lane=worker%3A7"]


async def test_a_watch_goes_on_with_the_last_event_id(autojump_clock: MockClock) -> None:
    first = stream(
        json_event("snapshot", STATE, "t1.1-0"), event(encode(WHOLE[1]), event="chunk", id="t1.1-1")
    )
    second = stream(event(encode(WHOLE[2]), event="chunk", id="t1.1-2"))
    script = Script(first, stream(), second)
    assert await watched(script, 3) == [Snapshot(STATE, at(0)), *live(1, 3)]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "t1.1-1", "t1.1-1"]


async def test_a_watch_that_gets_on_is_never_given_up(autojump_clock: MockClock) -> None:
    frames = [event(encode(chunk), event="chunk", id=str(at(offset))) for offset, chunk in enumerate(WHOLE)]
    script = Script(*map(stream, frames), stream())
    async with script.client(ClientLimits(attempts=1)).watch("c") as events:
        assert [await anext(events) for _ in WHOLE] == live()
        with pytest.raises(StreamLostError):
            await anext(events)


async def test_a_watch_can_begin_after_a_position(autojump_clock: MockClock) -> None:
    script = Script(stream(event(encode(WHOLE[2]), event="chunk", id="t1.1-2")))
    await watched(script, 1, after=at(1))
    assert script.requests[0].headers["last-event-id"] == "t1.1-1"


async def test_a_closing_server_says_when_to_come_back(autojump_clock: MockClock) -> None:
    closing = {"reason": "drain", "reconnect": True, "retryMs": 2_000}
    script = Script(stream(json_event("closing", closing)), stream(), stream(json_event("snapshot", STATE)))
    assert await watched(script, 2) == [Closing("drain", True, 2.0), Snapshot(STATE, None)]
    assert script.waits == pytest.approx([2.5, 1])


async def test_a_watch_is_told_to_stay_away_by_204(autojump_clock: MockClock) -> None:
    script = Script(stream(json_event("snapshot", STATE)), Answer(status=204))
    async with script.client().watch("c") as events:
        assert [item async for item in events] == [Snapshot(STATE, None)]


@pytest.mark.parametrize(
    "frame", [b"event: chunk\ndata: {}\n\n", b"event: snapshot\ndata: []\n\n", b"event: message\ndata: x\n\n"]
)
async def test_what_is_no_watch_event_is_an_error(frame: bytes, autojump_clock: MockClock) -> None:
    with pytest.raises(RemoteProtocolError):
        await watched(Script(stream(frame)), 1)


# Other requests


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "x" * 129])
async def test_an_id_that_cannot_be_one_is_not_asked_for(id: str) -> None:
    client = Script(Answer(status=404)).client()
    with pytest.raises(LocalProtocolError):
        client.send(id, "x")
    with pytest.raises(LocalProtocolError):
        client.follow(id)
    with pytest.raises(LocalProtocolError):
        client.watch(id)
    with pytest.raises(LocalProtocolError):
        await client.state(id)


async def test_other_ids_cannot_leave_their_place_in_the_path() -> None:
    script = Script(Answer(b"{}"))
    client = script.client()
    with pytest.raises(LocalProtocolError):
        await client.turn("c", "..")
    await client.turn("c", "../a?b")
    await client.approve("c", "x/y", True, "fine")
    assert script.asked == ["GET /api/chat/c/turns/..%2Fa%3Fb", "POST /api/chat/c/approvals/x%2Fy"]
    assert msgspec.json.decode(script.requests[1].content) == {"approved": True, "reason": "fine"}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(b"[]"), RemoteProtocolError),
        (Answer(b"{"), RemoteProtocolError),
        (Answer(b"{", ends=RESET), ServerUnreachableError),
        (httpx2.ConnectTimeout("x"), ServerUnreachableError),
        (Answer(b"No.", status=500), RequestRefusedError),
    ],
)
async def test_an_answer_that_is_not_one_is_an_error(
    answer: Answer | httpx2.TransportError, error: type[Exception]
) -> None:
    client = Script(answer).client()
    with pytest.raises(error):
        await client.state("c")
    with pytest.raises(error):
        await client.stop("c")


async def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    limits = ClientLimits(answer_bytes=1_000)
    answer = Answer(*[b" " * 500] * 10)
    with pytest.raises(RemoteProtocolError, match="too long"):
        await Script(answer).client(limits).state("c")
    assert answer.pieces_read == 3


async def test_a_query_of_the_endpoint_is_kept() -> None:
    script = Script(stream(tail(3), DONE))
    endpoint = Endpoint(
        httpx2.AsyncClient(transport=script), httpx2.URL("http://host/chat/?sdk=7"), {}, ClientLimits()
    )
    async with Client(endpoint, random.random).follow("c", at(2)):
        pass
    assert script.asked == ["GET /chat/c/stream?sdk=7&after=t1.1-2"]


async def test_a_large_replayed_delta_is_taken() -> None:
    """Larger than anything that a stranger may send: a book in one delta."""
    chunks: Sequence[AnyChunk] = [WHOLE[0], WHOLE[1], TextDelta(id="a", delta="x" * (3 << 20)), *WHOLE[4:]]
    body = b"".join(b"data: " + encode_json(chunk) + b"\n\n" for chunk in chunks)
    assert await followed(Script(stream(body, DONE))) == [Received(chunk, None) for chunk in chunks]

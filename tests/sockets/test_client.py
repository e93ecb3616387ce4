"""`penstock.client` against the real server, over connections that break: of HTTP, and a WebSocket's."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from proxy import Fault, Proxy, open_proxy
from raw import wait_for

from penstock import AnswerError, Position, Turn, chat_app, open_client
from penstock.cli.send import resume
from penstock.cli.watch import watch
from penstock.client import Client, Closing, Gap, Message, Other, Received, Snapshot
from penstock.client.client import Transport
from penstock.errors import RequestRefusedError, ServerUnreachableError, StreamLostError
from penstock.limits import ClientLimits, ConnectionLimits, HubLimits, Limits
from penstock.testing import open_server, user_message
from penstock.wire.assembly import assemble
from penstock.wire.chunks import Abort, AnyChunk, Error, Finish, Start, TextDelta, ToolApprovalRequest

Answer = Callable[[Turn], Awaitable[None]]

both = pytest.mark.parametrize("transport", ["sse", "websocket"])

QUICK = ClientLimits(first_backoff_s=0.002, backoff_max_s=0.004, silence_s=5)


class Chat:
    """A server, a client of it through a proxy, and one that goes there straight."""

    def __init__(self, url: str, proxy: Proxy, client: Client, straight: Client) -> None:
        self.url = url
        self.proxy = proxy
        self.client = client
        self.straight = straight

    async def send(self, chat_id: str = "c") -> list[AnyChunk]:
        """Send a message through the proxy; the answer must have no gap, and each entry once.

        Where its first connection brought no chunk, it begins with few large ones, of which the last has a position.
        """
        received: list[Received] = []
        async with self.client.send(chat_id, "Hello") as stream:
            async for event in stream:
                assert isinstance(event, Received)
                received.append(event)
        offsets = [event.position.offset for event in received if event.position is not None]
        assert offsets == list(range(offsets[0], offsets[-1] + 1))
        assert offsets[0] == 0 or received[0].position is None
        return [event.chunk for event in received]


@asynccontextmanager
async def chatting(
    answer: Answer,
    *faults: Fault | None,
    limits: ClientLimits = QUICK,
    server: Limits = Limits(),
    transport: Transport = "sse",
) -> AsyncIterator[Chat]:
    """Serve a producer behind a proxy."""
    async with (
        open_server(chat_app(answer, limits=server)) as url,
        open_proxy(url, *faults) as proxy,
        open_client(f"{proxy.url}/api/chat", transport=transport, limits=limits) as client,
        open_client(f"{url}/api/chat", limits=limits) as straight,
    ):
        yield Chat(url, proxy, client, straight)


class Mixed:
    """A producer of some of everything, that counts how often it was asked."""

    def __init__(self, pace_s: float | None = None) -> None:
        self.pace_s = pace_s
        self.runs = 0

    async def __call__(self, turn: Turn) -> None:
        self.runs += 1
        async with turn.step():
            async with turn.reasoning() as thought:
                await thought.write("Hm.")
                await self._pause()
                await thought.write(" Well.")
            async with turn.tool_call("look", {"at": "é"}, id="call-1") as call:
                await self._pause()
                await call.output({"n": 1}, preliminary=True)
                await call.output({"n": 2})
        async with turn.step():
            async with turn.text() as text:
                await text.write("One, ")
                await self._pause()
                await text.write("two\n\ndata: three.")
            await turn.data("card", {"id": 7}, id="x")
            await turn.source("https://example.org")

    async def _pause(self) -> None:
        if self.pace_s is not None:
            await trio.sleep(self.pace_s)


EVENTS = 19


def without_id(chunks: list[AnyChunk]) -> list[AnyChunk]:
    """Chunks but for what differs from turn to turn."""
    assert isinstance(chunks[0], Start)
    return [Start(), *chunks[1:]]


@both
async def test_the_mixed_message_has_as_many_events_as_the_tests_below_cut(transport: Transport) -> None:
    async with chatting(Mixed(), transport=transport) as chat:
        assert len(await chat.send()) == EVENTS


@pytest.mark.parametrize("do", ["reset", "close"])
@pytest.mark.parametrize("pace_s", [None, 0.002])
@both
async def test_a_cut_after_any_event_changes_nothing(
    do: Any, pace_s: float | None, transport: Transport
) -> None:
    """Whether the turn is over by then or still runs."""
    mixed = Mixed(pace_s)
    async with chatting(mixed, transport=transport) as chat:
        uncut = without_id(await chat.send("uncut"))
        for count in range(EVENTS + 1):
            chat.proxy.faults = [Fault(do, after_events=count), None]
            # The connection of the last answer is kept, and would not get the fault.
            async with open_client(
                f"{chat.proxy.url}/api/chat", limits=QUICK, transport=transport
            ) as chat.client:
                before = chat.proxy.connections
                chunks = await chat.send(f"c{count}")
            assert without_id(chunks) == uncut or count == 0
            assert chat.proxy.connections - before == (1 if count == EVENTS else 2)
            state = await chat.straight.state(f"c{count}")
            assert state is not None
            assert assemble(chunks, "") == state["messages"][1]
    assert mixed.runs == 1 + EVENTS + 1


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@both
async def test_a_cut_after_every_few_events_changes_nothing(every: int, transport: Transport) -> None:
    """Every connection is cut."""
    async with chatting(
        Mixed(), Fault("reset", after_events=every), limits=QUICK, transport=transport
    ) as chat:
        chunks = await chat.send()
        state = await chat.straight.state("c")
        assert state is not None
        assert assemble(chunks, "") == state["messages"][1]
        assert chat.proxy.connections >= EVENTS // every


@pytest.mark.parametrize("do", ["reset", "close"])
@both
async def test_a_cut_at_any_byte_of_the_first_answer_runs_the_producer_once(
    do: Any, transport: Transport
) -> None:
    """Before the head, within it, within an event: of those before the head nobody told the client anything."""
    mixed = Mixed()
    async with chatting(mixed, transport=transport) as chat:
        for turns, count in enumerate(range(0, 900, 29)):
            chat.proxy.faults = [Fault(do, after_bytes=count), None]
            received: list[AnyChunk] = []
            async with (
                open_client(f"{chat.proxy.url}/api/chat", limits=QUICK, transport=transport) as client,
                client.send(f"c{count}", "Hello") as stream,
            ):
                async for event in stream:
                    assert isinstance(event, Received)
                    received.append(event.chunk)
            state = await chat.straight.state(f"c{count}")
            assert state is not None
            assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
            assert assemble(received, "") == state["messages"][1]
            assert mixed.runs == turns + 1


@both
async def test_a_head_that_never_comes_is_silence_and_the_turn_is_joined(transport: Transport) -> None:
    """The answer is swallowed; the turn runs, and is found by its message."""
    mixed = Mixed()
    limits = ClientLimits(first_backoff_s=0.002, silence_s=0.1)
    async with chatting(
        mixed, Fault("stall", after_bytes=0), None, limits=limits, transport=transport
    ) as chat:
        async with chat.client.send("c", "Hello") as stream:
            chunks = [event.chunk async for event in stream if isinstance(event, Received)]
        state = await chat.straight.state("c")
    assert state is not None
    assert assemble(chunks, "") == state["messages"][1]
    assert mixed.runs == 1


@both
async def test_silence_is_a_drop_and_a_keepalive_is_none(transport: Transport) -> None:
    """The proxy passes nothing on, not even comments; the straight client hears those."""
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("One, ")
            await go_on.wait()
            await text.write("two.")

    limits = ClientLimits(first_backoff_s=0.002, silence_s=0.6)  # two looks of the keepalive timer
    server = Limits(connection=ConnectionLimits(keepalive_s=0.05))
    async with (
        chatting(
            answer, Fault("stall", after_events=3), None, limits=limits, server=server, transport=transport
        ) as chat,
        trio.open_nursery() as nursery,
    ):
        texts: list[str] = []

        async def take() -> None:
            async with chat.client.send("c", "Hello") as stream:
                async for event in stream:
                    assert isinstance(event, Received)
                    if isinstance(event.chunk, TextDelta):
                        texts.append(event.chunk.delta)

        nursery.start_soon(take)
        await wait_for(lambda: chat.proxy.connections == 2)
        await trio.sleep(1)
        assert chat.proxy.connections == 2, "a stream with keepalives was taken for silent"
        go_on.set()
    assert texts == ["One, ", "two."]


@both
async def test_silence_that_does_not_end_is_given_up(transport: Transport) -> None:
    """With a sentence, after all attempts."""
    limits = ClientLimits(first_backoff_s=0.002, silence_s=0.03, attempts=3)
    swallow = Fault("stall", after_bytes=0)
    async with chatting(
        Mixed(), Fault("stall", after_events=2), swallow, limits=limits, transport=transport
    ) as chat:
        async with chat.client.send("c", "Hello") as stream:
            for _ in range(2):
                await anext(stream)
            with pytest.raises(StreamLostError, match=r"sent nothing for 0\.03 seconds"):
                await anext(stream)
        assert chat.proxy.connections == 1 + limits.attempts


@both
async def test_a_follower_gets_the_whole_message_late_and_nothing_of_nobody(transport: Transport) -> None:
    async with chatting(Mixed(), transport=transport) as chat:
        sent = await chat.send()
        async with chat.client.follow("c") as stream:
            replayed = [event async for event in stream]
            last = stream.position
        assert assemble([event.chunk for event in replayed if isinstance(event, Received)], "") == assemble(
            sent, ""
        )
        assert last is not None
        assert last.offset == EVENTS - 1
        async with chat.client.follow("c", last) as stream:
            assert [event async for event in stream] == []
        async with chat.client.follow("nobody") as stream:
            assert [event async for event in stream] == []


@both
async def test_a_position_beyond_the_turns_end_is_a_gap_and_the_whole(transport: Transport) -> None:
    async with chatting(Mixed(), transport=transport) as chat:
        sent = await chat.send()
        assert isinstance(sent[0], Start)
        void = Position(str(sent[0].message_id), 1, 999)
        async with chat.client.follow("c", void) as stream:
            first, *rest = [event async for event in stream]
        assert first == Gap(first.reason, void) if isinstance(first, Gap) else False
        assert assemble([event.chunk for event in rest if isinstance(event, Received)], "") == assemble(
            sent, ""
        )


@both
async def test_a_turn_can_be_stopped(transport: Transport) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("One")
            await trio.sleep_forever()

    async with chatting(answer, transport=transport) as chat, chat.client.send("c", "Hello") as stream:
        got: list[Received | Gap] = []
        async for event in stream:
            got.append(event)
            if isinstance(event, Received) and isinstance(event.chunk, TextDelta):
                assert await chat.client.stop("c", "enough") == "stopped"
        *_, abort, finish = [event.chunk for event in got if isinstance(event, Received)]
        assert isinstance(abort, Abort)
        assert "enough" in str(abort.reason)
        assert isinstance(finish, Finish)
        assert await chat.straight.stop("c") == "stopped"
        turn = await chat.client.turn("c", str(stream.turn_id))
        assert turn is not None
        assert turn == await chat.straight.turn("c", str(stream.turn_id))
        assert turn["state"] == "stopped"
        assert turn["message"]["parts"][0]["text"] == "One"
        with pytest.raises(RequestRefusedError, match="no such chat") as caught:
            await chat.client.stop("nobody")
        assert caught.value.status == 404
        assert await chat.client.state("nobody") is None
        assert await chat.client.turn("c", "nobody") is None


@both
async def test_a_tool_call_can_be_approved(transport: Transport) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.tool_call("delete", {}) as call:
            decision = await call.approval(holder="turn", wait_s=5)
            await call.output(decision.approved)

    async with chatting(answer, transport=transport) as chat, chat.client.send("c", "Hello") as stream:
        output: Any = None
        async for event in stream:
            assert isinstance(event, Received)
            if isinstance(event.chunk, ToolApprovalRequest):
                await chat.client.approve("c", event.chunk.approval_id, True, "go on")
                with pytest.raises(RequestRefusedError) as caught:
                    await chat.client.approve("c", event.chunk.approval_id, False)
                assert caught.value.status in {404, 409}
            output = getattr(event.chunk, "output", output)
    assert output is True


@both
async def test_refusals_are_the_servers_sentences(transport: Transport) -> None:
    """Of another message meanwhile, and of a server that is full."""

    async def answer(turn: Turn) -> None:
        await trio.sleep_forever()

    limits = Limits(hub=HubLimits(running_turns=1))
    async with chatting(answer, server=limits, transport=transport) as chat, chat.client.send("c", "one"):
        with pytest.raises(RequestRefusedError, match=r"^Another message of this chat") as caught:
            async with chat.client.send("c", "two"):
                pass
        assert caught.value.status == 409
        with pytest.raises(RequestRefusedError, match=r"^Too many answers") as caught:
            async with chat.client.send("d", "two"):
                pass
        assert caught.value.status == 503
        assert caught.value.retry_after_s == 5.0


@both
async def test_nobody_there_is_said_at_once(transport: Transport) -> None:
    async with open_client("http://127.0.0.1:1/api/chat", transport=transport) as client:
        with pytest.raises(ServerUnreachableError, match=r"There is no answer from 127\.0\.0\.1:1\."):
            async with client.follow("c"):
                pass
        with pytest.raises(ServerUnreachableError):
            await client.state("c")


@pytest.mark.parametrize("where", ["request", "read", "backoff", "unread"])
@both
async def test_cancellation_closes_the_connection_at_once(where: str, transport: Transport) -> None:
    """While it waits for the head, for an event or for the next attempt, or with events that nobody took."""

    async def answer(turn: Turn) -> None:
        await turn.data("x", 1)
        await trio.sleep_forever()

    faults: dict[str, list[Fault | None]] = {
        "request": [Fault("stall", after_bytes=0)],
        "backoff": [Fault("reset", after_events=2), Fault("reset", after_bytes=0)],
    }
    limits = ClientLimits(first_backoff_s=1_000, backoff_max_s=1_000)
    async with chatting(answer, *faults.get(where, [None])) as chat:
        started = trio.current_time()
        with trio.move_on_after(0.1):
            async with (
                open_client(f"{chat.proxy.url}/api/chat", limits=limits, transport=transport) as client,
                client.send("c", "Hello") as stream,
            ):
                async for _ in stream:
                    if where == "unread":
                        await trio.sleep_forever()
        assert trio.current_time() - started < 0.3
        await wait_for(lambda: chat.proxy.open == 0)


async def test_leaving_in_the_middle_leaves_no_connection() -> None:
    async with chatting(Mixed(0.001)) as chat:
        async with chat.client.send("c", "Hello") as stream:
            async for _ in stream:
                break
        await wait_for(lambda: chat.proxy.open == 0)


@both
async def test_answers_that_were_taken_whole_share_a_connection(transport: Transport) -> None:
    async with chatting(Mixed(), transport=transport) as chat:
        for number in range(5):
            await chat.send(f"c{number}")
            await chat.client.state(f"c{number}")
        assert chat.proxy.connections == 1


# Watching


@both
async def test_a_watch_tells_of_turns_that_others_begin(transport: Transport) -> None:
    async with chatting(Mixed(), transport=transport) as chat, chat.client.watch("c") as events:
        assert isinstance(await anext(events), Snapshot)
        sent = await chat.send()
        question = await anext(events)
        assert isinstance(question, Message)
        assert question.message.text == "Hello"
        chunks: list[AnyChunk] = []
        while isinstance(event := await anext(events), Received):
            chunks.append(event.chunk)
        assert chunks == sent
        assert isinstance(event, Message)
        assert msgspec.to_builtins(event.message) == assemble(sent, "")


@pytest.mark.parametrize("every", [1, 2, 5])
@both
async def test_a_watch_that_is_cut_all_the_time_misses_and_repeats_nothing(
    every: int, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penstock.web.streams.retry_s", lambda: 0.001
    )  # each wait is as long as the server asks for
    # The first connection lasts until the turn has begun: before that there is no position.
    faults = Fault("reset", after_events=3), Fault("reset", after_events=every)
    async with chatting(Mixed(0.001), *faults, transport=transport) as chat:
        async with (
            open_client(f"{chat.proxy.url}/api/chat", limits=QUICK, transport=transport) as cut,
            trio.open_nursery() as nursery,
        ):
            sent: list[AnyChunk] = []

            async def send() -> None:
                async with chat.straight.send("c", "Hello") as stream:
                    async for event in stream:
                        assert isinstance(event, Received)
                        sent.append(event.chunk)

            chunks: list[AnyChunk] = []
            async with cut.watch("c") as events:
                await anext(events)
                nursery.start_soon(send)
                async for event in events:
                    if isinstance(event, Received):
                        chunks.append(event.chunk)
                    if isinstance(event, Gap | Snapshot):
                        raise AssertionError(event)
                    if isinstance(event, Received) and isinstance(event.chunk, Finish | Error):
                        break
        assert chunks == sent
        assert chat.proxy.connections >= EVENTS // every


@both
async def test_a_watch_takes_only_what_it_asks_for(transport: Transport) -> None:
    async with (
        chatting(Mixed(), transport=transport) as chat,
        chat.client.watch("c", types=["text-delta", "nonsense"]) as events,
    ):
        assert await anext(events) == Other("notice", '{"ignored":["nonsense"]}')
        await chat.send()
        kinds = [await anext(events), await anext(events)]
        assert [event.chunk.kind for event in kinds if isinstance(event, Received)] == ["text-delta"] * 2


@both
async def test_a_server_that_goes_away_says_closing(transport: Transport) -> None:
    draining = trio.Event()
    told: list[Any] = []

    async def look(client: Client) -> None:
        async with client.watch("c") as events:
            async for event in events:
                told.append(event)
                draining.set()
                if isinstance(event, Closing):
                    return

    async with trio.open_nursery() as nursery:
        async with open_server(chat_app(Mixed())) as url:

            async def run() -> None:
                async with open_client(f"{url}/api/chat", limits=QUICK, transport=transport) as client:
                    await look(client)

            nursery.start_soon(run)
            await draining.wait()
    assert isinstance(told[-1], Closing)
    assert told[-1].reconnect


# The commands


async def printed(
    command: Callable[..., Awaitable[int]], *arguments: str, **options: Any
) -> tuple[int, str, str]:
    """Run a command and keep what it prints."""
    out, err = io.StringIO(), io.StringIO()
    status = await command(*arguments, stdout=out, stderr=err, **options)
    return status, out.getvalue(), err.getvalue()


async def test_an_answer_can_be_resumed_on_the_terminal() -> None:
    async with chatting(Mixed()) as chat:
        await chat.send()
        status, out, _ = await printed(resume, chat.url, "c")
        assert (status, out) == (0, "One, two\n\ndata: three.\n")
        status, out, _ = await printed(resume, chat.url, "c", raw=True)
        lines = out.splitlines()
        assert (status, lines[-1]) == (0, "[DONE]")
        assert msgspec.json.decode(lines[0])["type"] == "start"
        assert await printed(resume, chat.url, "nobody") == (1, "", "There is no answer to go on with.\n")


class Watcher(io.StringIO):
    """A stdout that cancels its reader when it has seen enough."""

    def __init__(self, enough: str, scope: trio.CancelScope) -> None:
        super().__init__()
        self._enough = enough
        self._scope = scope

    def flush(self) -> None:
        """See whether it is enough."""
        if self._enough in self.getvalue():
            self._scope.cancel("it was seen")


@pytest.mark.parametrize("raw", [False, True])
async def test_a_chat_can_be_watched_on_the_terminal(raw: bool) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half ")
            half.set()
            await go_on.wait()
            await text.write("whole.")
        await turn.source("https://example.org")

    half, go_on = trio.Event(), trio.Event()
    async with chatting(answer) as chat, trio.open_nursery() as nursery:
        nursery.start_soon(chat.send)
        await half.wait()
        out, err = Watcher('"message"' if raw else "whole.\n", nursery.cancel_scope), io.StringIO()
        nursery.start_soon(lambda: watch(chat.url, "c", raw=raw, stdout=out, stderr=err))
        await wait_for(lambda: out.getvalue() != "")
        go_on.set()
    if raw:
        lines = [msgspec.json.decode(line) for line in out.getvalue().splitlines()]
        assert [line["event"] for line in lines] == ["snapshot", *["chunk"] * (len(lines) - 2), "message"]
        assert all(set(line) == {"event", "id", "data"} for line in lines)
    else:
        assert out.getvalue() == "Half whole.\n"
        assert err.getvalue().splitlines()[0] == "[chat] running"


async def test_what_a_watch_prints_of_other_events() -> None:
    """Messages of others, a failed answer; and the exit is no failure of the watching."""

    async def answer(turn: Turn) -> None:
        await turn.data("x", 1)
        raise AnswerError("No.")

    async with chatting(answer) as chat, trio.open_nursery() as nursery:
        out, err = io.StringIO(), Watcher("[failed]", nursery.cancel_scope)
        nursery.start_soon(lambda: watch(chat.url, "c", stdout=out, stderr=err))
        await wait_for(lambda: "[chat]" in err.getvalue())
        async with chat.straight.send("c", "Hello") as stream:
            async for _ in stream:
                pass
        await wait_for(lambda: "[failed]" in err.getvalue())
    assert err.getvalue().splitlines() == ["[chat] no turn yet", "[user] Hello", "[data-x] 1", "[failed] No."]


async def test_a_watch_of_nobodys_chat_is_a_sentence() -> None:
    async with chatting(Mixed()) as chat:
        status, out, err = await printed(watch, chat.url, "no good")
        assert (status, out) == (1, "")
        assert err.startswith("A chat id must be")


@both
async def test_one_message_is_sent_as_a_history(transport: Transport) -> None:
    async with (
        chatting(Mixed(), transport=transport) as chat,
        chat.client.send("c", [user_message("x", id="u1")]) as stream,
    ):
        async for _ in stream:
            pass
        state = await chat.client.state("c")
        assert state is not None
        assert state["messages"][0]["id"] == "u1"

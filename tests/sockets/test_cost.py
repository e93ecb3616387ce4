"""What a viewer and a short turn cost, in tasks and in passes of the scheduler: numbers that no busy machine changes."""

from __future__ import annotations

import gc

import lanes
import msgspec
import pytest
import raw
import trio
import trio.testing
from test_chat import request_of

from penstock import Turn, chat_app
from penstock.server.direct import DirectStream
from penstock.testing import user_message

WATCH = b"GET /api/chat/c%d/watch HTTP/1.1\r\nhost: test\r\n\r\n"


KEPT = {"Peer", "Http1", "Inbox", "DirectStream", "Connection", "AsgiTransport", "Subscription", "OnClose"}


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks but the test's own."""

    def __init__(self) -> None:
        self.own = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self.own


async def silent(turn: Turn) -> None:
    """Says one word and waits."""
    async with turn.text() as text:
        await text.write("x")
        await trio.sleep_forever()


async def test_an_idle_viewer_is_two_tasks() -> None:
    """The socket's reader and the app: no timer, no writer, no watcher."""
    async with raw.open_server(chat_app(silent), lifespan=True) as server:
        # The chat's turn, and what the first connection brings with it.
        client = await server.connect(request_of())
        await client.read_until(b"text-delta")
        for path in (WATCH % 0, b"GET /api/chat/raw/stream HTTP/1.1\r\nhost: test\r\n\r\n"):
            first = await server.connect(path)
            await first.read_until(b"\n\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            before = trio.lowlevel.current_statistics().tasks_living
            for _ in range(50):
                viewer = await server.connect(path)
                await viewer.read_until(b"\n\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert trio.lowlevel.current_statistics().tasks_living - before == 50 * 2
        for viewer in server.clients[1:]:
            viewer.close()
        with trio.fail_after(5):
            while trio.lowlevel.current_statistics().tasks_living > before - 2 * 2:
                await trio.sleep(0.01)


async def test_an_idle_viewer_costs_no_steps(mock_clock: trio.testing.MockClock) -> None:
    """Between two keepalives nothing runs for it; a keepalive is the shared timer's one step for all."""
    async with raw.open_server(chat_app(silent), lifespan=True) as server:
        for _ in range(50):
            viewer = await server.connect(WATCH % 0)
            await viewer.read_until(b"snapshot")
        await trio.testing.wait_all_tasks_blocked(0.01)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        mock_clock.jump(14)
        await trio.testing.wait_all_tasks_blocked(0.01)
        quiet = steps.count
        mock_clock.jump(2)
        for viewer in server.clients:
            await viewer.read_until(b": keepalive\n\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        trio.lowlevel.remove_instrument(steps)
        assert quiet < 20
        assert steps.count - quiet < 20


async def test_a_short_turn_is_few_steps() -> None:
    """Ten chunks over HTTP, from the request's first byte to the response's last."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(10):
                await text.write("word ")

    async with raw.open_server(chat_app(answer), lifespan=True) as server:
        client = await server.connect()
        costs: list[int] = []
        for number in range(10):
            body = msgspec.json.encode(
                {"id": f"c{number}", "messages": [msgspec.to_builtins(user_message("x"))]}
            )
            head = "POST /api/chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
            await trio.testing.wait_all_tasks_blocked(0.03)  # the flush of the turn before is over, too
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            await client.send(request)
            _, _, answered = await client.read_response()
            trio.lowlevel.remove_instrument(steps)
            costs.append(steps.count)
            assert answered.count(b"text-delta") == 10
    assert min(costs) <= 20, costs


async def test_a_chunk_for_many_viewers_is_no_step_of_theirs() -> None:
    """One pass writes to all of them, once they are settled."""
    say = trio.Event()

    async def answer(turn: Turn) -> None:
        nonlocal say
        async with turn.text() as text:
            for word in ("first", "second", "third"):
                await text.write(word)
                await say.wait()
                say = trio.Event()

    async with raw.open_server(chat_app(answer), lifespan=True) as server:
        client = await server.connect(request_of())
        await client.read_until(b"first")
        for _ in range(60):
            viewer = await server.connect(b"GET /api/chat/raw/watch HTTP/1.1\r\nhost: test\r\n\r\n")
            await viewer.read_until(b"snapshot")
        say.set()
        for viewer in server.clients:
            await viewer.read_until(b"second")
        await trio.testing.wait_all_tasks_blocked(0.03)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        say.set()
        for viewer in server.clients:
            await viewer.read_until(b"third")
        trio.lowlevel.remove_instrument(steps)
    assert steps.count < 20


@pytest.mark.parametrize("lane", lanes.LANES)
async def test_the_lanes_are_what_they_are_called(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the suites that run on both would run twice on one."""
    written: list[bytes] = []
    write = DirectStream.write

    def spy(self: DirectStream, data: bytes) -> bool:
        written.append(data)
        return write(self, data)

    monkeypatch.setattr(DirectStream, "write", spy)

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(3):
                await text.write("x")
                await trio.sleep(0.002)

    app = chat_app(answer) if lane == "fast lane" else lanes.fallback(chat_app(answer))
    async with raw.open_server(app, lifespan=True) as server:
        client = await server.connect(request_of())
        assert (await client.read_response())[2].count(b"text-delta") == 3
    assert bool(written) is (lane == "fast lane")
    assert len(written) >= (2 if written else 0)


async def test_connections_that_are_over_leave_nothing_behind() -> None:
    """Neither in the server, nor in the timer, nor in the turn that goes on."""
    async with raw.open_server(chat_app(silent), lifespan=True) as server:
        client = await server.connect(request_of())
        await client.read_until(b"text-delta")
        counts: list[int] = []
        for _ in range(3):
            viewers = []
            for _ in range(30):
                viewers.append(
                    await server.connect(b"GET /api/chat/raw/watch HTTP/1.1\r\nhost: test\r\n\r\n")
                )
                await viewers[-1].read_until(b"snapshot")
            for viewer in viewers:
                viewer.reset()
            await raw.wait_for(lambda: server.metrics.get("server_connections") == 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gc.collect()
            counts.append(sum(type(thing).__name__ in KEPT for thing in gc.get_objects()))
        assert counts == [counts[0]] * 3
        assert counts[0] < 20

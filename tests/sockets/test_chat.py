"""The HTTP contract of a chat, on real sockets: what streams, what is refused, what a disconnect does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import lanes
import msgspec
import pytest
import raw
import trio
from quart_trio import QuartTrio

from penstock import Limits, Penstock, Turn, chat_app
from penstock.limits import ConnectionLimits, ServerLimits, WireLimits
from penstock.metrics import Counters
from penstock.testing import open_server, record, user_message
from penstock.wire.chunks import Custom

Answer = Callable[[Turn], Awaitable[None]]

lane = lanes.lane


async def hello(turn: Turn) -> None:
    """The smallest producer."""
    async with turn.text() as text:
        await text.write("Hello, ")
        await text.write(turn.prompt)


@asynccontextmanager
async def serving(answer: Answer = hello, **options: Any) -> AsyncIterator[str]:
    """Serve a producer and yield the chat endpoint's URL."""
    async with open_server(chat_app(answer, **options)) as url:
        yield f"{url}/api/chat"


def client() -> httpx2.AsyncClient:
    """A client that waits as long as the test does."""
    return httpx2.AsyncClient(timeout=None, trust_env=False, verify=False)


@pytest.mark.usefixtures("lane")
async def test_a_turn_streams_whole_and_in_order() -> None:
    async with serving() as url:
        recording = await record(url, "you")
    assert recording.status == 200
    assert recording.headers["content-type"] == "text/event-stream"
    assert recording.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert recording.headers["x-accel-buffering"] == "no"
    assert "no-transform" in recording.headers["cache-control"]
    turn_id = recording.headers["x-penstock-turn"]
    assert recording.raw.startswith(b": stream-start\n\n")
    assert recording.raw.endswith(b"data: [DONE]\n\n")
    assert [event.last_event_id for event in recording.events[:2]] == [f"{turn_id}.1-0", f"{turn_id}.1-1"]
    assert recording.message["id"] == turn_id
    assert [part["text"] for part in recording.message["parts"]] == ["Hello, you"]


@pytest.mark.usefixtures("lane")
async def test_the_opening_comment_comes_before_the_model_speaks() -> None:
    async def slow(turn: Turn) -> None:
        await trio.sleep_forever()

    async with raw.open_server(chat_app(slow), lifespan=True) as server:
        client = await server.connect(request_of())
        with trio.fail_after(5):
            assert (await client.read_until(b"\n\n")).endswith(b": stream-start\n\n")


async def test_state_shows_a_chat_while_it_runs_and_after() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half")
            await go_on.wait()
            await text.write(" and half")

    async with serving(answer) as url, client() as http, trio.open_nursery() as nursery:
        assert (await http.get(f"{url}/none")).status_code == 404
        nursery.start_soon(lambda: record(url, "question", chat_id="c1"))
        with trio.fail_after(5):
            while (response := await http.get(f"{url}/c1")).status_code == 404:
                await trio.lowlevel.checkpoint()
        state = response.json()
        assert state["id"] == "c1"
        assert state["turn"]["state"] == "running"
        assert state["turn"]["endedAt"] is None
        go_on.set()
        with trio.fail_after(5):
            while (state := (await http.get(f"{url}/c1")).json())["turn"]["state"] == "running":
                await trio.lowlevel.checkpoint()
    assert state["turn"]["state"] == "finished"
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    assert state["messages"][1]["id"] == state["turn"]["id"]
    assert state["messages"][1]["parts"][0]["text"] == "Half and half"
    assert state["turn"]["position"].startswith(state["turn"]["id"] + ".1-")


async def test_both_body_forms_give_the_producer_the_whole_conversation() -> None:
    seen: list[list[str]] = []

    async def answer(turn: Turn) -> None:
        seen.append([message.text for message in turn.messages])
        await hello(turn)

    first, second = user_message("one", id="u1"), user_message("two", id="u2")
    async with serving(answer) as url:
        await record(url, "", chat_id="c", body={"messages": [msgspec.to_builtins(first)]})
        async with client() as http:
            body = {"id": "c", "message": msgspec.to_builtins(second)}
            await http.post(url, json=body)
            edited = {"id": "c", "message": msgspec.to_builtins(user_message("uno", id="u1"))}
            await http.post(url, json=edited)
    assert seen == [["one"], ["one", "Hello, one", "two"], ["uno"]]


async def test_what_the_client_sends_along_reaches_the_producer() -> None:
    seen: list[Any] = []

    async def answer(turn: Turn) -> None:
        seen.append(dict(turn.body))

    async with serving(answer) as url:
        await record(url, "x", body={"model": "m", "temperature": 0.5})
    assert seen == [{"model": "m", "temperature": 0.5}]


@pytest.mark.usefixtures("lane")
async def test_the_same_message_joins_the_running_turn_and_another_conflicts() -> None:
    go_on = trio.Event()
    runs = 0

    async def answer(turn: Turn) -> None:
        nonlocal runs
        runs += 1
        await go_on.wait()
        await hello(turn)

    message = msgspec.to_builtins(user_message("once"))
    bodies: list[bytes] = []
    async with serving(answer) as url, client() as http, trio.open_nursery() as nursery:

        async def post() -> None:
            recording = await record(url, "", chat_id="c", body={"messages": [message]})
            bodies.append(recording.raw)
            go_on.set()

        nursery.start_soon(post)
        nursery.start_soon(post)
        with trio.fail_after(5):
            while (await http.get(f"{url}/c")).status_code == 404:
                await trio.lowlevel.checkpoint()
        other = await http.post(
            url, json={"id": "c", "messages": [msgspec.to_builtins(user_message("other"))]}
        )
        assert other.status_code == 409
        assert other.text == "Another message of this chat is being answered."
        go_on.set()
    assert runs == 1
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(("sdk", "sent"), [(None, False), ("5", False), ("6", False), ("7", True)])
@pytest.mark.parametrize("how", ["query", "header"])
async def test_kinds_that_the_clients_version_does_not_know_are_left_out(
    sdk: str | None, sent: bool, how: str
) -> None:
    async def answer(turn: Turn) -> None:
        await turn.write(Custom(kind_="acme.thing"))
        await hello(turn)

    async with serving(answer) as url:
        if sdk is None:
            recording = await record(url, "x")
        elif how == "query":
            recording = await record(f"{url}?sdk={sdk}", "x")
        else:
            recording = await record(url, "x", headers={"x-penstock-sdk": sdk})
    assert (Custom(kind_="acme.thing") in recording.chunks) is sent
    assert recording.message["parts"][-1]["text"] == "Hello, x"


def a_body(**fields: Any) -> bytes:
    """A request's body: a valid one but for `fields`."""
    return msgspec.json.encode({"id": "c", "messages": [msgspec.to_builtins(user_message("x"))], **fields})


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "content", "headers", "status"),
    [
        ("GET", b"", {}, 405),
        ("PUT", a_body(), JSON, 405),
        ("POST", a_body(), {}, 415),
        ("POST", a_body(), {"content-type": "text/plain"}, 415),
        ("POST", a_body(), {**JSON, "content-encoding": "gzip"}, 415),
        ("POST", b"", JSON, 400),
        ("POST", b"{", JSON, 400),
        ("POST", b"[]", JSON, 400),
        ("POST", b"\xff", JSON, 400),
        ("POST", b"[" * 100_000, JSON, 400),
        ("POST", b'{"id":"a","id":"b"}', JSON, 400),
        ("POST", a_body(id="../etc/passwd"), JSON, 400),
        ("POST", a_body(id=".."), JSON, 400),
        ("POST", a_body(id="x" * 129), JSON, 400),
        ("POST", a_body(messages=[]), JSON, 400),
        ("POST", a_body(trigger="explode"), JSON, 400),
        ("POST", a_body(big="x" * 2_000_000), JSON, 413),
        ("POST", a_body(), {**JSON, "x-penstock-sdk": "8"}, 400),
    ],
)
async def test_a_bad_request_gets_a_status_and_one_sentence(
    method: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    async with serving() as url, client() as http:
        response = await http.request(method, url, content=content, headers=headers)
        assert response.status_code == status
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.text.endswith(".")
        assert "\n" not in response.text
        assert len(response.text) < 150
        assert "Traceback" not in response.text
        assert "passwd" not in response.text
        assert (await record(url, "still there")).status == 200


async def test_a_body_that_is_too_long_is_refused_before_it_is_read() -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield b" " * 1000

    async with serving(limits=Limits(wire=WireLimits(json_bytes=10_000))) as url, client() as http:
        try:
            response = await http.post(url, content=drip(), headers=JSON)
        except httpx2.WriteError:
            pass  # it was refused while the client still wrote
        else:
            assert response.status_code == 413


async def test_other_routes_say_what_they_are_in_a_sentence() -> None:
    async with serving() as url, client() as http:
        root = url.removesuffix("/api/chat")
        assert (await http.get(f"{root}/health/live")).text == "live"
        assert (await http.get(f"{root}/health/ready")).text == "ready"
        page = await http.get(f"{root}/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<title>penstock</title>" in page.text
        nowhere = await http.get(f"{root}/nowhere")
        assert (nowhere.status_code, nowhere.text) == (404, "There is nothing here.")
        wrong = await http.post(f"{root}/health/live")
        assert wrong.status_code == 405
        assert "GET" in wrong.headers["allow"]
        assert (await http.get(f"{url}/a%2Fb")).status_code == 404
        assert (await http.get(f"{url}/{'x' * 129}")).status_code == 400


async def test_penstock_lives_in_an_existing_quart_trio_app() -> None:
    app = QuartTrio(__name__)
    penstock = Penstock(app, hello, prefix="/chats", probes=False)

    @app.get("/mine")
    async def mine() -> str:
        assert penstock.hub is not None
        return str(penstock.hub.statistics().turns_running)

    async with open_server(app) as url, client() as http:
        assert (await record(f"{url}/chats", "you")).message["parts"][0]["text"] == "Hello, you"
        assert (await http.get(f"{url}/mine")).text == "0"
        assert (await http.get(f"{url}/health/live")).status_code == 404


def request_of(text: str = "x") -> bytes:
    """A whole raw POST."""
    content = msgspec.json.encode({"id": "raw", "messages": [msgspec.to_builtins(user_message(text))]})
    return (
        "POST /api/chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode() + content


async def leave_by_fin(client: raw.RawClient) -> None:
    client.close()


async def leave_by_half_close(client: raw.RawClient) -> None:
    client.half_close()


async def leave_by_reset(client: raw.RawClient) -> None:
    client.reset()


async def leave_by_stray_bytes_and_fin(client: raw.RawClient) -> None:
    await client.send(b"\r\n\r\n")
    client.half_close()


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize(
    "leave", [leave_by_fin, leave_by_half_close, leave_by_reset, leave_by_stray_bytes_and_fin]
)
async def test_a_disconnect_cancels_a_connection_bound_producer_at_once(
    leave: Callable[[raw.RawClient], Awaitable[None]],
) -> None:
    cancelled_at: list[float] = []
    metrics = Counters()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("x")
            try:
                await trio.sleep_forever()
            finally:
                cancelled_at.append(trio.current_time())

    app = chat_app(answer, orphan_grace_s=0.0, metrics=metrics)
    async with raw.open_server(app, lifespan=True) as server:
        client = await server.connect(request_of())
        await client.read_until(b"text-delta")
        left_at = trio.current_time()
        await leave(client)
        await raw.wait_for(lambda: metrics.get("turns_ended", outcome="stopped") == 1)
    assert len(cancelled_at) == 1
    assert cancelled_at[0] - left_at < 0.05
    assert metrics.get("connections_closed", reason="client_gone") == 1


@pytest.mark.usefixtures("lane")
async def test_a_detached_turn_goes_on_without_its_client() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("x")
            await go_on.wait()

    metrics = Counters()
    async with raw.open_server(chat_app(answer, metrics=metrics), lifespan=True) as server:
        client = await server.connect(request_of())
        await client.read_until(b"text-delta")
        client.close()
        await raw.wait_for(lambda: metrics.get("connections_closed", reason="client_gone") == 1)
        go_on.set()
        await raw.wait_for(lambda: metrics.get("turns_ended", outcome="finished") == 1)
        _, _, state = await server.get("/api/chat/raw")
        assert msgspec.json.decode(state)["turn"]["state"] == "finished"


@pytest.mark.usefixtures("lane")
async def test_a_reader_that_never_reads_is_cut_and_nobody_else_notices() -> None:
    async def flood(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(2_000 if turn.prompt == "flood" else 1):
                await text.write("x" * 10_000)

    metrics = Counters()
    limits = Limits(connection=ConnectionLimits(write_stall_s=1.0))
    async with raw.open_server(chat_app(flood, limits=limits, metrics=metrics), lifespan=True) as server:
        await server.connect(request_of("flood"), receive_buffer=1024)
        start = trio.current_time()
        with trio.fail_after(10):
            while metrics.get("connections_closed", reason="write_stalled") == 0:
                recording = await record(f"http://127.0.0.1:{server.port}/api/chat", "others")
                assert recording.message["parts"][0]["text"] == "x" * 10_000
                await trio.sleep(0.05)
        assert trio.current_time() - start < 4
        assert metrics.get("turns_ended", outcome="finished") > 1


@pytest.mark.usefixtures("lane")
async def test_shutdown_tells_streams_and_is_not_held_by_them() -> None:
    async def endless(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("x")
            await trio.sleep_forever()

    shutdown_took = 0.0
    recordings: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_server(chat_app(endless), limits=ServerLimits(drain_s=2.0)) as url:

            async def follow() -> None:
                recordings.append(await record(f"{url}/api/chat", "x"))

            nursery.start_soon(follow)
            async with client() as http:
                with trio.fail_after(5):
                    while (await http.get(f"{url}/health/ready")).status_code != 200:
                        await trio.sleep(0.01)
                await trio.sleep(0.1)
            began = trio.current_time()
        shutdown_took = trio.current_time() - began
    assert shutdown_took < 3
    # An unfinished turn ends with an error, never politely.
    assert recordings[0].chunks[-1].kind == "error"

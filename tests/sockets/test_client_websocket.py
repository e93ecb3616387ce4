"""`penstock.client` over a WebSocket: what is its own there. What it shares with HTTP is in `test_client.py`."""

from __future__ import annotations

import io
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from proxy import Fault, open_proxy
from raw import wait_for
from test_client import EVENTS, QUICK, Mixed, chatting

from penstock import Turn, chat_app, open_client
from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.cli.send import send
from penstock.client import Closing, Gap, Message, Received, Snapshot
from penstock.client.client import Transport
from penstock.client.requests import UNREAD_CHARS
from penstock.errors import LocalProtocolError, RequestRefusedError, ServerUnreachableError
from penstock.limits import ClientLimits, ConnectionLimits, Limits, ServerLimits
from penstock.server import serve
from penstock.testing import open_server, run_cancelled_at
from penstock.web.auth import Denied, Request
from penstock.wire.assembly import assemble
from penstock.wire.chunks import Finish, TextDelta


async def test_the_scheme_chooses_and_one_socket_carries_everything() -> None:
    async with chatting(Mixed()) as chat:
        async with open_client(f"{chat.proxy.url.replace('http', 'ws')}/api/chat", limits=QUICK) as client:
            chat.client = client
            await chat.send()
            async with client.watch("c") as events:
                assert isinstance(await anext(events), Snapshot)
            assert await client.stop("c") == "finished"
            state = await client.state("c")
            assert state is not None
            assert state == await chat.straight.state("c")
            turn = await client.turn("c", state["turn"]["id"])
            assert turn == await chat.straight.turn("c", state["turn"]["id"])
            assert await client.turn("other", state["turn"]["id"]) is None
        assert chat.proxy.connections == 1
        await wait_for(lambda: chat.proxy.open == 0)


@pytest.mark.parametrize(("first", "then"), [("websocket", "sse"), ("sse", "websocket")])
async def test_either_transport_goes_on_where_the_other_was(first: Transport, then: Transport) -> None:
    """After any chunk, of a turn that is over and of one that runs."""
    for pace_s in (None, 0.001):
        async with (
            open_server(chat_app(Mixed(pace_s))) as url,
            open_client(f"{url}/api/chat", transport=first, limits=QUICK) as one,
            open_client(f"{url}/api/chat", transport=then, limits=QUICK) as other,
        ):
            for count in range(1, EVENTS):
                got: list[Received | Gap] = []
                async with one.send(f"c{count}", "Hello") as stream:
                    while len(got) < count:
                        got.append(await anext(stream))
                async with other.follow(f"c{count}", stream.position) as rest:
                    got += [event async for event in rest]
                chunks = [event.chunk for event in got if isinstance(event, Received)]
                assert len(chunks) == len(got) == EVENTS
                state = await other.state(f"c{count}")
                assert state is not None
                assert assemble(chunks, "") == state["messages"][1]


async def test_a_half_open_connection_is_found_out_after_any_chunk() -> None:
    """Nothing comes any more, and nothing says so."""
    limits = ClientLimits(first_backoff_s=0.002, silence_s=0.1)
    async with chatting(Mixed()) as chat:
        for count in range(0, EVENTS, 3):
            chat.proxy.faults = [Fault("stall", after_events=count), None]
            async with open_client(
                f"{chat.proxy.url}/api/chat", transport="websocket", limits=limits
            ) as chat.client:
                before = chat.proxy.connections
                await chat.send(f"c{count}")
            assert chat.proxy.connections == before + 2


async def test_a_quiet_server_is_pinged_and_not_given_up() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        await turn.data("x", 1)
        await go_on.wait()

    limits = ClientLimits(first_backoff_s=0.002, silence_s=0.2)
    server = Limits(connection=ConnectionLimits(keepalive_s=1_000))
    async with chatting(answer, limits=limits, server=server, transport="websocket") as chat:
        async with chat.client.send("c", "Hello") as stream, trio.open_nursery() as nursery:

            async def take() -> None:
                async for _ in stream:
                    pass

            nursery.start_soon(take)
            await trio.sleep(0.7)
            go_on.set()
        assert chat.proxy.connections == 1


# Two at once


async def test_two_streams_share_a_socket_and_a_busy_caller_holds_up_nobody() -> None:
    """One is not taken while a long answer comes for it: the other goes on, and the first misses nothing."""
    delta = "x" * 20_000
    count = 3 * UNREAD_CHARS // len(delta)

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(count):
                await text.write(delta)

    async with chatting(answer, transport="websocket") as chat:
        async with chat.client.send("slow", "Hello") as slow:
            async with chat.client.send("quick", "Hello") as quick:
                got = [event async for event in quick]
            assert isinstance(got[-1], Received)
            assert isinstance(got[-1].chunk, Finish)
            received = [event async for event in slow]
            assert slow._requests > 1, "all of it was kept for a caller who did not take it"
        assert all(isinstance(event, Received) for event in received)
        chunks = [event.chunk for event in received if isinstance(event, Received)]
        assert sum(len(chunk.delta) for chunk in chunks if isinstance(chunk, TextDelta)) == count * len(delta)
        assert chat.proxy.connections == 1


async def test_a_cut_is_made_good_for_all_streams_of_the_socket() -> None:
    mixed = Mixed(0.002)
    async with chatting(mixed, Fault("reset", after_events=12), None, transport="websocket") as chat:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(chat.send, f"c{number}")
        assert chat.proxy.connections == 2
    assert mixed.runs == 4


async def test_a_stream_that_is_left_is_let_go_of_and_the_socket_stays() -> None:
    left = trio.Event()

    async def answer(turn: Turn) -> None:
        try:
            await turn.data("x", 1)
            await trio.sleep_forever()
        finally:
            left.set()

    async with (
        open_server(chat_app(answer, orphan_grace_s=0)) as url,
        open_proxy(url) as proxy,
        open_client(f"{proxy.url}/api/chat", transport="websocket") as client,
    ):
        async with client.send("c", "Hello") as stream:
            await anext(stream)
        with trio.fail_after(2):
            await left.wait()
        assert proxy.open == proxy.connections == 1
        assert await client.stop("c") in ("stopped", "failed", "lost")
        assert proxy.connections == 1


# Without a WebSocket


def refusing(status: int, times: int = 1_000) -> Callable[..., Awaitable[None]]:
    """An app of which something in front refuses the first upgrades."""
    app: ASGIApp = chat_app(Mixed())
    left = [times]

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or left[0] == 0:
            await app(scope, receive, send)
            return
        left[0] -= 1
        headers = [(b"content-length", b"2")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"No"})

    return front


async def test_a_refused_upgrade_means_http_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    app = refusing(403, 1)
    with caplog.at_level(logging.WARNING, "penstock.client"):
        async with (
            open_server(app) as url,
            open_client(f"{url}/api/chat", transport="websocket", limits=QUICK) as client,
        ):
            for chat_id in ("c", "d"):
                async with client.send(chat_id, "Hello") as stream:
                    assert len([event async for event in stream]) == EVENTS
            assert await client.stop("c") == "finished"
            assert await client.state("nobody") is None
            with pytest.raises(RequestRefusedError):
                await client.approve("c", "x", True)
    [record] = caplog.records
    assert record.getMessage() == (
        f"{url.removeprefix('http://')} refused a WebSocket with status 403: all requests go over HTTP"
    )


async def test_a_busy_server_is_asked_for_a_socket_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "penstock.client"):
        async with (
            open_server(refusing(503, 1)) as url,
            open_proxy(url) as proxy,
            open_client(f"{proxy.url}/api/chat", transport="websocket", limits=QUICK) as client,
        ):
            for chat_id in ("c", "d", "e"):
                async with client.send(chat_id, "Hello") as stream:
                    assert len([event async for event in stream]) == EVENTS
            assert proxy.connections == 3
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "this request goes over HTTP"
    ]


async def test_what_a_server_says_of_a_bad_header_and_of_who_asks() -> None:
    async def authorize(request: Request, chat_id: str, action: str) -> str | Denied:
        return "me" if request.headers.get("authorization") == "secret" else Denied.anonymous

    async with open_server(chat_app(Mixed(), authorize=authorize)) as url:
        go = partial(open_client, f"{url}/api/chat", transport="websocket")
        async with go(headers={"authorization": "secret"}) as client, client.send("c", "Hello") as stream:
            assert len([event async for event in stream]) == EVENTS
        async with go() as client:
            with pytest.raises(RequestRefusedError, match="sign in"):
                async with client.send("c", "Hello"):
                    pass
            async with client.watch("c") as events:
                with pytest.raises(RequestRefusedError, match="sign in"):
                    await anext(events)
        async with go(headers={"x": "a\nb"}) as client:
            with pytest.raises(LocalProtocolError, match="header"):
                await client.stop("c")


async def test_a_server_with_too_many_sockets_is_asked_again() -> None:
    limits = Limits(server=ServerLimits(websockets=1))
    patient = ClientLimits(first_backoff_s=0.05, backoff_max_s=0.2)
    async with (
        open_server(chat_app(Mixed(), limits=limits)) as url,
        open_client(f"{url}/api/chat", transport="websocket", limits=patient) as client,
        trio.open_nursery() as nursery,
    ):

        async def occupy(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC114
            async with open_client(f"{url}/api/chat", transport="websocket") as first:
                await first.state("c")
                task_status.started()
                await trio.sleep(0.15)

        await nursery.start(occupy)
        with pytest.raises(ServerUnreachableError):
            await client.stop("c")
        async with client.send("c", "Hello") as stream:
            assert len([event async for event in stream]) == EVENTS


# A server that goes away


@asynccontextmanager
async def restartable(app: Callable[[], Any]) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serve on one port; yield the URL, and what stops that server and starts the next."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    stopped, shutdown = trio.Event(), trio.Event()

    # `serve` gets the task_status.
    async def run(listener: socket.socket, *, task_status: trio.TaskStatus[Any]) -> None:  # noqa: ASYNC114, ASYNC128
        await serve(app(), sockets=[listener], shutdown=shutdown, task_status=task_status)
        stopped.set()

    async def restart() -> None:
        nonlocal stopped, shutdown
        shutdown.set()
        await stopped.wait()
        stopped, shutdown = trio.Event(), trio.Event()
        again = socket.socket()
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
        await nursery.start(partial(run, again))

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run, bound))
        yield f"http://127.0.0.1:{port}", restart
        shutdown.set()


async def test_a_restart_is_told_and_survived(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.web.socket.retry_s", lambda: 0.1)
    monkeypatch.setattr("penstock.web.watch.retry_s", lambda: 0.1)
    journal = f"sqlite:{tmp_path / 'chat.db'}"
    mixed = Mixed(0.01)
    async with (
        restartable(lambda: chat_app(mixed, journal=journal)) as (url, restart),
        open_client(f"{url}/api/chat", transport="websocket", limits=QUICK) as client,
        client.watch("c") as events,
    ):
        assert isinstance(await anext(events), Snapshot)
        async with client.send("c", "Hello") as stream, trio.open_nursery() as nursery:
            await anext(stream)
            nursery.start_soon(restart)
            # The turn may end while the server drains, and its stream with it.
            assert len([event async for event in stream]) == EVENTS - 1
        told = [await anext(events)]
        while not isinstance(told[-1], Message) or len(told) == 1:
            told.append(await anext(events))
        assert [event for event in told if isinstance(event, Closing)] == [Closing("drain", True, 0.1)]
        watched = [event.position.offset for event in told if isinstance(event, Received) and event.position]
        assert watched == list(range(EVENTS))
        assert not [event for event in told if isinstance(event, Gap | Snapshot)]
        async with client.send("c", "Again") as stream:
            assert len([event async for event in stream]) == EVENTS
    assert mixed.runs == 2


# Leaving


async def test_an_error_of_the_callers_comes_out_as_it_is() -> None:
    async with open_server(chat_app(Mixed())) as url:

        async def fail() -> None:
            async with open_client(f"{url}/api/chat", transport="websocket") as client:
                await client.state("c")
                raise KeyError

        with pytest.raises(KeyError):
            await fail()


async def test_cancellation_at_any_step_leaves_nothing_behind() -> None:
    """No task, no socket, and a server that goes on."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Hello")

    async with open_server(chat_app(answer)) as url, open_proxy(url) as proxy:
        number = 0

        async def body() -> None:
            async with (
                open_client(f"{proxy.url}/api/chat", transport="websocket", limits=QUICK) as client,
                client.send(f"c{number}", "Hello") as stream,
            ):
                assert len([event async for event in stream]) == 5
                await client.stop(f"c{number}")

        tasks = trio.lowlevel.current_statistics().tasks_living
        step = 1
        while True:
            number += 1
            cancelled = await run_cancelled_at(step, body)
            await wait_for(lambda: proxy.open == 0)
            await wait_for(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
            if not cancelled:
                break
            step += 1
        descriptors = len(os.listdir("/proc/self/fd"))
        await body()
        await wait_for(lambda: proxy.open == 0)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert number > 40


# The commands


@pytest.mark.parametrize("transport", [None, "websocket"])
async def test_a_message_can_be_sent_over_a_websocket_on_the_terminal(transport: Transport | None) -> None:
    async with open_server(chat_app(Mixed())) as url, open_proxy(url) as proxy:
        out = io.StringIO()
        to = proxy.url if transport else proxy.url.replace("http", "ws")
        assert await send(to, "Hello", transport=transport, stdout=out, stderr=io.StringIO()) == 0
        assert out.getvalue() == "One, two\n\ndata: three.\n"

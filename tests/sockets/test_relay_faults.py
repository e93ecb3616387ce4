"""Whatever an upstream does, the turn ends with one error that says what it was, and nobody else notices."""

from __future__ import annotations

import gzip
import socket
import traceback
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import NamedTuple

import pytest
import trio
from fault_upstream import (
    HEAD,
    Ended,
    Script,
    answer_with,
    chunked,
    event,
    hang,
    impatient,
    one_after_another,
    read_request,
    relayed,
    reset,
    run_turn,
    run_turn_in,
    scripted,
    sends,
)

from penstock import TurnHandle, TurnState, open_hub
from penstock.errors import (
    UpstreamError,
    UpstreamRedirectError,
    UpstreamSilentError,
    UpstreamStatusError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnansweredError,
    UpstreamUnreachableError,
    UpstreamUnreadableError,
)
from penstock.limits import Limits, RelayLimits
from penstock.relay.upstream import open_upstream, relay
from penstock.testing import user_message
from penstock.wire.chunks import Data, Error, TextDelta

GOOD = sends(HEAD, event("ok", "stop"), chunked(b"data: [DONE]\n\n"), chunked(b""))
LINE_BYTES = 100 << 20


async def endless_line(stream: trio.SocketStream) -> None:
    """Send one line of 100 MB."""
    await stream.send_all(HEAD + event("Half") + b"%x\r\ndata: " % (LINE_BYTES + 6))
    piece = b"x" * (64 << 10)
    for _ in range(LINE_BYTES // len(piece)):
        await stream.send_all(piece)
        watch_memory()


async def endless_event(stream: trio.SocketStream) -> None:
    """Send one event of 100 MB, in short lines."""
    await stream.send_all(HEAD + event("Half"))
    piece = chunked(b"data: %b\n" % (b"x" * 1_000) * 64)
    for _ in range(LINE_BYTES // len(piece)):
        await stream.send_all(piece)
        watch_memory()


async def endless_comments(stream: trio.SocketStream) -> None:
    """Send comments, as many as fit."""
    await stream.send_all(HEAD)
    piece = chunked(b": I am thinking\n" * 1_000)
    while True:
        await stream.send_all(piece)
        watch_memory()


def redirect(location: str, status: str = "307 Temporary Redirect") -> Script:
    """Make a script that sends elsewhere."""
    return answer_with(b"", status=status, more=f"location: {location}\r\n")


memory_peak = 0


def memory() -> int:
    """Return the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def watch_memory() -> None:
    """Note how much memory there is now."""
    global memory_peak
    memory_peak = max(memory_peak, memory())


async def steady(stream: trio.SocketStream) -> None:
    """Answer as an upstream should."""
    await stream.send_all(HEAD)
    for number in range(10):
        await trio.sleep(0.01)
        await stream.send_all(event(f"{number} "))
    await stream.send_all(event("end", "stop") + chunked(b""))


class Fault(NamedTuple):
    """What an upstream does, and what becomes of the turn."""

    script: Script
    error: type[UpstreamError]
    text: str = ""


FAULTS = {
    "silence before the first byte": Fault(hang, UpstreamUnansweredError),
    "silence after the head": Fault(sends(HEAD, then=hang), UpstreamSilentError),
    "silence mid-stream": Fault(sends(HEAD, event("Half"), then=hang), UpstreamSilentError, "Half"),
    "silence mid-frame": Fault(
        sends(HEAD, event("Half"), b'99\r\ndata: {"choi', then=hang), UpstreamSilentError, "Half"
    ),
    "a reset before the head": Fault(reset, UpstreamUnreachableError),
    "a reset mid-frame": Fault(
        sends(HEAD, event("Half"), b'99\r\ndata: {"choi', then=reset), UpstreamTruncatedError, "Half"
    ),
    "an end without done": Fault(sends(HEAD, event("Half"), chunked(b"")), UpstreamTruncatedError, "Half"),
    "a close without done": Fault(sends(HEAD, event("Half")), UpstreamTruncatedError, "Half"),
    "a line of 100 MB": Fault(endless_line, UpstreamTooLongError, "Half"),
    "an event of 100 MB": Fault(endless_event, UpstreamTooLongError, "Half"),
    "a JSON of 100 MB": Fault(
        sends(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n",
            *[b'["' + b"x" * (1 << 20)] * 8,
            then=hang,
        ),
        UpstreamTooLongError,
    ),
    "a page": Fault(answer_with(b"<h1>Welcome</h1>", "text/html"), UpstreamUnreadableError),
    "no type": Fault(sends(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), UpstreamUnreadableError),
    "noise": Fault(
        sends(HEAD, event("Half"), chunked(gzip.compress(b"data: {}\n\n"))), UpstreamUnreadableError, "Half"
    ),
    "a cut character": Fault(
        sends(HEAD, event("Half"), chunked(b"data: \xf0\x9f"), chunked(b"\n\n")),
        UpstreamUnreadableError,
        "Half",
    ),
    "an error amid its answer": Fault(
        sends(HEAD, event("Half"), chunked(b'data: {"error": {"message": "secret"}}\n\n')),
        UpstreamError,
        "Half",
    ),
    "one piece with both": Fault(
        sends(HEAD, chunked(b'data: {"choices":[{"delta":{"content":"Half"}}]}\n\ndata: nonsense\n\n')),
        UpstreamUnreadableError,
        "Half",
    ),
    "always busy": Fault(answer_with(b"", status="529 Overloaded"), UpstreamStatusError),
    "a redirect to itself": Fault(redirect("/v1/chat/completions"), UpstreamRedirectError),
    "a redirect to nowhere": Fault(answer_with(b"", status="308 Moved"), UpstreamRedirectError),
    "a redirect to no host": Fault(redirect("http://xn--.+/"), UpstreamRedirectError),
    "a redirect to no port": Fault(redirect("http://[::1"), UpstreamRedirectError),
    "a redirect that drops the body": Fault(redirect("/", "303 See Other"), UpstreamRedirectError),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_one_error_and_nobody_elses(name: str) -> None:
    """Typed, in time, within memory; what came before it is kept and marked; another turn runs on beside it."""
    global memory_peak
    fault = FAULTS[name]
    ended: dict[str, Ended] = {}
    limits = impatient(retries=1, backoff_s=0.01)
    memory_peak = before = memory()

    async def run(chat_id: str, url: str) -> None:
        ended[chat_id] = await run_turn_in(hub, chat_id, relay(url, "m", limits=limits))

    with trio.fail_after(10):
        async with scripted(fault.script) as bad, scripted(steady) as good, open_hub() as hub:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "good", good.url)
                nursery.start_soon(run, "bad", bad.url)
            bad_turn = ended["bad"]
            assert bad_turn.state is TurnState.failed
            assert type(bad_turn.error) is fault.error
            assert bad_turn.chunks[-1] == Error(error_text=bad_turn.error.error_text)
            assert bad_turn.message.text == fault.text
            # So it is in the journal too, and stays when later turns have made the chat's state another one.
            record = await hub.chat("bad")
            assert record is not None
            metadata = record.messages[-1].metadata
            assert (isinstance(metadata, dict) and metadata.get("incomplete") is True) is bool(fault.text)
    assert ended["good"].state is TurnState.finished
    assert ended["good"].message.text == " ".join(map(str, range(10))) + " end"
    assert memory_peak - before < 24 << 20
    assert len(bad.requests) <= 5


async def test_endless_comments_are_life_and_stop_works() -> None:
    """They keep the turn going, are told to its followers now and then, cost no memory, and end with the turn."""
    global memory_peak
    limits = impatient(silence_s=0.2, heartbeat_s=0.1, thinking_s=0.2)
    async with scripted(endless_comments) as server, open_hub() as hub:
        turn = await hub.start_turn("chat", relay(server.url, "m", limits=limits), [user_message("Hello")])
        await trio.sleep(0.2)
        memory_peak = before = memory()
        await trio.sleep(0.8)
        assert turn.state is TurnState.running
        with trio.fail_after(0.5):
            assert await turn.stop() is TurnState.stopped
        with turn.follow() as subscription:
            entries = await subscription.next_batch(1_000)
        signs = [entry for entry in entries if isinstance(entry.chunk, Data)]
        assert 4 <= len(signs) <= 12
        assert memory_peak - before < 16 << 20


@pytest.mark.parametrize("first", [answer_with(b"", status="503 Busy"), reset, sends(HEAD, then=reset)])
async def test_before_the_first_token_it_is_asked_again(first: Script) -> None:
    """After a status that passes, and after a reset, also of an answer that had only begun."""
    async with scripted(one_after_another(first, first, GOOD)) as server:
        turn = await run_turn(relay(server.url, "m", limits=impatient(retries=2, backoff_s=0.01)))
    assert turn.message.text == "ok"
    assert len(server.requests) == 3
    assert len(set(server.requests)) == 1


async def test_the_upstream_says_when_as_a_date() -> None:
    """Which has whole seconds."""
    says = formatdate(time() + 1.9, usegmt=True)
    busy = answer_with(b"", status="429 Too Many", more=f"retry-after: {says}\r\n")
    async with scripted(one_after_another(busy, GOOD)) as server:
        began = trio.current_time()
        turn = await run_turn(relay(server.url, "m", limits=impatient(retries=1, backoff_s=0.01)))
    assert turn.message.text == "ok"
    assert 0.8 < trio.current_time() - began < 2.5


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        (answer_with(b"", status="429 Too Many", more="retry-after: 31\r\n"), 1),
        (answer_with(b"", status="429 Too Many", more="retry-after: soon\r\n"), 3),
        (answer_with(b"", status="400 Bad Request"), 1),
        (answer_with(b"", status="401 Unauthorized"), 1),
        (answer_with(b"", status="408 Request Timeout"), 3),
        (sends(HEAD, event("Half"), then=reset), 1),
        (sends(HEAD, chunked(b"")), 1),
        (hang, 1),
    ],
)
async def test_it_is_asked_again_only_where_that_may_help(script: Script, requests: int) -> None:
    """Not for longer than anybody waits, not after a token, and not so that the wait is doubled."""
    async with scripted(script) as server:
        turn = await run_turn(relay(server.url, "m", limits=impatient(retries=2, backoff_s=0.01)))
    assert turn.state is TurnState.failed
    assert len(server.requests) == requests


@pytest.mark.parametrize("status", ["307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("location", ["/v2/chat", "../elsewhere?x=1", "{url}/deep/er"])
async def test_a_redirect_within_the_origin_is_followed(status: str, location: str) -> None:
    """With the same body and the same key."""
    script = one_after_another(sends(b""), GOOD)  # replaced below, when the port is known
    async with scripted(lambda stream: script(stream)) as server:
        script = one_after_another(redirect(location.replace("{url}", server.url), status), GOOD)
        turn = await run_turn(relay(server.url, "m", api_key="sk-1", limits=impatient()))
    assert turn.message.text == "ok"
    first, second = server.requests
    assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2]
    assert b"authorization: bearer sk-1" in second.lower()
    assert second.startswith(b"POST /")


async def test_a_redirect_to_another_host_is_refused() -> None:
    """Nobody there gets the key, nor the conversation, nor a connection. The log says where it would have gone."""
    async with scripted(GOOD) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        for location in (there, other.url, f"//user:pass@{other.url.removeprefix('http://')}?key=sk-1"):
            async with scripted(redirect(location)) as server:
                turn = await run_turn(relay(server.url, "m", api_key="sk-1", limits=impatient(retries=2)))
            assert type(turn.error) is UpstreamRedirectError
            assert "which is not followed" in str(turn.error)
            assert "sk-1" not in str(turn.error)
            assert "pass" not in str(turn.error)
            assert len(server.requests) == 1
    assert other.requests == []


@pytest.mark.parametrize(
    "script",
    [
        sends(HEAD, chunked(b'data: {"error": "no such key: sk-1"}\n\n')),
        answer_with(b'{"error": {"message": "no such key: sk-1"}}'),
        answer_with(b"no such key: sk-1", status="403 Forbidden"),
        answer_with(b"", "sk-1/sk-1"),
    ],
)
async def test_the_key_is_not_in_the_log(script: Script) -> None:
    """Wherever the upstream quotes it."""
    turn = await relayed(script, api_key="sk-1")
    assert turn.error is not None
    assert "sk-1" not in "".join(traceback.format_exception(turn.error))
    assert "[key]" in str(turn.error)


async def test_one_users_cookie_is_not_the_next_ones() -> None:
    """Requests share connections, and nothing else."""
    cookie = answer_with(
        b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}',
        more="set-cookie: who=me; Path=/\r\n",
    )
    async with scripted(cookie) as server, open_upstream(server.url, "m") as upstream:
        for _ in range(2):
            assert (await run_turn(upstream.answer)).message.text == "ok"
    assert all(b"cookie" not in request.lower() for request in server.requests)


async def press_stop(turn: TurnHandle, followers: trio.CancelScope) -> None:
    """Stop it."""
    await turn.stop()


async def close_the_page(turn: TurnHandle, followers: trio.CancelScope) -> None:
    """Leave it to itself."""
    followers.cancel()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("leave", [press_stop, close_the_page])
@pytest.mark.parametrize("talks", [True, False])
async def test_nobody_pays_for_tokens_that_nobody_reads(
    leave: Callable[[TurnHandle, trio.CancelScope], Awaitable[None]], talks: bool
) -> None:
    """A stop, or the last follower's leaving, is the end of the request: amid its answer, and before it."""
    ended = trio.Event()

    async def script(stream: trio.SocketStream) -> None:
        if talks:
            await stream.send_all(HEAD + event("Once upon a time"))
        assert await stream.receive_some() == b""
        ended.set()

    async with scripted(script) as server, open_hub() as hub, trio.open_nursery() as nursery:
        producer = relay(server.url, "m")
        turn = await hub.start_turn("chat", producer, [user_message("Hello")], orphan_grace_s=0)
        followers = trio.CancelScope()

        async def follow() -> None:
            with followers, turn.follow() as subscription:
                try:
                    while True:
                        await subscription.next_batch(10)
                except trio.EndOfChannel:
                    pass

        nursery.start_soon(follow)
        while not server.requests:
            await trio.sleep(0.01)
        with trio.fail_after(1):
            await leave(turn, followers)
            await ended.wait()
            assert await turn.wait_ended() is TurnState.stopped
        nursery.cancel_scope.cancel()


async def test_a_stale_connection_is_no_error() -> None:
    """An upstream closes a kept connection just when the next turn uses it: that one is asked again."""
    requests = 0

    async def close_after_one(stream: trio.SocketStream) -> None:
        nonlocal requests
        requests += 1
        await GOOD(stream)
        await read_request(stream)

    async with (
        scripted(close_after_one) as server,
        open_upstream(server.url, "m", limits=Limits(relay=RelayLimits(backoff_s=0.01))) as upstream,
    ):
        for _ in range(3):
            assert (await run_turn(upstream.answer)).message.text == "ok"
    assert requests == 3


async def test_an_upstream_that_comes_up_late_is_waited_for() -> None:
    """Refused at first, as by a server that restarts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await read_request(stream)
            await GOOD(stream)

    async def come_up() -> None:
        await trio.sleep(0.1)
        await trio.serve_tcp(handle, port, host="127.0.0.1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_up)
        limits = impatient(retries=8, backoff_s=0.05, first_byte_s=2)
        assert (await run_turn(relay(f"http://127.0.0.1:{port}", "m", limits=limits))).message.text == "ok"
        nursery.cancel_scope.cancel()


async def test_an_answer_that_is_not_streamed_is_waited_for_with_signs() -> None:
    """A server that knows no streaming says nothing until it knows all."""

    async def think(stream: trio.SocketStream) -> None:
        await trio.sleep(0.3)
        await answer_with(b'{"choices":[{"message":{"content":"At last."},"finish_reason":"stop"}]}')(stream)

    turn = await relayed(think, limits=impatient(first_byte_s=5, thinking_s=0.1))
    kinds = [chunk.kind for chunk in turn.chunks]
    assert kinds[:3] == ["start", "data-thinking", "data-thinking"]
    assert [chunk.delta for chunk in turn.chunks if isinstance(chunk, TextDelta)] == ["At last."]
    assert turn.message.parts == [
        {"type": "step-start"},
        {"type": "text", "text": "At last.", "state": "done"},
    ]

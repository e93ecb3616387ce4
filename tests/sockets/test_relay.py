"""The relay: a model's answer over HTTP, whole and in order, or an error that says so.

One upstream is a published mock of hosted models' APIs, run as a process. The others are scripts on a raw socket, which
do what no well-behaved server does.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from fault_upstream import (
    HEAD,
    Script,
    answer_with,
    chunked,
    event,
    hang,
    impatient,
    read_request,
    relayed,
    reset,
    run_turn,
    scripted,
    sends,
)
from served import open_served, told

from parts import require
from penstock import TurnState, open_hub
from penstock.errors import (
    UpstreamError,
    UpstreamSilentError,
    UpstreamStatusError,
    UpstreamTruncatedError,
    UpstreamUnansweredError,
)
from penstock.limits import Limits, RelayLimits
from penstock.relay.api_key import environment_api_key
from penstock.relay.openai import OpenAIProtocol
from penstock.relay.sentences import ANSWER_TOO_LONG, BUSY, NOT_UNDERSTOOD, TOO_LONG
from penstock.relay.upstream import open_upstream, relay
from penstock.testing import record, user_message
from penstock.turns.turn import Turn
from penstock.wire.chunks import Error, Finish, TextDelta

TESTS = Path(__file__).parent.parent
MOCK = TESTS / "upstream" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
PLAIN = "Die naïve Forelle 🐟 schwamm stromauf,\n\nand that is all."
ENDED = ["finish", "[DONE]"]


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    """Run the published mock and return its API's base URL."""
    node = shutil.which("node")
    require("Node", "apt-get install nodejs npm", node is not None)
    require("the npm package @copilotkit/aimock", "npm ci in tests/upstream", MOCK.exists())
    assert node is not None
    command = [node, str(MOCK), "--port", "0", "--chunk-size", "3", "--fixtures", "answers.json"]
    with subprocess.Popen(command, cwd=TESTS / "upstream", stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"listening on (http://\S+)", line):
                    yield f"{found[1]}/v1"
                    break
            else:
                pytest.fail("the mock ended before it listened")
        finally:
            process.terminate()


PROTOCOLS = pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic"])


@PROTOCOLS
async def test_a_relayed_turn_has_all_text_in_order(mock_url: str, protocol: str) -> None:
    """Text, the reason of the end, what it cost, and which model it was."""
    turn = await run_turn(relay(mock_url, "gpt-4.1", protocol=protocol), user_message("plain"))
    assert turn.state is TurnState.finished
    assert turn.message.text == PLAIN
    assert len([chunk for chunk in turn.chunks if isinstance(chunk, TextDelta)]) > 10
    assert turn.chunks[-1] == Finish(finish_reason="stop")
    assert turn.message.metadata["model"] == "gpt-4.1"
    if protocol != "openai":
        return  # the mock counts for nobody else
    usage = turn.message.metadata["usage"]
    assert 0 < usage["outputTokens"] < usage["totalTokens"]


@PROTOCOLS
async def test_reasoning_comes_before_the_text(mock_url: str, protocol: str) -> None:
    """As a part of its own."""
    turn = await run_turn(relay(mock_url, "o3-mini", protocol=protocol), user_message("think"))
    parts = [(part["type"], part.get("text")) for part in turn.message.parts]
    assert parts == [
        ("step-start", None),
        ("reasoning", "Twice six is twelve, and thirty more."),
        ("text", "It is 42."),
    ]


@PROTOCOLS
async def test_tool_calls_and_their_outputs_make_the_round(mock_url: str, protocol: str) -> None:
    """The model asks for tools; with their outputs in the history it answers. The mock knows the call's id again."""
    question = user_message("tools")
    producer = relay(mock_url, "gpt-4.1", protocol=protocol)
    turn = await run_turn(producer, question)
    assert turn.chunks[-1] == Finish(finish_reason="tool-calls")
    message = turn.message
    calls = [part for part in message.parts if part["type"].startswith("tool-")]
    assert [(call["type"], call["toolCallId"], call["input"]) for call in calls] == [
        ("tool-get_weather", "call_weather", {"city": "Zürich"}),
        ("tool-get_time", "call_time", {"zone": "CET"}),
    ]
    for call in calls:
        call.update(state="output-available", output={"ok": True})

    async def go_on(turn: Turn) -> None:
        turn.messages = [question, message]
        await producer(turn)

    again = await run_turn(go_on)
    assert again.message.text == "It rains, and it is noon."


@PROTOCOLS
async def test_a_refusal_is_an_error_without_its_body(mock_url: str, protocol: str) -> None:
    """The user learns that the model is busy, and nothing else of what the upstream said."""
    limits = Limits(relay=RelayLimits(retries=0))
    turn = await run_turn(relay(mock_url, "gpt-4.1", protocol=protocol, limits=limits), user_message("busy"))
    assert turn.state is TurnState.failed
    assert turn.chunks[-1] == Error(error_text=BUSY)
    assert isinstance(turn.error, UpstreamStatusError)
    assert turn.error.status == 429
    assert "a private detail" in str(turn.error)


@PROTOCOLS
async def test_a_broken_stream_is_an_error(mock_url: str, protocol: str) -> None:
    """What came stays, and the turn fails."""
    limits = Limits(relay=RelayLimits(recover_s=0.1))
    turn = await run_turn(
        relay(mock_url, "gpt-4.1", protocol=protocol, limits=limits), user_message("broken off")
    )
    assert turn.state is TurnState.failed
    assert isinstance(turn.error, UpstreamTruncatedError)
    assert turn.message.text.startswith("This answer")
    assert turn.chunks[-1] == Error(error_text=UpstreamTruncatedError.error_text)


# --- scripts on a raw socket ---


async def test_the_request_is_what_the_api_wants() -> None:
    """Path, key, streaming with usage, the caller's own fields, and no compression."""
    async with scripted(sends(HEAD, event("ok", "stop"), chunked(b""))) as server:
        producer = relay(server.url, "m", api_key="sk-1", extra_body={"temperature": 0, "stream": False})
        assert (await run_turn(producer, user_message("Grüße"))).state is TurnState.finished
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"\r\nauthorization: bearer sk-1" in head.lower()
    assert b"\r\naccept-encoding: identity" in head.lower()
    assert json.loads(body) == {
        "temperature": 0,
        "model": "m",
        "messages": [{"role": "user", "content": "Grüße"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("name", ["openai-text", "vllm", "deepseek"])
async def test_any_boundary_of_the_network_gives_the_same_message(name: str) -> None:
    """Cut within characters, line ends and events; the translator's own tests cut at every byte."""
    body = (TESTS / "data" / "openai" / f"{name}.sse").read_bytes()
    crumbs = sends(HEAD, *(chunked(body[i : i + 3]) for i in range(0, len(body), 3)), chunked(b""))
    at_once = sends(HEAD + chunked(body) + chunked(b""))
    bit_by_bit, whole = await relayed(crumbs, limits=Limits()), await relayed(at_once, limits=Limits())
    assert bit_by_bit.state is whole.state is TurnState.finished
    assert bit_by_bit.message.parts == whole.message.parts
    assert bit_by_bit.message.metadata == whole.message.metadata


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], UpstreamUnansweredError),
        ([HEAD], UpstreamSilentError),
        ([HEAD, event("Half")], UpstreamSilentError),
        ([HEAD, event("Half"), chunked(b": still here\n\n")], UpstreamSilentError),
    ],
)
async def test_a_silent_upstream_is_given_up(pieces: Sequence[bytes], error: type[UpstreamError]) -> None:
    """Before its head, after it, and in the middle of the answer."""
    turn = await relayed(sends(*pieces, then=hang))
    assert type(turn.error) is error
    assert turn.chunks[-1] == Error(error_text=error.error_text)


async def test_bytes_of_any_kind_are_a_sign_of_life() -> None:
    """A queue that sends comments for longer than the limit is waited for."""

    async def queue(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD)
        for _ in range(6):
            await trio.sleep(0.05)
            await stream.send_all(chunked(b": in the queue\n\n"))
        await stream.send_all(event("At last.", "stop") + chunked(b""))

    assert (await relayed(queue, limits=impatient(silence_s=0.15))).message.text == "At last."


@pytest.mark.parametrize("then", [hang, reset])
async def test_after_its_finish_reason_an_answer_is_whole(then: Script) -> None:
    """Neither silence nor a reset makes it less, and nobody waits long for what need not come."""
    with trio.fail_after(5):
        turn = await relayed(
            sends(HEAD, event("All."), event("", "length"), then=then), limits=impatient(silence_s=60)
        )
    assert turn.state is TurnState.finished
    assert turn.message.text == "All."
    assert turn.chunks[-1] == Finish(finish_reason="length")


async def test_after_the_end_marker_nothing_is_waited_for() -> None:
    """A server that leaves the body open holds nobody."""
    marker = chunked(b"data: [DONE]\n\n")
    began = trio.current_time()
    turn = await relayed(sends(HEAD, event("All.", "stop"), marker, then=hang), limits=Limits())
    assert turn.state is TurnState.finished
    assert trio.current_time() - began < 2


@pytest.mark.parametrize("end", [b"", chunked(b"")])
@pytest.mark.parametrize("then", [None, reset])
async def test_without_its_end_an_answer_is_cut(end: bytes, then: Script | None) -> None:
    """By a close within the body, a reset, or a polite end of a body that says nothing of an end."""
    turn = await relayed(sends(HEAD, event("Half of a"), end, then=then))
    assert isinstance(turn.error, UpstreamTruncatedError)
    assert turn.message.text == "Half of a"


async def test_an_answer_that_is_not_streamed_is_taken_whole() -> None:
    """From a server that knows no streaming."""
    body = {"choices": [{"message": {"role": "assistant", "content": PLAIN}, "finish_reason": "stop"}]}
    turn = await relayed(answer_with(json.dumps(body).encode()))
    assert turn.state is TurnState.finished
    assert turn.message.text == PLAIN


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (answer_with(b"<h1>secret</h1>", "text/html"), NOT_UNDERSTOOD),
        (answer_with(b"secret"), NOT_UNDERSTOOD),
        (answer_with(b'{"error": {"message": "secret"}}'), "The model failed while it was answering."),
        (answer_with(b"{" + b" " * (5 << 20)), ANSWER_TOO_LONG),
        (answer_with(b"secret", "text/event-stream", more="content-encoding: gzip\r\n"), NOT_UNDERSTOOD),
        (answer_with(b"data: secret\n\n", "text/event-stream"), NOT_UNDERSTOOD),
        (answer_with(b"data: " + b"x" * (2 << 20), "text/event-stream"), ANSWER_TOO_LONG),
        (answer_with(gzip.compress(b"data: secret\n\n"), "text/event-stream"), NOT_UNDERSTOOD),
        (answer_with(b'{"\xff": "secret"}'), NOT_UNDERSTOOD),
        (
            answer_with(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', "text/event-stream"),
            NOT_UNDERSTOOD,
        ),
        (sends(b"HTTP/1.1 secret\r\n\r\n"), UpstreamError.error_text),
        (sends(), UpstreamError.error_text),
        (sends(HEAD, b"secret\r\n"), UpstreamTruncatedError.error_text),
    ],
)
async def test_what_is_no_answer_is_an_error(script: Script, sentence: str) -> None:
    """Whatever comes, the turn fails with a sentence of ours and the upstream's words go nowhere."""
    turn = await relayed(script, limits=impatient(silence_s=5))
    assert turn.state is TurnState.failed
    assert turn.chunks[-1] == Error(error_text=sentence)


async def test_an_endless_answer_is_given_up() -> None:
    """Whatever its bytes are."""

    async def endless(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD)
        while True:
            await stream.send_all(chunked(b": secret\n" * 100))

    turn = await relayed(endless, limits=impatient(answer_bytes=100_000))
    assert turn.chunks[-1] == Error(error_text=ANSWER_TOO_LONG)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (
            "401 Unauthorized",
            b'{"error": {"message": "Incorrect API key provided: sk-1."}}',
            UpstreamStatusError.error_text,
        ),
        ("302 Found", b"", UpstreamStatusError.error_text),
        ("204 No Content", b"", UpstreamStatusError.error_text),
        ("400 Bad Request", b'{"error": {"code": "context_length_exceeded"}}', TOO_LONG),
        ("413 Too Large", b"<html>", TOO_LONG),
        ("503 Busy", b'{"error": "\xff"}', BUSY),
        ("500 Oops", b"x" * 100_000, UpstreamStatusError.error_text),
    ],
)
async def test_an_error_status_is_an_error(status: str, body: bytes, sentence: str) -> None:
    """The status and a little of the body are for the log; the key is not. A redirect is not followed."""
    async with scripted(answer_with(body, status=status, more="location: /v2\r\n")) as server:
        turn = await run_turn(relay(server.url, "m", api_key="sk-1", limits=impatient()))
    assert isinstance(turn.error, UpstreamStatusError)
    assert turn.error.status == int(status[:3])
    assert turn.chunks[-1] == Error(error_text=sentence)
    assert "sk-1" not in str(turn.error)
    assert len(str(turn.error)) < 3_000
    assert len(server.requests) == 1


async def test_nobody_there_is_an_error() -> None:
    """Connection refused."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        turn = await run_turn(relay(f"http://127.0.0.1:{free.getsockname()[1]}", "m", limits=impatient()))
    assert turn.chunks[-1] == Error(error_text=UpstreamError.error_text)


class UnreachableFactory(trio.abc.SocketFactory):
    """Makes sockets whose connection never comes about."""

    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> Any:
        """See `trio.abc.SocketFactory`."""
        made = trio.socket.from_stdlib_socket(socket.socket(family, type, proto))
        made.connect = self._connect  # type: ignore[method-assign]
        return made

    @staticmethod
    async def _connect(address: object) -> None:
        await trio.sleep_forever()


async def test_an_unreachable_upstream_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """After the deadline of the connection, not that of silence."""
    before = trio.socket.set_custom_socket_factory(UnreachableFactory())
    try:
        turn = await run_turn(relay("http://192.0.2.1", "m"))
    finally:
        trio.socket.set_custom_socket_factory(before)
    assert turn.chunks[-1] == Error(error_text=UpstreamError.error_text)
    assert trio.current_time() == pytest.approx(10, abs=1)


async def test_a_stopped_turn_closes_the_request_at_once() -> None:
    """So that the model stops working."""
    closed = trio.Event()

    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD + event("Once upon a time"))
        assert await stream.receive_some() == b""
        closed.set()

    async with scripted(talk) as server, open_hub() as hub:
        turn = await hub.start_turn("chat", relay(server.url, "m"), [user_message("Hello")])
        with turn.follow() as subscription:
            while not any(isinstance(entry.chunk, TextDelta) for entry in await subscription.next_batch(10)):
                pass
        with trio.fail_after(0.2):
            assert await turn.stop() is TurnState.stopped
            await closed.wait()


async def test_an_open_upstream_uses_its_connection_again() -> None:
    """Three turns one after the other: one connection, because each body was read to its end."""
    connections = 0

    async def keep_alive(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while True:
            await stream.send_all(HEAD + event("ok", "stop") + chunked(b"data: [DONE]\n\n") + chunked(b""))
            await read_request(stream)

    async with scripted(keep_alive) as server, open_upstream(server.url, "m") as upstream:
        for _ in range(3):
            assert (await run_turn(upstream.answer)).message.text == "ok"
    assert connections == 1


async def test_the_command_line_serves_an_upstream() -> None:
    """At once, with signs of life, and two turns over one connection; the key is the environment's."""
    connections = 0

    async def keep_alive(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while True:
            await trio.sleep(0.25)
            await stream.send_all(HEAD + event("ok", "stop") + chunked(b"data: [DONE]\n\n") + chunked(b""))
            server.requests.append(await read_request(stream))

    async with scripted(keep_alive) as server:
        options = ["--upstream", server.url, "--model", "m", "--thinking-s", "0.1"]
        async with open_served(*options, PENSTOCK_UPSTREAM_API_KEY="sk-1") as url:
            for _ in range(2):
                recording = await record(url, "Hello")
                assert [chunk.kind for chunk in recording.chunks][1:3] == ["data-thinking"] * 2
                assert told(recording) == (200, "ok", ENDED)
    assert connections == 1
    assert len(server.requests) == 2
    assert all(b"authorization: bearer sk-1" in request.lower() for request in server.requests)


@pytest.mark.parametrize(
    ("protocol", "path"),
    [("openai", "/v1/chat/completions"), ("responses", "/v1/responses"), ("anthropic", "/v1/messages")],
)
async def test_the_command_line_serves_a_models_api(mock_url: str, protocol: str, path: str) -> None:
    """Of its host alone, by the protocol's usual path."""
    host = mock_url.removesuffix("/v1")
    options = ["--upstream", host, "--protocol", protocol, "--model", f"of-{protocol}"]
    async with open_served(*options) as url, httpx2.AsyncClient(trust_env=False, verify=False) as client:
        recording = await record(url, "plain")
        *_, request = (await client.get(f"{host}/__aimock/journal")).json()
    assert told(recording) == (200, PLAIN, ENDED)
    assert recording.message["metadata"]["model"] == f"of-{protocol}"
    assert (request["path"], request["body"]["model"]) == (path, f"of-{protocol}")


async def test_the_command_line_serves_a_chat_service() -> None:
    """A private gateway, with the id of its conversation."""
    frames: list[dict[str, Any]] = [
        {"kind": "conversation", "id": "c-17"},
        *({"kind": "chunk", "text": f"{word} "} for word in PLAIN.split(" ")),
        {"kind": "done", "finish_reason": "stop"},
    ]
    pieces = [chunked(b"data: %b\n\n" % json.dumps(frame).encode()) for frame in frames]
    async with (
        scripted(sends(HEAD, *pieces, chunked(b""))) as server,
        open_served("--upstream", server.url, "--protocol", "chat") as url,
    ):
        recording = await record(url, "Why?")
    assert told(recording) == (200, f"{PLAIN} ", ENDED)
    assert recording.message["metadata"] == {"upstream": {"protocol": "chat", "id": "c-17"}}
    assert server.requests[0].startswith(b"POST /v1/chat HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:11434", "http://h:11434/v1/chat/completions"),
        ("http://h/", "http://h/v1/chat/completions"),
        ("https://h/api/v1/", "https://h/api/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        (
            "https://h/openai/deployments/d?api-version=1",
            "https://h/openai/deployments/d/chat/completions?api-version=1",
        ),
    ],
)
def test_the_url_may_be_the_base_or_the_whole(base: str, url: str) -> None:
    """As people find it in their server's documentation."""
    assert str(OpenAIProtocol("m").url(httpx2.URL(base))) == url


@pytest.mark.parametrize("url", ["", "h:80/v1", "ftp://h/v1", "file:///v1", "http://", "http://h:port"])
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    """Not at the first turn."""
    with pytest.raises(ValueError, match="the upstream's URL"):
        relay(url, "m")


async def test_a_key_that_no_header_holds_is_refused_without_being_shown() -> None:
    """A line end in it would be a header of its own."""
    with pytest.raises(ValueError, match="API key") as caught:
        async with open_upstream("http://h", "m", api_key="sk-1\r\nx: y"):
            pass
    assert "sk-1" not in str(caught.value)


def test_the_environments_key_goes_where_it_belongs() -> None:
    """Ours to any upstream; OpenAI's to OpenAI alone."""
    openai, local = httpx2.URL("https://api.openai.com/v1"), httpx2.URL("http://127.0.0.1:8080/v1")
    both = {"PENSTOCK_UPSTREAM_API_KEY": "ours\n", "OPENAI_API_KEY": "theirs"}
    assert environment_api_key(local, both) == environment_api_key(openai, both) == "ours"
    theirs = {"OPENAI_API_KEY": "theirs"}
    assert environment_api_key(openai, theirs) == "theirs"
    assert environment_api_key(local, theirs) == ""
    assert environment_api_key(openai, {}) == ""

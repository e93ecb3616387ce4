"""`penstock send`: what a person and a pipe see of an answer, and the exit status."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from penstock import AnswerError, Turn, chat_app
from penstock.cli.send import send
from penstock.cli.session import BROKEN_PIPE, INTERRUPTED
from penstock.limits import ClientLimits
from penstock.testing import open_server
from penstock.wire.chunks import Abort, Custom

Answer = Callable[[Turn], Awaitable[None]]


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


class Said(NamedTuple):
    """What a run of the command left behind."""

    status: int
    out: str
    err: str


async def sent(
    url: str, text: str = "Hello", *, tty: bool = False, raw: bool = False, chat_id: str | None = None
) -> Said:
    """Send a message and keep what is printed."""
    out, err = Terminal() if tty else io.StringIO(), io.StringIO()
    status = await send(url, text, chat_id=chat_id, raw=raw, stdout=out, stderr=err)
    return Said(status, out.getvalue(), err.getvalue())


async def answered(answer: Answer, *, tty: bool = False, raw: bool = False) -> Said:
    """Serve a producer, send it a message, and keep what is printed."""
    async with open_server(chat_app(answer)) as url:
        return await sent(url, tty=tty, raw=raw)


async def echo(turn: Turn) -> None:
    """Say what was said, and how much there is in the chat."""
    async with turn.text() as text:
        await text.write(f"{len(turn.messages)}: ")
        await text.write(turn.prompt)


async def test_an_answer_is_printed() -> None:
    """Alone, with a line end, and the status is good."""
    assert await answered(echo) == Said(0, "1: Hello\n", "")


async def test_words_are_printed_as_they_come() -> None:
    """The first is there while the second is not yet made."""
    printed, goon = trio.Event(), trio.Event()

    class Watched(io.StringIO):
        def flush(self) -> None:
            if self.getvalue() == "one ":
                printed.set()

    out = Watched()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("one ")
            await goon.wait()
            await text.write("two")

    async with open_server(chat_app(answer)) as url, trio.open_nursery() as nursery:

        async def run() -> None:
            assert await send(url, "Hello", stdout=out, stderr=io.StringIO()) == 0

        nursery.start_soon(run)
        with trio.fail_after(5):
            await printed.wait()
        goon.set()
    assert out.getvalue() == "one two\n"


async def test_bytes_that_are_no_text_are_sent_as_far_as_they_are() -> None:
    """As the interpreter hands over a command line of another encoding."""
    async with open_server(chat_app(echo)) as url:
        assert (await sent(url, "caf\udce9")).out == "1: caf?\n"


@pytest.mark.parametrize("path", ["", "/", "/api/chat"])
async def test_the_url_may_be_the_root_or_the_endpoint(path: str) -> None:
    """With or without http://."""
    async with open_server(chat_app(echo)) as url:
        assert (await sent(url + path)).out == "1: Hello\n"
        assert (await sent(url.removeprefix("http://") + path)).out == "1: Hello\n"


async def test_a_chat_goes_on() -> None:
    """With an id, the server's history is kept and added to."""
    async with open_server(chat_app(echo)) as url:
        assert (await sent(url, "a", chat_id="c")).out == "1: a\n"
        assert (await sent(url, "b", chat_id="c")).out == "3: b\n"
        assert (await sent(url, "c")).out == "1: c\n"


async def test_a_failed_answer_is_a_failure() -> None:
    """What came is printed, the error goes to stderr."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half")
        raise AnswerError("No more\x1b[31m of it.")

    assert await answered(answer) == Said(1, "Half\n", "No more[31m of it.\n")


async def test_a_stopped_answer_is_a_failure() -> None:
    """It is not whole."""

    async def answer(turn: Turn) -> None:
        await turn.write(Abort(reason="enough"))

    assert await answered(answer) == Said(1, "", "The answer was stopped: enough\n")


async def test_a_terminal_shows_reasoning_dimmed_and_notes_on_their_own_lines() -> None:
    """Nothing runs into anything else."""

    async def answer(turn: Turn) -> None:
        async with turn.reasoning() as thought:
            await thought.write("Hm.")
        async with turn.text() as text:
            await text.write("Look: ")
            async with turn.tool_call("look", {"at": "é"}) as call:
                await call.output({"n": 1}, preliminary=True)
                await call.output({"n": 2})
            await text.write("two.")
        async with turn.tool_call("fail", {}) as call:
            await call.error("no\nluck")
        await turn.source("https://example.org", title="Example")
        await turn.source_document("Paper", "application/pdf")
        await turn.file("data:image/png;base64," + "A" * 1_000, "image/png")
        await turn.data("x", [1])
        await turn.write(Custom(kind_="some.thing"))
        await turn.metadata({"a": 1})

    said = await answered(answer, tty=True)
    assert said.status == 0
    assert said.out == "\x1b[2mHm.\x1b[22m\nLook: \ntwo.\n"
    lines = said.err.splitlines()
    assert lines[:6] == [
        '[tool] look {"at":"é"}',
        '[tool] so far: {"n":1}',
        '[tool] output: {"n":2}',
        "[tool] fail {}",
        "[tool] failed: no luck",
        "[source] Example https://example.org",
    ]
    assert lines[6] == "[source] Paper (application/pdf)"
    assert lines[7].startswith("[file] image/png data:image/png;base64,AAA")
    assert len(lines[7]) == 200
    assert lines[8:] == ["[data-x] [1]"]

    piped = await answered(answer)
    assert piped.out == "Look: two.\n"
    assert piped.err == said.err


async def test_what_comes_cannot_touch_the_terminal() -> None:
    """No escape, no carriage return, no turned direction, of text or of notes; line ends and tabs stay."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("a\x1b[2Jb\rc\x9b1md\u202ee\x7f\x00\ta\n")
        await turn.source("https://example.org/\x1b]0;t\x07", title="x\u2066y")

    assert await answered(answer, tty=True) == Said(
        0, "a[2Jbc1mde\ta\n", "[source] xy https://example.org/]0;t\n"
    )


async def test_raw_prints_the_events() -> None:
    """One a line, as they come, and nothing else."""
    said = await answered(echo, raw=True)
    lines = said.out.splitlines()
    assert said.status == 0
    assert [line.split('"')[3] for line in lines[:-1]] == [
        "start",
        "text-start",
        "text-delta",
        "text-delta",
        "text-end",
        "finish",
    ]
    assert lines[-1] == "[DONE]"


async def test_a_refusal_is_a_sentence() -> None:
    """The server's own."""
    async with open_server(chat_app(echo)) as url:
        said = await sent(url, chat_id="no good")
        assert (said.status, said.out) == (1, "")
        assert said.err.startswith("A chat id must be")
        assert (await sent(f"{url}/nowhere")).status == 1


async def test_nobody_there_is_a_sentence() -> None:
    """Connection refused, with the place that refused it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert await sent(f"http://127.0.0.1:{port}") == Said(
            1, "", f"There is no answer from 127.0.0.1:{port}.\n"
        )


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port", "//"])
async def test_a_wrong_url_is_a_sentence(url: str) -> None:
    """Nothing is sent."""
    said = await sent(url)
    assert (said.status, said.out) == (1, "")
    assert "URL" in said.err


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
HALF = b'data: {"type":"text-start","id":"t"}\n\ndata: {"type":"text-delta","id":"t","delta":"Half"}\n\n'


@asynccontextmanager
async def saying(answer: bytes, *, hangs: bool = False) -> AsyncIterator[str]:
    """Serve fixed bytes, whatever is asked."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            if hangs:
                await trio.sleep_forever()
            await stream.send_eof()
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\r\n" + HALF,
        HEAD + b"content-length: 9999\r\n\r\n" + HALF,
        HEAD + b"\r\n" + HALF + b"data: [DONE]\n\n",
    ],
)
async def test_a_cut_stream_is_a_failure(answer: bytes) -> None:
    """However politely it ended, what has no terminal chunk is not whole."""
    async with saying(answer) as url:
        assert await sent(url) == Said(1, "Half", "The stream was cut: the answer is not complete.\n")


async def test_what_is_no_stream_is_a_sentence() -> None:
    """Of another type, or of events that are no chunks."""
    async with saying(HEAD.replace(b"event-stream", b"html") + b"\r\n<html>") as url:
        assert await sent(url) == Said(1, "", "The server did not answer with an event stream.\n")
    async with saying(HEAD + b'\r\ndata: {"type":"nope"}\n\n') as url:
        said = await sent(url)
        assert said.status == 1
        assert said.err.startswith("The server sent something that can't be understood")


async def test_silence_can_be_given_up() -> None:
    """After as long as the caller says."""
    err = io.StringIO()
    limits = ClientLimits(silence_s=0.1)
    async with saying(HEAD + b"\r\n" + HALF, hangs=True) as url:
        assert await send(url, "Hello", limits=limits, stdout=io.StringIO(), stderr=err) == 1
    assert err.getvalue() == "The server has sent nothing for 0.1 seconds.\n"


async def test_a_reader_that_leaves_is_no_error() -> None:
    """Not a word, and the status that a shell expects."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    err = io.StringIO()
    async with open_server(chat_app(echo)) as url:
        assert await send(url, "Hello", stdout=Gone(), stderr=err) == BROKEN_PIPE
    assert err.getvalue() == ""


async def test_a_terminal_of_another_alphabet_gets_what_it_can_show() -> None:
    """Instead of an exception in the middle of the answer."""
    buffer = io.BytesIO()
    out = io.TextIOWrapper(buffer, encoding="latin-1")
    async with open_server(chat_app(echo)) as url:
        assert await send(url, "é🦊", stdout=out, stderr=io.StringIO()) == 0
    assert buffer.getvalue() == b"1: \xe9?\n"


async def test_ctrl_c_ends_it_at_once_without_a_traceback() -> None:
    """In the middle of an answer, from the real command."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("one ")
            await trio.sleep_forever()

    command = [str(Path(sys.executable).parent / "penstock"), "send"]
    async with open_server(chat_app(answer)) as url, trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(run, [*command, url, "Hello"])
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(20):
            assert await process.stdout.receive_some() == b"one "
            process.send_signal(signal.SIGINT)
            assert await process.stderr.receive_some() == b""
            assert await process.wait() == INTERRUPTED

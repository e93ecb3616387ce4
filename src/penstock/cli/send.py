"""`penstock send`: one message to a chat endpoint, and the answer on the terminal as it comes.

The answer's text goes to stdout and everything said about it to stderr, so that a pipe gets the answer alone. What
comes from the server is untrusted: nothing of it can move the cursor, set a title or hide what follows.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any, TextIO

import httpx2

from penstock.errors import ProtocolError, RemoteProtocolError
from penstock.relay.http import http_client, open_body
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    File,
    Finish,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningFile,
    SourceDocument,
    SourceUrl,
    TextDelta,
    TextEnd,
    ToolApprovalRequest,
    ToolInputAvailable,
    ToolInputError,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.codec import decode_chunk, encode_json
from penstock.wire.sse_parser import SseParser

CONNECT_S = 10.0
"""Deadline of a connection."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells count."""

BROKEN_PIPE = 141
"""Exit status when the reader of stdout left: 128 + SIGPIPE."""

_NOTE_CHARACTERS = 200
_ERROR_BODY_BYTES = 2_000

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"

_UNSAFE = dict.fromkeys(
    [
        *(code for code in range(0x20) if chr(code) not in "\n\t"),
        *range(0x7F, 0xA0),
        # What turns the direction of text round, and so shows it otherwise than it is.
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ]
)


async def send(
    url: str,
    text: str,
    *,
    chat_id: str | None = None,
    raw: bool = False,
    silence_s: float | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Send a message and print the answer; return the exit status.

    0 only if the whole answer came; 1 if it failed, was stopped or cut, or could not be asked for; `INTERRUPTED` and
    `BROKEN_PIPE` as they say.

    Args:
        url: a server's root, or its chat endpoint.
        text: the user's message.
        chat_id: the chat to go on with, whose history the server has; None begins one.
        raw: print each event's data instead, one a line.
        silence_s: how long the server may send nothing, not even a comment; None for ever.
        stdout: where the answer goes.
        stderr: where notes and errors go.

    Cancelled, it closes the connection and prints nothing more.
    """
    printer = _Printer(stdout or sys.stdout, stderr or sys.stderr, raw)
    status = INTERRUPTED
    try:
        status = await _send(url, _request(text, chat_id), printer, silence_s)
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        status = BROKEN_PIPE
    return status


def _request(text: str, chat_id: str | None) -> bytes:
    message = {
        "id": f"user_{secrets.token_hex(8)}",
        "role": "user",
        # Bytes of the command line that are not UTF-8 come as lone surrogates, which JSON does not have.
        "parts": [{"type": "text", "text": text.encode("utf-8", "replace").decode()}],
    }
    if chat_id is None:
        # The form that every AI SDK endpoint knows.
        chat: dict[str, Any] = {"id": f"chat_{secrets.token_hex(8)}", "messages": [message]}
    else:
        # The whole history is the server's; sent as `messages`, this one would replace it.
        chat = {"id": chat_id, "message": message}
    return encode_json({**chat, "trigger": "submit-message"})


async def _send(url: str, body: bytes, printer: _Printer, silence_s: float | None) -> int:
    try:
        endpoint = _endpoint(url)
    except ValueError as exc:
        printer.error(str(exc))
        return 1
    headers = {
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-penstock-sdk": "7",
    }
    try:
        async with http_client(endpoint, connect_s=CONNECT_S, silence_s=silence_s) as client:
            request = client.build_request("POST", endpoint, content=body, headers=headers)
            response = await client.send(request, stream=True)
            async with open_body(response) as pieces:
                await _print(response, pieces, printer)
    except (httpx2.ConnectError, httpx2.ConnectTimeout):
        printer.error(f"There is no answer from {endpoint.netloc.decode()}.")
    except httpx2.TimeoutException:
        printer.error(f"The server has sent nothing for {silence_s:g} seconds.")
    except httpx2.HTTPError as exc:
        printer.error(f"The request failed: {type(exc).__name__}.")
    except RemoteProtocolError as exc:
        printer.error(f"The server sent something that can't be understood: {exc}")
    finally:
        printer.close()
    return 0 if printer.complete and not printer.failed else 1


def _endpoint(url: str) -> httpx2.URL:
    """Return the chat endpoint's URL. Raises ValueError with a sentence."""
    try:
        endpoint = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL as exc:
        raise ValueError("That URL can't be read.") from exc
    if endpoint.scheme not in ("http", "https") or not endpoint.host:
        raise ValueError("The URL must begin with http:// or https:// and name a host.")
    return endpoint.copy_with(path="/api/chat") if endpoint.path in ("", "/") else endpoint


async def _print(response: httpx2.Response, pieces: AsyncIterator[bytes], printer: _Printer) -> None:
    if response.status_code != 200:
        printer.error(await _refusal(response.status_code, pieces))
        return
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        printer.error("The server did not answer with an event stream.")
        return
    parser = SseParser()
    try:
        async for piece in pieces:
            for event in parser.feed(piece):
                printer.event(event.data)
            printer.flush()
    except httpx2.TimeoutException:
        if not printer.ended:
            raise
    except httpx2.TransportError:
        pass  # what matters is whether the answer had ended
    if not printer.ended:
        printer.error("The stream was cut: the answer is not complete.")


async def _refusal(status: int, pieces: AsyncIterator[bytes]) -> str:
    """Read the sentence that an error status comes with."""
    body = bytearray()
    while len(body) < _ERROR_BODY_BYTES and (piece := await anext(pieces, b"")):
        body += piece
    sentence = body[:_ERROR_BODY_BYTES].decode("utf-8", "replace").strip()
    return sentence or f"The server answered with status {status}."


class _Printer:
    """Puts an answer on a terminal, or into a pipe.

    Its writes block. That is right here: this process has nothing else to do, and Ctrl-C reaches a blocked write.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, raw: bool) -> None:
        self._out = stdout
        self._err = stderr
        self._raw = raw
        self._tty = stdout.isatty()
        self._encoding = stdout.encoding or "utf-8"
        self._dim = False
        self._column = 0
        self.complete = False
        """Whether the answer ended well."""
        self.failed = False
        """Whether anything was said with `error`."""

    @property
    def ended(self) -> bool:
        """Whether the answer ended, one way or another."""
        return self.complete or self.failed

    def event(self, data: str) -> None:
        """Print an event. Raises RemoteProtocolError if it is no chunk."""
        if self._raw:
            self._write(data + "\n")
        if data != "[DONE]":
            self._chunk(decode_chunk(data.encode("utf-8", "surrogatepass")))

    def _chunk(self, chunk: AnyChunk) -> None:
        match chunk:
            case Finish():
                self.complete = True
            case Abort(reason=reason):
                self.error(f"The answer was stopped: {reason}" if reason else "The answer was stopped.")
            case Error(error_text=text):
                self.error(text)
            case _ if self._raw:
                pass
            case TextDelta(delta=delta):
                self._write(delta)
            case ReasoningDelta(delta=delta):
                if self._tty:
                    self._set_dim(True)
                    self._write(delta)
            case TextEnd() | ReasoningEnd():
                self._set_dim(False)
                self._end_line()
            case _:
                if note := _note(chunk):
                    self._end_line_on_terminal()
                    self._say(note)

    def error(self, sentence: str) -> None:
        """Say why the answer is not whole."""
        self.failed = True
        self.close()
        self._say(sentence)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._set_dim(False)
        self._end_line_on_terminal()
        self.flush()

    def flush(self) -> None:
        """Show what was written."""
        self._out.flush()

    def _say(self, line: str) -> None:
        line = " ".join(line.translate(_UNSAFE).split())
        if len(line) > _NOTE_CHARACTERS:
            line = line[: _NOTE_CHARACTERS - 1] + "…"
        self.flush()
        encoding = self._err.encoding or "utf-8"
        self._err.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._err.flush()

    def _write(self, text: str) -> None:
        text = text.translate(_UNSAFE).encode(self._encoding, "replace").decode(self._encoding)
        if text:
            self._out.write(text)
            self._column = 0 if text.endswith("\n") else 1

    def _set_dim(self, dim: bool) -> None:
        if dim is not self._dim:
            self._dim = dim
            self._out.write(_DIM if dim else _PLAIN)

    def _end_line(self) -> None:
        if self._column:
            self._write("\n")

    def _end_line_on_terminal(self) -> None:
        if self._tty:
            self._end_line()


def _note(chunk: AnyChunk) -> str | None:
    """Say in one line what there is beside the text."""
    match chunk:
        case ToolInputAvailable(tool_name=name, input=value):
            return f"[tool] {name} {_json(value)}"
        case ToolOutputAvailable(output=value, preliminary=preliminary):
            return f"[tool] {'so far' if preliminary is True else 'output'}: {_json(value)}"
        case ToolInputError(error_text=text) | ToolOutputError(error_text=text):
            return f"[tool] failed: {text}"
        case ToolOutputDenied():
            return "[tool] not allowed"
        case ToolApprovalRequest():
            return "[tool] waits for an approval"
        case SourceUrl(url=url, title=title):
            return f"[source] {title} {url}" if isinstance(title, str) else f"[source] {url}"
        case SourceDocument(title=title, media_type=media_type):
            return f"[source] {title} ({media_type})"
        case File(url=url, media_type=media_type) | ReasoningFile(url=url, media_type=media_type):
            return f"[file] {media_type} {url}"
        case Data(type=kind, data=value):
            return f"[{kind}] {_json(value)}"
    return None


def _json(value: Any) -> str:
    try:
        return encode_json(value).decode()
    except ProtocolError:
        return "…"

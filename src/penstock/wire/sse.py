"""Event-stream frames: what a server writes.

This file knows the framing of WHATWG HTML 9.2 and nothing of what an event says. A frame is a whole event, blank line
included, so frames may be joined and cut between frames at will.

Whoever can put a line end into a field writes events of their own (CWE-93). So a line end or NUL in `event` or `id`,
or a line end in a comment, is refused, and `data` is split at exactly the line ends that a parser knows: CR, LF and
CRLF. U+2028, U+0085, VT and FF are ordinary characters there, which is why `str.splitlines` is not used.
"""

from __future__ import annotations

import re

from penstock.errors import LocalProtocolError

DONE = b"data: [DONE]\n\n"
"""The last frame of an AI SDK stream. Its client skips it; other clients wait for it."""

RETRY_MS_MAX = 999_999_999
"""The longest `retry`, eleven days: more digits than that are not meant as a delay."""

_LINE_END = re.compile("\r\n|\r|\n")
_NOT_IN_FIELD = re.compile("[\r\n\0]")


def chunk_frame(json: bytes, id: bytes = b"") -> bytes:
    """Frame one encoded chunk.

    The hot path, so nothing is checked: `json` comes from `codec.encode`, which never writes a raw CR or LF, and `id`
    is a position, which was checked when its turn began.

    Source: WHATWG HTML 9.2.5; `ai` writes the same frame without `id`.
    """
    if id:
        return b"id: %b\ndata: %b\n\n" % (id, json)
    return b"data: %b\n\n" % json


def event(data: str | bytes, *, event: str = "", id: str = "", retry_ms: int | None = None) -> bytes:
    """Frame any event; `data` of several lines stays one event, and its line ends become LF.

    Args:
        data: text, or text in UTF-8.
        event: the event's type; empty for the default, `message`.
        id: what a reconnecting client sends back as `Last-Event-ID`; empty to leave it as it is.
        retry_ms: how long the client waits before it reconnects, 0 to 999,999,999 ms.

    Raises:
        LocalProtocolError: a field would break the framing or has no UTF-8 form.

    Source: WHATWG HTML 9.2.5 and 9.2.6.
    """
    if _NOT_IN_FIELD.search(event):
        raise LocalProtocolError("an SSE event type can't hold CR, LF or NUL")
    if _NOT_IN_FIELD.search(id):
        raise LocalProtocolError("an SSE id can't hold CR, LF or NUL")
    lines = []
    if event:
        lines.append(f"event: {event}\n")
    if id:
        lines.append(f"id: {id}\n")
    if retry_ms is not None:
        if type(retry_ms) is not int or not 0 <= retry_ms <= RETRY_MS_MAX:
            raise LocalProtocolError(f"retry_ms is an integer from 0 to {RETRY_MS_MAX}")
        lines.append(f"retry: {retry_ms}\n")
    try:
        text = data if isinstance(data, str) else data.decode()
        lines += [f"data: {line}\n" for line in _LINE_END.split(text)]
        lines.append("\n")
        return "".join(lines).encode()
    except UnicodeError as error:
        raise LocalProtocolError("an SSE event holds text that has no UTF-8 form") from error


def comment(text: str) -> bytes:
    """Frame a comment: bytes that keep the connection alive and that every client ignores.

    Raises:
        LocalProtocolError: the text holds CR or LF, or has no UTF-8 form.
    """
    if "\r" in text or "\n" in text:
        raise LocalProtocolError("an SSE comment can't hold CR or LF")
    try:
        return f": {text}\n\n".encode()
    except UnicodeError as error:
        raise LocalProtocolError("an SSE comment holds text that has no UTF-8 form") from error

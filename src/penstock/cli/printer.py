"""Puts an answer on a terminal, or into a pipe.

Text goes to stdout and everything said about it to stderr, so that a pipe gets the answer alone. What comes from the
server is untrusted: nothing of it can move the cursor, set a title or hide what follows.
"""

from __future__ import annotations

from typing import Any, TextIO

from penstock.errors import ProtocolError
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    File,
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
from penstock.wire.codec import encode_json

_NOTE_CHARACTERS = 200

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


class Printer:
    """What a command writes to.

    Its writes block. That is right here: this process has nothing else to do, and Ctrl-C reaches a blocked write.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._out = stdout
        self._err = stderr
        self._tty = stdout.isatty()
        self._encoding = stdout.encoding or "utf-8"
        self._dim = False
        self._column = 0
        self.failed = False
        """Whether anything was said with `error`."""

    def chunk(self, chunk: AnyChunk) -> None:
        """Print a chunk: text as text, a bad end as an error, the rest as notes."""
        match chunk:
            case Abort(reason=reason):
                self.error(f"The answer was stopped: {reason}" if reason else "The answer was stopped.")
            case Error(error_text=text):
                self.error(text)
            case TextDelta(delta=delta):
                self._write(delta)
            case ReasoningDelta(delta=delta):
                if self._tty:
                    self._set_dim(True)
                    self._write(delta)
            case TextEnd() | ReasoningEnd():
                self.end_line()
            case _:
                if note := _note(chunk):
                    self.note(note)

    def json(self, value: object) -> None:
        """Print a value as a line of JSON."""
        self._write(encode_json(value).decode() + "\n")

    def text(self, text: str) -> None:
        """Print text."""
        self._write(text)

    def end_line(self) -> None:
        """End a line that was begun."""
        self._set_dim(False)
        self._end_line()

    def note(self, line: str) -> None:
        """Say something about the text, in one line."""
        self._set_dim(False)
        self._end_line_on_terminal()
        self._say(line)

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

"""Every exception that penstock raises, as one tree.

    PenstockError
    ├── ProtocolError                 (abstract)
    │   ├── LocalProtocolError        we, or the program using us, broke the protocol: a bug
    │   └── RemoteProtocolError       the peer broke it; carries an HTTP status for the answer
    │       └── LimitExceededError    the peer passed a number of `limits.py`
    ├── TurnError
    │   ├── TurnConflictError         another message's turn is running in this chat
    │   ├── TurnNotFoundError         no such chat or turn
    │   ├── TurnSealedError           a write after the turn ended
    │   ├── AnswerError               raise it in a producer: its text is shown to the user
    │   └── ToolError                 raise it in a tool of `run_tools`: its text is for the model and the user
    ├── JournalError
    │   ├── PositionLostError         the position is trimmed, or of another epoch
    │   └── StoreUnavailableError     the journal's store can't be used now
    ├── ConnectionClosedError         the connection is closed; carries the first reason
    ├── ConnectionFullError           `send_nowait` found no room
    ├── ClientGoneError               an ASGI `send` after the client has left; also an OSError
    ├── AppStartupError               the ASGI app refused to start
    ├── RequestError                  a request that `penstock.client` made came to nothing
    │   ├── RequestRefusedError       the server answered with an error status, and a sentence
    │   ├── ServerUnreachableError    no connection, or it broke before the answer
    │   └── StreamLostError           a stream broke off, and it can't be gone on with
    └── UpstreamError                 a model upstream failed; carries a sentence fit for the user
        ├── UpstreamUnreachableError  no connection, or it broke before the answer began
        ├── UpstreamStatusError       it answered with an error status
        │   └── UpstreamRedirectError it sends us to where we don't go
        ├── UpstreamSilentError       it sent nothing for too long
        │   └── UpstreamUnansweredError   from the beginning: not one byte of an answer
        ├── UpstreamTruncatedError    it stopped before its own end marker
        ├── UpstreamUnreadableError   what it sent is no answer of its protocol
        └── UpstreamTooLongError      a line, an event or the answer passed a number of `limits.py`

Expected ends (the client left, the user pressed Stop) are values, `CloseReason` and `Outcome`, not exceptions.
Foreign exceptions are translated once, at the border where they enter, with `raise … from`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.closing import CloseReason


class PenstockError(Exception):
    """The root of all that penstock raises on purpose."""


class ProtocolError(PenstockError):
    """Somebody broke a protocol. Never raised itself; see its two children for whose fault it is."""


class LocalProtocolError(ProtocolError):
    """This side broke the protocol: an illegal chunk, a value that has no JSON form, a forged SSE field."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that can't be accepted.

    The message is one human sentence without any of the peer's bytes, so that it can be the body of the answer.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class LimitExceededError(RemoteProtocolError):
    """The peer passed a limit: too long, too deep, too many."""

    def __init__(self, message: str, *, status: int = 413) -> None:
        super().__init__(message, status=status)


class TurnError(PenstockError):
    """Something about a turn."""


class TurnConflictError(TurnError):
    """Another message's turn is running in this chat."""


class TurnNotFoundError(TurnError):
    """There is no such chat or turn."""


class TurnSealedError(TurnError):
    """The turn has ended: nothing more can be written to it."""


class AnswerError(TurnError):
    """Raised by a producer to end its turn as failed with a text that the user may read."""

    def __init__(self, error_text: str) -> None:
        super().__init__(error_text)
        self.error_text = error_text


class ToolError(TurnError):
    """Raised by a tool of `run_tools` to fail its call, not the turn, with a text that the model and the user may read."""

    def __init__(self, error_text: str) -> None:
        super().__init__(error_text)
        self.error_text = error_text


class JournalError(PenstockError):
    """Something about the journal."""


class PositionLostError(JournalError):
    """The entries after this position can't be had: trimmed, or the position is of another epoch."""


class StoreUnavailableError(JournalError):
    """The journal's store can't be reached or can't write."""


class ConnectionClosedError(PenstockError):
    """The connection is closed. `reason` is the first cause and never changes afterwards."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(f"the connection is closed: {reason.value}")
        self.reason = reason


class ConnectionFullError(PenstockError):
    """The connection's channel has no room now. Wait with `send`, or drop the chunk."""


class ClientGoneError(PenstockError, OSError):
    """The client has left: nobody is there to be answered or written to.

    An `OSError`, as ASGI asks: frameworks that stop a response when `send` raises one, stop here too.
    """


class AppStartupError(PenstockError):
    """The ASGI app refused to start, or took too long; the message is its own."""


class RequestError(PenstockError):
    """A request that `penstock.client` made came to nothing. The message is one sentence for a person."""


class RequestRefusedError(RequestError):
    """The server answered with an error status. The message is its own sentence."""

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        """When the server wants to be asked again; None if it didn't say."""


class ServerUnreachableError(RequestError):
    """No connection could be made, or it broke before the whole answer was there."""


class StreamLostError(RequestError):
    """A stream broke off before its end and can't be gone on with: what came is not the whole answer."""


class UpstreamError(PenstockError):
    """A model upstream failed. `error_text` is a sentence for the user; the exception's own text is for the log."""

    error_text = "The model could not be reached."

    def __init__(self, message: str, *, error_text: str | None = None) -> None:
        super().__init__(message)
        if error_text is not None:
            self.error_text = error_text


class UpstreamUnreachableError(UpstreamError):
    """No connection to the upstream within `connect_s`, or it broke before an answer began."""


class UpstreamStatusError(UpstreamError):
    """The upstream answered with an error status."""

    error_text = "The model refused the request."

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after_s: float | None = None,
        error_text: str | None = None,
    ) -> None:
        super().__init__(message, error_text=error_text)
        self.status = status
        self.retry_after_s = retry_after_s
        """When the upstream wants to be asked again; None if it didn't say."""


class UpstreamRedirectError(UpstreamStatusError):
    """The upstream redirects to another host, to no place at all, with another method, or too often."""


class UpstreamSilentError(UpstreamError):
    """The upstream sent no byte of any kind for `silence_s`."""

    error_text = "The model stopped answering."


class UpstreamUnansweredError(UpstreamSilentError):
    """The upstream took the request, and sent no byte of an answer for `first_byte_s`."""

    error_text = "The model did not answer."


class UpstreamTruncatedError(UpstreamError):
    """The upstream's stream ended before its own end marker: what came is not the whole answer."""

    error_text = "The model's answer was cut off."


class UpstreamUnreadableError(UpstreamError):
    """What the upstream sent is no answer of its protocol: a page, another type, noise, bad UTF-8, wrong JSON."""

    error_text = "The model's answer could not be understood."


class UpstreamTooLongError(UpstreamError):
    """The upstream sent a line, an event or an answer beyond what is taken."""

    error_text = "The model's answer is too long."

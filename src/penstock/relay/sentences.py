"""What the user reads of an upstream's failure. Its own words are for the log, quoted and cut."""

from __future__ import annotations

from typing import Any

from penstock.errors import RemoteProtocolError, UpstreamError, UpstreamTooLongError, UpstreamUnreadableError
from penstock.relay.api_key import LOGGED
from penstock.wire.codec import decode_json

BUSY = "The model is busy. Please try again in a moment."
TOO_LONG = "The conversation is too long for the model."
ANSWER_TOO_LONG = UpstreamTooLongError.error_text
BAD_INPUT = "The model's input for this tool can't be used."
FAILED = "The model failed while it was answering."
NOT_UNDERSTOOD = UpstreamUnreadableError.error_text

_OF_STATUS = {413: TOO_LONG, 429: BUSY, 503: BUSY, 529: BUSY}
"""Of any other, that the model refused."""

_OF_NAME = {
    "rate_limit_exceeded": BUSY,
    "rate_limit_error": BUSY,
    "overloaded_error": BUSY,
    "server_is_overloaded": BUSY,
    "slow_down": BUSY,
    "insufficient_quota": BUSY,
    "429": BUSY,
    "503": BUSY,
    "context_length_exceeded": TOO_LONG,
    "request_too_large": TOO_LONG,
}
"""By the `code` or `type` that the upstream gave its error."""


_REPORTED = 4 * LOGGED
"""So that no key that the cut goes through is within what is logged."""


def error_sentence(error: Any) -> str | None:
    """Return what the user may read of an upstream's error object, if it is one of the well-known ones."""
    if not isinstance(error, dict):
        return None
    names = (str(error.get(key)) for key in ("code", "type"))
    sentence = next((_OF_NAME[name] for name in names if name in _OF_NAME), None)
    # Anthropic has no name for it.
    if sentence is None and str(error.get("message")).startswith("prompt is too long"):
        return TOO_LONG
    return sentence


def refusal_sentence(status: int, body: str) -> str | None:
    """Return what the user may read of an error status and its body; None for the usual sentence."""
    try:
        value = decode_json(body.encode())
    except RemoteProtocolError:
        value = None
    sentence = error_sentence(value.get("error")) if isinstance(value, dict) else None
    return sentence or _OF_STATUS.get(status)


def reported_failure(error: Any) -> UpstreamError:
    """Word the error that an upstream reported within its answer, at length: who knows the key takes it out and cuts."""
    return UpstreamError(
        f"the upstream reported {str(error)[:_REPORTED]!r}", error_text=error_sentence(error) or FAILED
    )

"""Reads the JSON object that an upstream's event, or its whole answer, is. Sans-I/O."""

from __future__ import annotations

from typing import Any

from penstock.errors import RemoteProtocolError, UpstreamUnreadableError
from penstock.limits import WireLimits
from penstock.wire.codec import decode_json


def read_object(data: str, limits: WireLimits) -> dict[str, Any]:
    """Read an object of up to `sse_event_bytes`.

    Raises:
        UpstreamUnreadableError: if it is too long or too deep, no JSON, or another value than an object.
    """
    try:
        value = decode_json(data.encode(), limits=limits, max_bytes=limits.sse_event_bytes)
    except (RemoteProtocolError, UnicodeEncodeError) as exc:
        raise UpstreamUnreadableError(f"an event can't be read: {exc}") from exc
    if not isinstance(value, dict):
        raise UpstreamUnreadableError("an event is not an object")
    return value

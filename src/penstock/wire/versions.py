"""Which kinds of chunk a client of each major version of `ai` may be sent.

Unknown fields are harmless to every client. An unknown kind is not: the client's schema refuses the chunk and the turn
ends there with an error. So a chunk that a client doesn't speak is left out for it.

Source: `uiMessageChunkSchema` of `ai` 5.0, 6.0 and 7.0.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

from penstock.errors import RemoteProtocolError
from penstock.wire.chunks import (
    LANE_CHUNK,
    AnyChunk,
    Custom,
    Data,
    ReasoningFile,
    ResetStep,
    SteeringMessage,
    ToolApprovalRequest,
    ToolApprovalResponse,
    ToolOutputDenied,
)

SdkVersion: TypeAlias = Literal[5, 6, 7]
"""A major version of the npm package `ai`."""

# A client never says its version, and one kind that it doesn't know costs it the whole turn. 6 has tool approvals,
# which need an answer; what 7 adds is for apps that ask for it.
DEFAULT_SDK_VERSION: Final[SdkVersion] = 6

_FIRST_SPOKEN_BY: dict[type[AnyChunk], SdkVersion] = {
    ToolApprovalRequest: 6,
    ToolOutputDenied: 6,
    ResetStep: 7,
    ReasoningFile: 7,
    Custom: 7,
    SteeringMessage: 7,
    ToolApprovalResponse: 7,
}
"""Every kind that is not here is spoken by all."""

_VERSION = re.compile(r"([567])(\.[0-9]{1,9}){0,2}")


NOBODY: Final = 99
"""A version that no client has: for what is in the journal and no part of the message."""


def spoken_from(chunk: AnyChunk) -> int:
    """Return the first version of the client that takes this chunk, or `NOBODY`."""
    if type(chunk) is Data and chunk.type == LANE_CHUNK:
        return NOBODY
    return _FIRST_SPOKEN_BY.get(type(chunk), 5)


def speaks(chunk: AnyChunk, version: SdkVersion) -> bool:
    """Say whether a client of this version takes this kind of chunk."""
    return _FIRST_SPOKEN_BY.get(type(chunk), 5) <= version


def parse_sdk_version(text: str) -> SdkVersion:
    """Read `6`, `6.0` or `6.0.326`.

    Raises:
        RemoteProtocolError: it is none of the versions that are served.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        raise RemoteProtocolError("The AI SDK version must be 5, 6 or 7.")
    match match[1]:
        case "5":
            return 5
        case "6":
            return 6
        case _:
            return 7

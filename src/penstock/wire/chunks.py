"""Every chunk of the AI SDK "UI message stream v1", as a frozen struct.

The table is that of `ai` 7; which kinds a client of 5 or 6 can take is in `versions.py`. A struct holds exactly the
fields that the client's schema names, with `UNSET` for what is absent: an explicit null on an optional field makes
the client fail, so null can't be written here by accident. Field names are camel case on the wire.

Source: `uiMessageChunkSchema` of the npm package `ai` 5.0, 6.0 and 7.0.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

FinishReason: TypeAlias = Literal["stop", "length", "content-filter", "tool-calls", "error", "other"]
"""The six reasons that clients of `ai` 5, 6 and 7 all know. Any other fails the whole turn on the client."""

ProviderMetadata: TypeAlias = dict[str, dict[str, Any]]
"""Provider name to an object of JSON values, as in `{"openai": {"itemId": "…"}}`."""


class Rank(Enum):
    """What may be done to a chunk for a viewer that can't keep up."""

    critical = "critical"
    """Never dropped, never changed."""
    mergeable = "mergeable"
    """Adjacent ones of the same part may be joined: the text stays exact."""
    droppable = "droppable"
    """May be left out: nothing of it lasts."""


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class Chunk(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, rename="camel", tag_field="type", tag=_kebab
):
    """One chunk. Its children are the kinds; this class itself is never sent."""

    rank: ClassVar[Rank] = Rank.critical

    @property
    def kind(self) -> str:
        """The chunk's `type` on the wire."""
        return str(self.__struct_config__.tag)


class Start(Chunk, frozen=True):
    """The first chunk of a message. With `message_id`, all viewers share the id."""

    message_id: str | UnsetType = UNSET
    message_metadata: Any = UNSET


class Finish(Chunk, frozen=True):
    """The terminal chunk of a turn that ended well, and the second of one that was stopped."""

    finish_reason: FinishReason | UnsetType = UNSET
    message_metadata: Any = UNSET


class Abort(Chunk, frozen=True):
    """The turn was stopped; `Finish` follows."""

    reason: str | UnsetType = UNSET


class Error(Chunk, frozen=True):
    """The terminal chunk of a turn that failed. The client shows `error_text` and ignores all that follows."""

    error_text: str


class MessageMetadata(Chunk, frozen=True):
    """Merged deeply into the message's metadata."""

    message_metadata: Any


class StartStep(Chunk, frozen=True):
    """A model call begins."""


class FinishStep(Chunk, frozen=True):
    """A model call ended. Clients of 5 and 6 forget open text and reasoning here."""


class ResetStep(Chunk, frozen=True):
    """Drops every part since the last `StartStep`."""


class TextStart(Chunk, frozen=True):
    """Opens a text part."""

    id: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class TextDelta(Chunk, frozen=True):
    """More text of an open text part."""

    rank: ClassVar[Rank] = Rank.mergeable

    id: str
    delta: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class TextEnd(Chunk, frozen=True):
    """Closes a text part."""

    id: str
    citations: list[Any] | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class ReasoningStart(Chunk, frozen=True):
    """Opens a reasoning part. Its ids are a namespace of their own."""

    id: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class ReasoningDelta(Chunk, frozen=True):
    """More text of an open reasoning part."""

    rank: ClassVar[Rank] = Rank.mergeable

    id: str
    delta: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class ReasoningEnd(Chunk, frozen=True):
    """Closes a reasoning part."""

    id: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class ReasoningFile(Chunk, frozen=True):
    """A file that the model made while reasoning."""

    url: str
    media_type: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class File(Chunk, frozen=True):
    """A file of the answer; `url` may be a `data:` URL."""

    url: str
    media_type: str
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class SourceUrl(Chunk, frozen=True):
    """A web page that the answer rests on."""

    source_id: str
    url: str
    title: str | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class SourceDocument(Chunk, frozen=True):
    """A document that the answer rests on."""

    source_id: str
    media_type: str
    title: str
    filename: str | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class Custom(Chunk, frozen=True):
    """A provider's own kind of content; `kind_` is `provider.type`."""

    kind_: str = msgspec.field(name="kind")
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class SteeringMessage(Chunk, frozen=True):
    """A user's words that reached the model in the middle of a turn. Experimental in `ai` 7."""

    id: str
    parts: list[dict[str, Any]]


class ToolInputStart(Chunk, frozen=True):
    """A tool call begins; its input follows."""

    tool_call_id: str
    tool_name: str
    input_encoding: Literal["json", "text"] | UnsetType = UNSET
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET
    tool_metadata: dict[str, Any] | UnsetType = UNSET
    dynamic: bool | UnsetType = UNSET
    title: str | UnsetType = UNSET


class ToolInputDelta(Chunk, frozen=True):
    """More of a tool input's JSON text."""

    rank: ClassVar[Rank] = Rank.mergeable

    tool_call_id: str
    input_text_delta: str


class ToolInputAvailable(Chunk, frozen=True):
    """A tool call's whole input."""

    tool_call_id: str
    tool_name: str
    input: Any
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET
    tool_metadata: dict[str, Any] | UnsetType = UNSET
    dynamic: bool | UnsetType = UNSET
    title: str | UnsetType = UNSET


class ToolInputError(Chunk, frozen=True):
    """A tool call's input that could not be used."""

    tool_call_id: str
    tool_name: str
    input: Any
    error_text: str
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET
    tool_metadata: dict[str, Any] | UnsetType = UNSET
    dynamic: bool | UnsetType = UNSET
    title: str | UnsetType = UNSET


class ToolApprovalRequest(Chunk, frozen=True):
    """Asks the user whether a tool call may run."""

    approval_id: str
    tool_call_id: str
    approval_descriptor: Any = UNSET
    input_schema_input: Any = UNSET
    reason: str | UnsetType = UNSET
    is_automatic: bool | UnsetType = UNSET
    signature: str | UnsetType = UNSET


class ToolApprovalResponse(Chunk, frozen=True):
    """Records what was decided, for replays and other viewers."""

    approval_id: str
    approved: bool
    reason: str | UnsetType = UNSET
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET


class ToolOutputAvailable(Chunk, frozen=True):
    """A tool call's output; with `preliminary`, another will follow."""

    tool_call_id: str
    output: Any
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET
    tool_metadata: dict[str, Any] | UnsetType = UNSET
    dynamic: bool | UnsetType = UNSET
    preliminary: bool | UnsetType = UNSET


class ToolOutputError(Chunk, frozen=True):
    """A tool call failed."""

    tool_call_id: str
    error_text: str
    provider_executed: bool | UnsetType = UNSET
    provider_metadata: ProviderMetadata | UnsetType = UNSET
    tool_metadata: dict[str, Any] | UnsetType = UNSET
    dynamic: bool | UnsetType = UNSET


class ToolOutputDenied(Chunk, frozen=True):
    """The user said no to a tool call."""

    tool_call_id: str


class Data(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=False):
    """An app's own chunk, `data-NAME`. With `id`, the same type and id replaces the value in place.

    It stands beside `Chunk` because its `type` is the app's to choose.
    """

    type: str
    id: str | UnsetType = UNSET
    data: Any
    transient: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not self.type.startswith("data-"):
            raise ValueError("the type of a data chunk starts with data-")

    @property
    def kind(self) -> str:
        """The chunk's `type` on the wire."""
        return self.type

    @property
    def rank(self) -> Rank:
        """Transient data is not stored by the client, so nothing of it lasts."""
        return Rank.droppable if self.transient is True else Rank.critical


LANE = "data-lane"
"""What the chat's followers get of a parallel worker: `{"lane", "state", "report"?}`, replaced in place."""
LANE_CHUNK = "data-lane-chunk"
"""A worker's own chunk, `{"lane", "chunk"}`: in the journal, and for those who ask for the lane."""


KnownChunk: TypeAlias = (
    Start
    | Finish
    | Abort
    | Error
    | MessageMetadata
    | StartStep
    | FinishStep
    | ResetStep
    | TextStart
    | TextDelta
    | TextEnd
    | ReasoningStart
    | ReasoningDelta
    | ReasoningEnd
    | ReasoningFile
    | File
    | SourceUrl
    | SourceDocument
    | Custom
    | SteeringMessage
    | ToolInputStart
    | ToolInputDelta
    | ToolInputAvailable
    | ToolInputError
    | ToolApprovalRequest
    | ToolApprovalResponse
    | ToolOutputAvailable
    | ToolOutputError
    | ToolOutputDenied
)
"""Every kind with a name of its own."""

AnyChunk: TypeAlias = KnownChunk | Data
"""Anything that may stand in a turn."""

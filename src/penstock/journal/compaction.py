"""A turn's entries, made short: what a client that comes late is sent instead of everything.

A compaction is a legal message that makes the same `UIMessage`, with one delta per part however long the part is. It is
fed entries in order and can be asked at any time; being fed again costs only what is new, so that a thousand clients
that come back at once are served from one.

What is left out, because nothing of it lasts: transient data; a data part's value that a later one of the same type and
id replaced; a preliminary output that was replaced; and, inside a turn that went on after it had paused for the user,
the `finish` and `start` at the seam (their metadata stays). Nothing is joined or left out across a `reset-step`: clients
that don't know it keep what the others drop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from msgspec import UNSET
from msgspec.structs import replace

from penstock.journal.entry import Entry
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    Finish,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ResetStep,
    Start,
    TextDelta,
    TextEnd,
    ToolInputDelta,
    ToolOutputAvailable,
)


class _Text:
    """The deltas of one part, to be joined."""

    __slots__ = ("deltas", "first")

    def __init__(self, first: TextDelta | ReasoningDelta | ToolInputDelta) -> None:
        self.first = first
        self.deltas: list[str] = []

    def chunk(self) -> AnyChunk:
        """Join them."""
        text = "".join(self.deltas)
        self.deltas[:] = [text]  # so that the next client costs only what came since
        match self.first:
            case ToolInputDelta(tool_call_id=call_id):
                return ToolInputDelta(tool_call_id=call_id, input_text_delta=text)
            case TextDelta(id=part_id, provider_metadata=metadata):
                return TextDelta(id=part_id, delta=text, provider_metadata=metadata)
            case ReasoningDelta(id=part_id, provider_metadata=metadata):
                return ReasoningDelta(id=part_id, delta=text, provider_metadata=metadata)


_Key: TypeAlias = tuple[str, str]


class Compaction:
    """The short form of the entries that were fed."""

    def __init__(self) -> None:
        self._slots: list[AnyChunk | _Text | None] = []
        self._texts: dict[_Key, _Text] = {}
        """Parts that are open: where their next delta goes."""
        self._latest: dict[_Key, int] = {}
        """Slots of what a later chunk replaces: data by type and id, preliminary outputs by call."""
        self._fed = 0

    @property
    def fed(self) -> int:
        """How many entries are in it."""
        return self._fed

    def feed(self, entries: Iterable[Entry]) -> None:
        """Add the entries that follow those fed before."""
        texts = self._texts
        text: _Text | None = None
        text_id = ""
        for entry in entries:
            self._fed += 1
            chunk = entry.chunk
            # A run of deltas of one part is nearly all of a long turn.
            if (
                text is not None
                and type(chunk) is TextDelta
                and chunk.id == text_id
                and chunk.provider_metadata is UNSET
            ):
                text.deltas.append(chunk.delta)
                continue
            text = None
            match chunk:
                case TextDelta(id=text_id, delta=delta):
                    text = self._add_delta(("text", text_id), chunk, delta)
                case ReasoningDelta(id=part_id, delta=delta):
                    self._add_delta(("reasoning", part_id), chunk, delta)
                case ToolInputDelta(tool_call_id=call_id, input_text_delta=delta):
                    self._add_delta(("input", call_id), chunk, delta)
                case TextEnd(id=part_id):
                    texts.pop(("text", part_id), None)
                    self._slots.append(chunk)
                case ReasoningEnd(id=part_id):
                    texts.pop(("reasoning", part_id), None)
                    self._slots.append(chunk)
                case Data(transient=True):
                    pass
                case Data(type=kind, id=str(data_id)):
                    self._add_data((kind, data_id), chunk)
                case ToolOutputAvailable(tool_call_id=call_id):
                    self._add_output(("output", call_id), chunk)
                case ResetStep():
                    texts.clear()
                    self._latest.clear()
                    self._slots.append(chunk)
                case Start() if self._slots:
                    self._drop_seam(chunk)
                case _:
                    self._slots.append(chunk)

    def chunks(self) -> list[AnyChunk]:
        """Return the short form."""
        return [slot.chunk() if isinstance(slot, _Text) else slot for slot in self._slots if slot is not None]

    def _add_delta(self, key: _Key, chunk: TextDelta | ReasoningDelta | ToolInputDelta, delta: str) -> _Text:
        text = self._texts.get(key)
        metadata = getattr(chunk, "provider_metadata", UNSET)
        if text is None or metadata is not UNSET:
            # Metadata of a delta replaces the part's from here on, so it begins a delta of its own.
            text = self._texts[key] = _Text(chunk)
            self._slots.append(text)
        text.deltas.append(delta)
        return text

    def _add_data(self, key: _Key, chunk: Data) -> None:
        """Give a data part its newest value, where the part is; clients keep all else of the first chunk."""
        slot = self._latest.get(key)
        if slot is None:
            self._latest[key] = len(self._slots)
            self._slots.append(chunk)
        else:
            self._slots[slot] = replace(self._slots[slot], data=chunk.data)  # type: ignore[type-var]

    def _add_output(self, key: _Key, chunk: ToolOutputAvailable) -> None:
        """Leave out the output before this one, if it said nothing else."""
        slot = self._latest.get(key)
        if slot is not None:
            before = self._slots[slot]
            assert isinstance(before, ToolOutputAvailable)
            if (before.provider_executed, before.provider_metadata, before.tool_metadata) == (UNSET,) * 3:
                self._slots[slot] = None
        self._latest[key] = len(self._slots)
        self._slots.append(chunk)

    def _drop_seam(self, start: Start) -> None:
        """Join two requests' chunks into one message."""
        seam = [start.message_metadata]
        finish = self._slots[-1]
        if isinstance(finish, Finish):
            self._slots.pop()
            seam.insert(0, finish.message_metadata)
        for metadata in seam:
            if metadata is not UNSET:
                self._slots.append(MessageMetadata(message_metadata=metadata))

"""The parts of an assembled message, and how their fields are set.

Text comes in pieces that are joined when somebody looks: each costs the same, however long the text is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from penstock.wire.partial_json import parse_partial_json
from penstock.wire.versions import SdkVersion


class Pieces:
    """A part whose text is under way."""

    __slots__ = ("part", "pieces")

    def __init__(self, part: dict[str, Any]) -> None:
        self.part = part
        self.pieces: list[str] = []

    def join(self) -> str:
        """Return the text so far. Asked again, it costs only what came since."""
        text = "".join(self.pieces)
        self.pieces[:] = [text]
        return text

    def settle(self) -> None:
        """Write the text so far into the part."""
        self.part["text"] = self.join()


class ToolInput(Pieces):
    """A tool part whose input is under way."""

    __slots__ = ("is_text", "sdk")

    def __init__(self, part: dict[str, Any], is_text: bool, sdk: SdkVersion) -> None:
        super().__init__(part)
        self.is_text = is_text
        self.sdk = sdk

    def settle(self) -> None:
        """Write what the input so far means into the part."""
        if self.pieces:
            text = self.part["rawInput"] = self.join()
            put(self.part, input=text if self.is_text else parse_partial_json(text, self.sdk))


def put(part: dict[str, Any], **fields: Any) -> None:
    """Set fields to copies of these values; remove those that are UNSET."""
    for key, value in fields.items():
        if value is UNSET:
            part.pop(key, None)
        else:
            part[key] = msgspec.to_builtins(value)


def keep(part: dict[str, Any], **fields: Any) -> None:
    """Set fields to copies of these values; leave those that are UNSET or null as they are."""
    for key, value in fields.items():
        if value is not UNSET and value is not None:
            part[key] = msgspec.to_builtins(value)

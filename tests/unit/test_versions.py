"""Which client is sent which kind of chunk."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from penstock.errors import RemoteProtocolError
from penstock.wire import chunks as c
from penstock.wire.versions import DEFAULT_SDK_VERSION, SdkVersion, parse_sdk_version, speaks

# Beside these, every kind of `uiMessageChunkSchema` is in all three versions.
NOT_IN_6 = {"reset-step", "reasoning-file", "custom", "steering-message", "tool-approval-response"}
NOT_IN_5 = NOT_IN_6 | {"tool-approval-request", "tool-output-denied"}

KINDS = {str(kind.__struct_config__.tag): kind for kind in get_args(c.KnownChunk)}


def made(kind: str) -> c.AnyChunk:
    """Make a chunk of this kind with every field empty: what it holds plays no part."""
    fields = [field.name for field in msgspec.structs.fields(KINDS[kind])]
    chunk: c.AnyChunk = KINDS[kind](**dict.fromkeys(fields, ""))
    return chunk


@pytest.mark.parametrize(("version", "missing"), [(5, NOT_IN_5), (6, NOT_IN_6), (7, set[str]())])
def test_a_client_is_sent_exactly_the_kinds_of_its_schema(version: SdkVersion, missing: set[str]) -> None:
    assert {kind for kind in KINDS if not speaks(made(kind), version)} == missing
    assert missing <= KINDS.keys()


@pytest.mark.parametrize("version", get_args(SdkVersion))
def test_every_client_takes_an_apps_own_data(version: SdkVersion) -> None:
    assert speaks(c.Data(type="data-x", data=1), version)


def test_without_a_word_from_the_app_approvals_work_and_nothing_newer_is_sent() -> None:
    assert DEFAULT_SDK_VERSION == 6
    assert speaks(c.ToolApprovalRequest(approval_id="a", tool_call_id="k"), DEFAULT_SDK_VERSION)


@pytest.mark.parametrize(
    ("text", "version"), [("5", 5), ("6", 6), ("7", 7), ("6.0", 6), ("6.0.326", 6), ("7.0.173", 7)]
)
def test_a_version_may_have_its_minor_parts(text: str, version: SdkVersion) -> None:
    assert parse_sdk_version(text) == version


@pytest.mark.parametrize(
    "text", ["", "4", "8", "55", "v6", "6.", "6.x", "6.0.0.0", " 6", "6\n", "٦", "6.0.0-beta.1"]
)
def test_another_version_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_sdk_version(text)
    assert str(caught.value) == "The AI SDK version must be 5, 6 or 7."
    assert caught.value.status == 400

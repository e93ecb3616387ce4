"""The playground, as a person sees it in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from proxy import Fault, open_proxy

from penstock import chat_app
from penstock.demo.model import answer
from penstock.testing import open_server

HERE = Path(__file__).parent


async def run_page(script: str, url: str, chromium: str) -> Any:
    """Run a script of a person's doings, and return what the person saw."""
    with trio.fail_after(60):
        result = await trio.run_process(["node", str(HERE / script), url, chromium], capture_stdout=True)
    return json.loads(result.stdout)


async def test_a_person_chats_and_sees_every_kind_of_part_and_the_raw_events(chromium: str) -> None:
    async with open_server(chat_app(answer)) as url:
        seen = await run_page("page.mjs", url, chromium)
    answers = {each["text"]: each for each in seen["answers"]}
    assert seen["problems"] == []
    assert len(answers["Hello, my name is Ada."]["answer"]) > 10
    assert "<img" not in answers["Hello, my name is Ada."]["answer"]
    assert "output:" in answers["/tool"]["answer"]
    assert answers["/reason"]["status"] == "ready"
    assert "↗" in answers["/sources"]["answer"]
    assert "data-" in answers["/data"]["answer"]
    assert answers["/error"]["status"] == "the answer failed"
    assert ": stream-start" in seen["events"]
    assert any(event.startswith('{"type":"text-delta"') for event in seen["events"])
    assert "[DONE]" in seen["events"]


async def test_a_person_pulls_the_plug_reloads_stops_and_decides(chromium: str) -> None:
    async with open_server(chat_app(answer)) as url:
        seen = await run_page("survive.mjs", url, chromium)
    assert seen["problems"] == []
    assert "The gate is open." in seen["approved"]
    assert "open_gate · output-available" in seen["approved"]
    assert "The gate stays shut." in seen["denied"]
    assert seen["unplugged"] == "disconnected; coming back"
    # It came back in mid-answer with more than it had, and so did a page that was loaded anew.
    assert seen["before"] < seen["back"] < seen["reloaded"] <= seen["whole"]
    assert seen["statuses"] == ["streaming", "ready"]
    assert 0 < seen["stopped"] < seen["whole"]
    assert seen["afterStop"] == "ready"


async def test_eventsource_is_cut_and_comes_back_by_itself_exactly(chromium: str) -> None:
    """By the browser's own Last-Event-ID."""
    cuts: list[Fault | None] = [Fault("reset", after_events=60)] * 4
    async with open_server(chat_app(answer)) as url, open_proxy(url, *cuts, None) as proxy:
        seen = await run_page("watch.mjs", proxy.url, chromium)
    assert seen["opened"] > 1
    assert seen["names"].count("snapshot") == 1
    assert "gap" not in seen["names"]
    assert seen["names"][-1] == "message"
    assert seen["text"] == seen["message"]
    assert len(seen["ids"]) == len(set(seen["ids"]))

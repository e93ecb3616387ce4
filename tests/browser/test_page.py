"""The playground, as a person sees it in a real Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import trio

from parts import require
from penstock import chat_app
from penstock.demo.model import answer
from penstock.testing import open_server

HERE = Path(__file__).parent


async def test_a_person_chats_and_sees_every_kind_of_part_and_the_raw_events() -> None:
    chromium = shutil.which("chromium")
    require("Chromium", "apt-get install chromium", chromium is not None)
    require("Node", "apt-get install nodejs npm", shutil.which("node") is not None)
    require("playwright-core", "npm ci in tests/browser", (HERE / "node_modules").is_dir())
    async with open_server(chat_app(answer)) as url:
        with trio.fail_after(60):
            result = await trio.run_process(
                ["node", str(HERE / "page.mjs"), url, str(chromium)], capture_stdout=True
            )
    seen = json.loads(result.stdout)
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

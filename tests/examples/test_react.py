"""09: the page that Vite builds, in a real Chromium, over SSE and over a WebSocket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import trio
from running import EXAMPLES, open_example

from parts import require

SCRIPT = Path(__file__).parent.parent / "browser" / "react.mjs"
HERE = EXAMPLES / "09_react"


async def test_an_unmodified_use_chat_reloads_and_stops_over_both_transports(chromium: str) -> None:
    require(
        "npm packages of the React example", "npm ci in examples/09_react", (HERE / "node_modules").is_dir()
    )
    npx = shutil.which("npx")
    assert npx is not None
    with trio.fail_after(60):
        await trio.run_process([npx, "vite", "build"], cwd=HERE, capture_stdout=True, capture_stderr=True)
    async with open_example("09_react/serve.py") as example:
        with trio.fail_after(60):
            done = await trio.run_process(["node", str(SCRIPT), example.url, chromium], capture_stdout=True)
    seen = json.loads(done.stdout)
    for transport, sockets in (("sse", 0), ("socket", 2)):
        assert seen[transport]["problems"] == [], transport
        assert seen[transport]["goesOn"], transport
        assert len(seen[transport]["answer"]) > 10, transport
        assert seen[transport]["sockets"] == sockets, transport

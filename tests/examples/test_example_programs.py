"""The examples that are programs or pages: a Trio script, a page in a real Chromium, a Node script with the npm `ai`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio
from running import EXAMPLES, PENSTOCK, environment, open_example

from parts import require

HERE = Path(__file__).parent
TESTS = HERE.parent


async def test_a_trio_program_follows_stops_and_resumes_from_its_journal(tmp_path: Path) -> None:
    command = [sys.executable, "08_trio_only.py", f"sqlite:{tmp_path}/turns.db"]
    with trio.fail_after(30):
        ran = await trio.run_process(
            command, cwd=EXAMPLES, env=environment(), capture_stdout=True, capture_stderr=True
        )
    assert ran.stderr == b""
    said = ran.stdout.decode().splitlines()
    numbers: dict[str, list[str]] = {}
    for name, _, text in (line.partition(": ") for line in said):
        numbers.setdefault(name, []).extend(text.split())
    assert numbers["stop"] == ["stopped"]
    # What the early follower saw, and what it was given when it came back, are together what was written: no gap, no repeat.
    assert numbers["early"] + numbers["early, come back"] == numbers["stopped"] == numbers["whole"]
    assert numbers["stopped"] == [str(number) for number in range(1, len(numbers["stopped"]) + 1)]
    assert len(numbers["early"]) < len(numbers["stopped"]) < 100


async def test_a_websocket_without_a_web_app_answers_and_ends_with_ctrl_c() -> None:
    async with open_example("12_websocket_only.py") as example:
        with trio.fail_after(30):
            said = await trio.run_process(
                [PENSTOCK, "send", example.url, "Good morning"], capture_stdout=True
            )
    assert said.stdout.decode().split() == ["Good", "morning"]


async def kill(process: trio.Process) -> None:
    """End a driver of the browser that hangs: it would take a SIGTERM for a word to be thought over."""
    process.kill()


async def test_a_page_with_eventsource_is_watched_by_many_and_survives_a_restart(
    chromium: str, tmp_path: Path
) -> None:
    journal = f"sqlite:{tmp_path}/page.db"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_example("10_eventsource.py", JOURNAL=journal) as example:
                url = example.url
                node: trio.Process = await nursery.start(
                    partial(
                        trio.run_process,
                        ["node", str(HERE / "eventsource.mjs"), url, chromium],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        deliver_cancel=kill,
                    )
                )
                assert node.stdout is not None
                assert node.stdin is not None
                said = bytearray()
                while b"\n" not in said:
                    data = await node.stdout.receive_some()
                    assert data, "the browser ended"
                    said += data
            port = url.rpartition(":")[2]
            async with open_example("10_eventsource.py", JOURNAL=journal, PORT=port):
                await node.stdin.send_all(b"go on\n")
                async for data in node.stdout:
                    said += data
    seen = json.loads(said.splitlines()[1])
    assert seen["problems"] == []
    assert [text.strip() for text in seen["first"]] == ["one <b>two</b>", "You said: one <b>two</b>"]
    assert re.fullmatch(r"You said: (drop ){3,59}", seen["whole"])
    ada, bob, late = ([text.strip() for text in texts] for texts in seen["last"])
    assert len(ada) == 6
    assert ada == bob == late


async def test_a_node_script_sends_drops_resumes_and_stops(tmp_path: Path) -> None:
    packages = TESTS / "aisdk" / "node_modules"
    node = shutil.which("node")
    require("Node", "apt-get install nodejs npm", node is not None)
    require("the npm package ai", "npm ci in tests/aisdk", (packages / "ai7").is_dir())
    assert node is not None
    # As `npm install ai@7` would have it beside the script.
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "ai").symlink_to(packages / "ai7")
    script = shutil.copy(EXAMPLES / "11_client.mjs", tmp_path)
    with trio.fail_after(40):
        async with open_example("01_smallest:answer") as example:
            ran = await trio.run_process(
                [node, script, f"{example.url}/api/chat"],
                env=environment(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    assert ran.returncode == 0, ran.stderr.decode()
    lost, whole, stopped = ran.stdout.decode().splitlines()
    text = "You said: one two three four five six seven eight"
    assert whole == f"whole: {text}  (the same message)"
    assert text.startswith(lost.removeprefix("lost: ").strip())
    assert len(lost) < len(whole) - len("(the same message)")
    assert (count := re.fullmatch(r"stopped after ([0-9]+) characters", stopped))
    assert 20 < int(count[1]) < 200

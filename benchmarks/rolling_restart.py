"""A rolling restart under load: what the followers of live turns see of it.

    .venv/bin/python benchmarks/rolling_restart.py --journal redis://127.0.0.1:6379/0

Starts `penstock serve --workers 3`, keeps a turn running in each of 100 chats, has three followers watch each, and sends
SIGHUP. A follower waits as long as `closing` asks it to, and comes back with its last id. At the end each has to have seen
every turn's text from its first word to its last, in order, unless it was told of a gap. What is printed is the pause: from
when a follower was sent away to the first event that it is shown then, with and without the wait that it was asked for.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from penstock.testing import user_message
from penstock.wire.sse_parser import SseParser

PRODUCER = """
import trio

async def answer(turn):
    async with turn.text() as text:
        for number in range(WORDS):
            await text.write(f"{number} ")
            await trio.sleep(PAUSE_S)
"""


class Follower:
    """One that watches a chat."""

    def __init__(self, port: int, chat: str) -> None:
        self._port = port
        self._chat = chat
        self._last = ""
        self._away: float | None = None
        self._asked_s = 0.0
        self.pauses: list[tuple[float, float]] = []
        """Of each: all of it, and what the server asked for."""
        self.words: dict[str, list[str]] = {}
        """By turn."""
        self.gaps = 0
        self.cuts = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                told = await self._look()
            except (OSError, trio.BrokenResourceError):
                told = False
            if self._away is None:
                self._away = time.perf_counter()
            if not told:
                self.cuts += 1
                self._asked_s = 0.2
            await trio.sleep(self._asked_s)

    async def _look(self) -> bool:
        parser = SseParser()
        after = f"?after={self._last}" if self._last else ""
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with stream:
            await stream.send_all(f"GET /api/chat/{self._chat}/watch{after} HTTP/1.0\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:
                    return False
                head += data
            data = head.partition(b"\r\n\r\n")[2]
            while True:
                for event in parser.feed(data):
                    if self._take(event.event, event.data):
                        return True
                    self._last = event.last_event_id or self._last
                data = await stream.receive_some()
                if not data:
                    return False

    def _take(self, event: str, data: str) -> bool:
        now = time.perf_counter()
        if self._away is not None:
            self.pauses.append((now - self._away, self._asked_s))
            self._away = None
        if event == "closing":
            self._asked_s = json.loads(data)["retryMs"] / 1000
            return True
        if event == "gap":
            self.gaps += 1
        elif event == "message":
            message = json.loads(data)
            if message["role"] == "assistant":
                text = "".join(part["text"] for part in message["parts"] if part["type"] == "text")
                self.words[message["id"]] = text.split()
        return False


async def talk(port: int, chat: str, stop: trio.Event, seen: dict[str, int]) -> None:
    """Keep a turn running in a chat."""
    number = 0
    while not stop.is_set():
        number += 1
        message = user_message(f"go {number}")
        body = json.dumps({"id": chat, "message": {"id": message.id, "role": "user", "parts": message.parts}})
        text = b""
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(
                    f"POST /api/chat HTTP/1.0\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\n\r\n{body}".encode()
                )
                async for data in stream:
                    text += data
        except (OSError, trio.BrokenResourceError):
            pass
        outcome = (
            "finished" if b'"type":"finish"' in text
            else "failed" if b'"type":"error"' in text
            else "refused" if re.match(rb"HTTP/1.. [45]", text)
            else "cut"
        )  # fmt: skip
        seen[outcome] = seen.get(outcome, 0) + 1
        if outcome != "finished":
            await trio.sleep(0.3)


def share(values: list[float], part: float) -> float:
    """Return a quantile."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else float("nan")


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do it once."""
    with tempfile.TemporaryDirectory() as folder:
        source = PRODUCER.replace("WORDS", str(arguments.words)).replace("PAUSE_S", str(arguments.pause_s))
        (Path(folder) / "rolling_app.py").write_text(source)
        command = [
            sys.executable, "-m", "penstock", "serve", "rolling_app:answer", "--port", "0", "--journal", arguments.journal,
            "--workers", str(arguments.workers), "--drain-s", str(arguments.drain_s), "--log-level", "info",
        ]  # fmt: skip
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(trio.run_process, command, cwd=folder, stderr=subprocess.PIPE, check=False)
            )
            assert process.stderr is not None
            said = b""
            while (found := re.search(rb"is listening on http://127\.0\.0\.1:(\d+) ", said)) is None:
                said += await process.stderr.receive_some()
            port = int(found[1])
            renewed = trio.Event()

            async def hear() -> None:
                text = b""
                assert process.stderr is not None
                async for data in process.stderr:
                    text += data
                    if b"all workers are new" in text:
                        renewed.set()

            nursery.start_soon(hear)
            chats = [f"chat-{secrets.token_hex(4)}" for _ in range(arguments.chats)]
            followers = [Follower(port, chat) for chat in chats for _ in range(arguments.followers)]
            stop, outcomes = trio.Event(), dict[str, int]()
            async with trio.open_nursery() as watching:
                for follower in followers:
                    watching.start_soon(follower.run)
                async with trio.open_nursery() as talking:
                    for chat in chats:
                        talking.start_soon(talk, port, chat, stop, outcomes)
                        await trio.sleep(arguments.words * arguments.pause_s / arguments.chats)
                    began = time.perf_counter()
                    process.send_signal(signal.SIGHUP)
                    await renewed.wait()
                    took_s = time.perf_counter() - began
                    await trio.sleep(2)
                    stop.set()
                await trio.sleep(4)
                watching.cancel_scope.cancel()
            process.terminate()
            await process.wait()
            nursery.cancel_scope.cancel()
    whole = [str(number) for number in range(arguments.words)]
    wrong = sum(words != whole for follower in followers for words in follower.words.values())
    pauses = [pause for follower in followers for pause, _ in follower.pauses]
    own = [pause - asked for follower in followers for pause, asked in follower.pauses]
    return {
        "workers": arguments.workers,
        "chats": arguments.chats,
        "followers": len(followers),
        "renewed_s": round(took_s, 1),
        "turns": outcomes,
        "answers shown": sum(len(follower.words) for follower in followers),
        "answers shown not whole": wrong,
        "gaps": sum(follower.gaps for follower in followers),
        "cuts without a word": sum(follower.cuts for follower in followers),
        "sent away": len(pauses),
        "pause_s": {f"p{part:g}": round(share(pauses, part / 100), 3) for part in (50, 99, 100)},
        "pause_s less the wait asked for": {
            f"p{part:g}": round(share(own, part / 100), 3) for part in (50, 99, 100)
        },
    }


def main() -> None:
    """Run it, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", required=True)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--chats", type=int, default=100)
    parser.add_argument("--followers", type=int, default=3, help="of each chat")
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--pause-s", type=float, default=0.1)
    parser.add_argument("--drain-s", type=float, default=20.0)
    print(json.dumps(trio.run(run, parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()

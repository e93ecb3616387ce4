"""`penstock serve` as a process of its own, as a person starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from penstock.testing import Recording

START_S = 20.0
END_S = 10.0


@asynccontextmanager
async def open_served(*options: str, **variables: str) -> AsyncIterator[str]:
    """Serve with these options and environment variables, and yield the chat endpoint. It must end well at SIGTERM."""
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--journal", "memory:", *options]
    said = b""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process, command, env=os.environ | variables, stderr=subprocess.PIPE, check=False
            )
        )
        assert process.stderr is not None
        try:
            with trio.fail_after(START_S):
                while not (found := re.search(rb"listening on (\S+)\s", said)):
                    data = await process.stderr.receive_some()
                    assert data, said.decode()
                    said += data
            yield f"{found[1].decode()}/api/chat"
            process.terminate()
            with trio.fail_after(END_S):
                async for data in process.stderr:
                    said += data
                await process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, said.decode()


def told(recording: Recording) -> tuple[int, str, list[str]]:
    """Return the status, the message's text, and what the last two events are."""
    parts = recording.message["parts"]
    return (
        recording.status,
        "".join(part["text"] for part in parts if part["type"] == "text"),
        [recording.chunks[-1].kind, recording.events[-1].data],
    )

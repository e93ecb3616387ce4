"""A provider of models: a published mock of the providers' HTTP APIs, and in front of it what goes wrong on a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import trio

from parts import require
from penstock.asgi import Receive, Scope, Send
from penstock.testing import open_server

HERE = Path(__file__).parent
MOCK = HERE.parent / "upstream" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
EVENTS = 5
"""Events until an answer is cut off: some of its text has come by then, and not all."""


@contextmanager
def run_mock() -> Iterator[str]:
    """Run the mock with `answers.json`, and yield its URL."""
    node = shutil.which("node")
    require("Node", "apt-get install nodejs npm", node is not None)
    require("the npm package @copilotkit/aimock", "npm ci in tests/upstream", MOCK.exists())
    assert node is not None
    command = [node, str(MOCK), "--port", "0", "--chunk-size", "3", "--fixtures", "answers.json"]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"listening on (http://\S+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail("the mock ended before it listened")
        finally:
            process.terminate()


class Provider:
    """An ASGI app that passes requests on to the mock, and cuts the answers to those who ask for it.

    Who says "politely" gets a complete HTTP body that stops in the middle of the answer; "rudely", a broken connection.
    """

    def __init__(self, mock_url: str, client: httpx2.AsyncClient) -> None:
        self._mock_url = mock_url
        self._client = client
        self.url = ""
        self.answering = 0
        """Requests that are being answered now."""
        self.bodies: list[bytes] = []
        """What was asked, in order."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (event := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{event}.complete"})
            await send({"type": f"{event}.complete"})
            return
        body = bytearray()
        more = True
        while more:
            piece: Any = await receive()
            body += piece["body"]
            more = piece["more_body"]
        self.bodies.append(bytes(body))
        self.answering += 1
        try:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    await receive()
                    nursery.cancel_scope.cancel("the client has left")

                nursery.start_soon(leave)
                await self._pass_on(scope["path"], bytes(body), send)
                nursery.cancel_scope.cancel("answered")
        finally:
            self.answering -= 1

    async def _pass_on(self, path: str, body: bytes, send: Send) -> None:
        headers = {"content-type": "application/json"}
        async with self._client.stream(
            "POST", f"{self._mock_url}{path}", content=body, headers=headers
        ) as answer:
            kind = answer.headers["content-type"].encode()
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": [(b"content-type", kind)],
                }
            )
            events, cut = 0, b"politely" in body or b"rudely" in body
            # Closed here where the example has left, and not when it is collected, of which Trio would warn.
            async with aclosing(cast("AsyncGenerator[str]", answer.aiter_lines())) as lines:
                async for line in lines:
                    if events < EVENTS or not cut:
                        await send(
                            {"type": "http.response.body", "body": f"{line}\n".encode(), "more_body": True}
                        )
                    events += not line
            if b"rudely" in body:
                raise ConnectionError("a broken connection was asked for")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def open_provider(mock_url: str) -> AsyncIterator[Provider]:
    """Serve a provider, and yield it; its `url` is for the SDKs, with `/v1` where they want it."""
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
        provider = Provider(mock_url, client)
        async with open_server(provider) as provider.url:
            yield provider

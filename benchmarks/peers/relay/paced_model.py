"""What the relays in Python have in common: asking the model with httpx, and the text of each of its events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2


def open_model(port: int) -> httpx2.AsyncClient:
    """Return a client for the model's server, with as many connections as there are turns."""
    return httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/v1",
        timeout=None,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
    )


async def deltas(client: httpx2.AsyncClient, body: Mapping[str, Any]) -> AsyncIterator[str]:
    """Ask for the answer to a chat request's last message, and yield its text as it comes."""
    prompt = body["messages"][-1]["parts"][0]["text"]
    request = {"model": "paced", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with client.stream("POST", "/chat/completions", json=request) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text  # noqa: ASYNC119  # as people write it

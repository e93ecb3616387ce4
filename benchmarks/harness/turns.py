"""One turn, or one resume, asked for by the harness itself: to warm a server up, and to measure resumes one by one."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import quote

from harness.load import Figures, LoadError
from harness.machine import cpu_s
from harness.servers import Server

WAIT_S = 30.0
DELTAS = 10_000
RESUMES = 200


def take_turn(server: Server, chat: str, text: str) -> int:
    """Ask for a turn, read all of it, and return its bytes. Raises LoadError."""
    body = {"id": chat, "messages": [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}]}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    try:
        connection.request("POST", "/api/chat", json.dumps(body), {"content-type": "application/json"})
        return _read(connection)
    finally:
        connection.close()


def _read(connection: http.client.HTTPConnection) -> int:
    try:
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"no whole answer: {error!r}") from error
    if response.status != 200 or b"[DONE]" not in data[-100:]:
        raise LoadError(f"status {response.status}, {len(data):,} bytes, and no proper end")
    return len(data)


def resume(server: Server) -> Figures:
    """CPU of coming back to a turn of 10,000 deltas that has just ended: the first time, and then many times.

    The clients come back on a connection that is open, as a browser's mostly is.
    """
    chat = f"resume-{time.monotonic_ns()}"
    take_turn(server, chat, f"/long {DELTAS}")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    taken: list[float] = []
    size = 0
    try:
        for count in (1, RESUMES):
            before = cpu_s(server.pid)
            for _ in range(count):
                connection.request("GET", f"/api/chat/{quote(chat)}/stream")
                size = _read(connection)
            taken.append((cpu_s(server.pid) - before) / count * 1000)
    finally:
        connection.close()
    return {"first_ms": round(taken[0], 3), "ms": round(taken[1], 4), "bytes": size}

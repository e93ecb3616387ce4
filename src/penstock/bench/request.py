"""The bytes of a request."""

from __future__ import annotations

from importlib.metadata import version

from penstock.bench.plan import Call, fill


def request_bytes(
    call: Call, names: dict[str, str], authority: str, key: str = "", last_id: str = ""
) -> bytes:
    """Make a request.

    Args:
        call: what to ask for; its own headers win over ours.
        names: the values of `{names}`.
        authority: the Host header.
        key: makes it a WebSocket's handshake.
        last_id: what the client has seen, for `Last-Event-ID`.
    """
    body = fill(call.body, names).encode()
    headers = {
        "host": authority,
        "accept": "text/event-stream",
        "user-agent": f"penstock-bench/{version('penstock')}",
    }
    if key:
        headers |= {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": key,
        }
    if body or call.method not in ("GET", "HEAD"):
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
    if last_id:
        headers["last-event-id"] = last_id
    headers |= {name.lower(): fill(value, names) for name, value in call.headers}
    lines = [f"{call.method} {fill(call.target, names)} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

"""A server whose lateness is known: each delta says that it was due 20 to 119 ms before it is sent, evenly spread.

So the median lateness is 69.5 ms and the 99th percentile 118, and what a load generator says beyond that is its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

LEAST_MS, SPREAD_MS = 20, 100
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one `POST`, then close."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        body = json.loads(await reader.readexactly(length))
        _, count, rate = body["messages"][-1]["parts"][0]["text"].split()
        writer.write(HEAD)
        began = time.time()
        for number in range(int(count)):
            await asyncio.sleep(max(0.0, began + number / float(rate) - time.time()))
            late_ms = LEAST_MS + number * 37 % SPREAD_MS
            due_ns = time.time_ns() - late_ms * 1_000_000
            writer.write(b'data: {"type":"text-delta","id":"text-1","delta":"drop @%d "}\n\n' % due_ns)
        writer.write(b"data: [DONE]\n\n")
    except (OSError, asyncio.IncompleteReadError):
        pass  # Who looks whether we listen sends nothing.
    finally:
        writer.close()


async def main() -> None:
    """Serve until the process ends."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

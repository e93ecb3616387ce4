"""What the wire costs: encode and frame a delta, parse an event stream, decode a large body.

    python benchmarks/wire.py            a table
    python benchmarks/wire.py --json     the same as JSON, with the machine it was measured on

Every number is the median of five runs in one process. Compare runs of one machine only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypedDict

from penstock.wire.chunks import TextDelta
from penstock.wire.codec import decode_json, encode
from penstock.wire.sse import chunk_frame
from penstock.wire.sse_parser import SseParser

RUNS = 5
DELTA = TextDelta(id="txt_0", delta=" penstock")
POSITION = b"msg_0123456789abcdef.0-1234"
READ_BYTES = 64 << 10
MIB = 1 << 20


class Result(TypedDict):
    name: str
    unit: str
    median: float
    runs: list[float]


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(name: str, unit: str, work: Callable[[], object], of: Callable[[float], float]) -> Result:
    """Run the work once to warm up and five times for the record; `of` turns seconds into the unit."""
    work()
    runs = [of(seconds(work)) for _ in range(RUNS)]
    return {"name": name, "unit": unit, "median": statistics.median(runs), "runs": runs}


def encode_and_frame(times: int, position: bytes) -> None:
    for _ in range(times):
        chunk_frame(encode(DELTA), position)


def parse_in_pieces(stream: bytes, size: int) -> int:
    parser = SseParser()
    return sum(len(parser.feed(stream[at : at + size])) for at in range(0, len(stream), size))


def chat_body(size: int) -> bytes:
    """Make a chat history of about this many bytes, as a client sends it."""
    messages: list[dict[str, object]] = []
    total = 0
    while total < size - 1_000:
        part = {"type": "text", "text": 'What is structured concurrency: a "nursery"?\n' * 8, "state": "done"}
        messages.append({"id": f"msg_{len(messages)}", "role": "user", "parts": [part]})
        total += len(json.dumps(messages[-1])) + 2
    return json.dumps({"id": "chat", "messages": messages, "trigger": "submit-message"}).encode()


def measure_all() -> list[Result]:
    deltas = 100_000
    plain = chunk_frame(encode(DELTA)) * deltas
    with_ids = chunk_frame(encode(DELTA), POSITION) * deltas
    short = chunk_frame(encode(DELTA)) * (deltas // 50)
    body = chat_body(MIB)
    floats = b"[" + b"1.7976931348623157e308," * (MIB // 23 - 1) + b"0]"
    if parse_in_pieces(plain, READ_BYTES) != deltas or parse_in_pieces(short, 1) != deltas // 50:
        raise SystemExit("the parser lost events: nothing to measure")
    return [
        measure("encode and frame a text-delta", "us", lambda: encode_and_frame(deltas, b""),
                lambda s: s / deltas * 1e6),
        measure("the same, with an id", "us", lambda: encode_and_frame(deltas, POSITION),
                lambda s: s / deltas * 1e6),
        measure("parse events, reads of 64 KiB", "events/s", lambda: parse_in_pieces(plain, READ_BYTES),
                lambda s: deltas / s),
        measure("parse events with ids, reads of 64 KiB", "events/s", lambda: parse_in_pieces(with_ids, READ_BYTES),
                lambda s: deltas / s),
        measure("parse events, byte by byte", "us/byte", lambda: parse_in_pieces(short, 1),
                lambda s: s / len(short) * 1e6),
        measure("decode_json, a chat of 1 MiB", "ms", lambda: decode_json(body), lambda s: s * 1e3),
        measure("decode_json, 1 MiB of extreme floats", "ms", lambda: decode_json(floats), lambda s: s * 1e3),
    ]  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description="Measure what the wire costs.")
    arguments.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = arguments.parse_args().json
    results = measure_all()
    if as_json:
        machine = {"python": platform.python_version(), "platform": platform.platform()}
        json.dump(machine | {"results": results}, sys.stdout, indent=2)
        print()
        return
    for result in results:
        print(f"{result['name']:<42} {result['median']:>14,.2f} {result['unit']}")


if __name__ == "__main__":
    main()

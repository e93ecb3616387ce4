"""A client of penstock's HTTP contract, on Trio: `open_client`."""

from penstock.client.chunk_stream import ChunkStream
from penstock.client.client import Client, open_client
from penstock.client.events import Closing, Gap, Message, Other, Received, Snapshot
from penstock.client.watch_stream import WatchEvent, WatchStream

__all__ = [
    "ChunkStream",
    "Client",
    "Closing",
    "Gap",
    "Message",
    "Other",
    "Received",
    "Snapshot",
    "WatchEvent",
    "WatchStream",
    "open_client",
]

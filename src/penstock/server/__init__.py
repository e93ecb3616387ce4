"""The HTTP server: any ASGI app on Trio, through Hypercorn's protocols, hardened.

One connection can't end the process, hold a shutdown, or write to a client that has left without hearing of it.
It knows nothing of chats. Start with `listener.py`; then `peer.py`, which owns one client's socket.
"""

from __future__ import annotations

from penstock.server.listener import serve, serve_until_signalled

__all__ = ["serve", "serve_until_signalled"]

"""Who may do what with a chat: an app's own `authorize`, asked on every route.

    async def authorize(request: Request, chat_id: str, action: Action) -> str | Denied:
        user = await user_of(request.headers.get("authorization"))
        if user is None:
            return Denied.anonymous
        return user.name if await owns(user, chat_id) else Denied.hidden

The answer is the principal's name, which a stop records, or why not. A chat that is another's looks like one that isn't
there: 404, or for a resume 204.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from penstock.asgi import Scope
from penstock.web.request import Headers, HttpError

Action: TypeAlias = Literal["read", "write", "stop", "approve"]

NO_CHAT = "There is no such chat."


class Denied(Enum):
    """Why a request is refused."""

    anonymous = 401
    """Nobody has said who they are."""
    hidden = 404
    """The chat is another's, and its existence nobody's business."""


class Request(NamedTuple):
    """What `authorize` sees of a request."""

    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    """Lower-case names; what came in several lines is one, as HTTP/2 cuts cookies."""
    client: str | None
    """The peer's address."""
    frame_headers: Mapping[str, str] = MappingProxyType({})
    """What a WebSocket's frame calls its headers: said by the client itself, past every proxy. Of these only an
    `authorization` is also among `headers`, where the handshake had none."""

    @classmethod
    def of(cls, scope: Scope, frame_headers: Mapping[str, str] = MappingProxyType({})) -> Request:
        """Return what `authorize` sees of an ASGI request, or of a WebSocket's frame."""
        return cls(
            scope.get("method", "GET"),  # a WebSocket's handshake says none
            scope["path"],
            scope["query_string"].decode("latin-1"),
            Headers(scope, frame_headers),
            scope["client"][0] if scope.get("client") else None,
            frame_headers,
        )


Authorize: TypeAlias = Callable[[Request, str, Action], Awaitable[str | Denied]]


async def allow_everyone(request: Request, chat_id: str, action: Action) -> str | Denied:
    """Allow everything to everyone: for a loopback, or behind something that decides."""
    return "anyone"


async def authorized(authorize: Authorize, request: Request, chat_id: str, action: Action) -> str:
    """Ask the app, and return the principal's name.

    Raises:
        HttpError: 401 or 404.
    """
    answer = await authorize(request, chat_id, action)
    if answer is Denied.anonymous:
        raise HttpError(401, "Please sign in.")
    if isinstance(answer, Denied):
        raise HttpError(404, NO_CHAT)
    return answer

"""The chats that somebody watches here, and what begins in them, on whichever node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from penstock.journal.store import Store
from penstock.turns.feed import Begun, Feed, Watcher
from penstock.turns.handle import TurnHandle


class WatchedChats:
    """The feeds of a hub.

    Args:
        store: the journal's.
        turn: finds a turn.
    """

    def __init__(self, store: Store, turn: Callable[[str], Awaitable[TurnHandle | None]]) -> None:
        self._store = store
        self._turn = turn
        self._feeds: dict[str, Feed] = {}

    def watch(self, chat_id: str) -> Watcher:
        """Return a cursor on what begins in a chat from now on."""
        feed = self._feeds.get(chat_id)
        if feed is None:
            feed = self._feeds[chat_id] = Feed(partial(self._feeds.pop, chat_id, None))
        return feed.watch()

    def tell(self, begun: Begun) -> None:
        """Tell those who watch the turn's chat."""
        feed = self._feeds.get(begun.turn.chat_id)
        if feed is not None:
            feed.add(begun)

    async def began_elsewhere(self, chat_id: str, turn_id: str, *, sure: bool = True) -> None:
        """Show a turn of another node.

        Raises:
            StoreUnavailableError: if it can't be read now.
        """
        if chat_id not in self._feeds or (turn := await self._turn(turn_id)) is None:
            return
        chat = await self._store.chat(chat_id)
        for message in () if chat is None else reversed(chat.messages):
            if message.id == turn.record.request_key:
                self.tell(Begun(turn, message, sure))

    async def look(self) -> None:
        """Show the newest turns: some may have begun elsewhere unheard.

        Raises:
            StoreUnavailableError: if they can't be read now.
        """
        for chat_id in list(self._feeds):
            chat = await self._store.chat(chat_id)
            if chat is not None and chat.turn is not None:
                await self.began_elsewhere(chat_id, chat.turn.turn_id, sure=False)

"""How a process becomes the owner of the turn that answers a message: one of four ways, each a compare-and-set."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from penstock.errors import TurnConflictError, TurnNotFoundError, TurnSealedError
from penstock.journal.store import RunningTurnError, Store, TurnRecord, TurnState
from penstock.turns.replica import read_all
from penstock.wire.messages import UIMessage

SUPERSEDED = "superseded by a new message"


async def claim(
    store: Store,
    chat_id: str,
    messages: Sequence[UIMessage],
    lease_until: Callable[[], float],
    lapsed: Callable[[TurnRecord], bool],
    end_abandoned: Callable[[TurnRecord, str | None], Awaitable[None]],
) -> tuple[TurnRecord, Sequence[bytes] | None]:
    """Begin the turn that answers the last of `messages`, or go on with the suspended one that it continues.

    A turn of the chat that waits for the user is superseded by a new message, and one whose owner died is ended.

    Returns:
        The turn's record and the entries that it has already. None instead of entries: another process runs the turn
        that answers this very message.

    Raises:
        TurnConflictError: if another message of this chat is being answered.
        TurnNotFoundError: if the turn to be continued isn't in the journal, or has ended.
        StoreUnavailableError: if the store can't be asked.
    """
    key = messages[-1].id
    if messages[-1].role == "assistant":
        found = await store.turn(key)
        if found is None or found.chat_id != chat_id or found.state.ended:
            raise TurnNotFoundError("the answer to be continued is not in the journal, or is over")
        if found.state is TurnState.suspended:
            try:
                record = await store.resume(found, key, messages, lease_until=lease_until())
            except TurnSealedError:
                raise TurnConflictError("somebody else goes on with this answer") from None
            return record, await read_all(store, record)
    # Twice: an abandoned turn may have to be ended before.
    for _ in range(2):
        turn_id = f"msg_{secrets.token_hex(12)}"
        try:
            record = await store.begin(
                chat_id, turn_id, key, messages, at=time.time(), lease_until=lease_until()
            )
        except RunningTurnError as exc:
            found = exc.turn
        else:
            return record, ()
        if found.state is TurnState.suspended:
            await end_abandoned(found, SUPERSEDED)
        elif lapsed(found):
            await end_abandoned(found, None)
        elif found.request_key == key:
            return found, None
        else:
            break
    raise TurnConflictError("another message of this chat is being answered")

"""The one task that writes to a SQLite file: group commit, off the event loop.

An operation is a function of the connection. Those that wait are run together: one hop to a thread, one transaction,
one commit, however many tasks called; while it runs the next ones gather, so groups grow exactly when the disk is slow.
An operation that is refused, or fails for a reason of its own, takes nothing from the others: the group is run again
with a savepoint for each. Callers are answered after the commit.

Between commits there is upkeep, also an operation: a slice of the work that nobody waits for. It says when it wants
to be called again.

This file knows nothing of what is in the file that it writes.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar, cast

import trio

from penstock.errors import StoreUnavailableError
from penstock.limits import SqliteLimits

logger = logging.getLogger("penstock.journal")

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]
_Answer: TypeAlias = tuple[Any, Exception | None]


class _Operation(Generic[T]):
    """A call that waits for its commit."""

    __slots__ = ("_answer", "_work", "done", "since", "withdrawn")

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self.withdrawn = False
        self.since = trio.current_time()
        self.done = trio.Event()
        self._answer: _Answer = (None, None)

    def run(self, connection: sqlite3.Connection) -> T | None:
        # It may have been given up while the thread waited for a lock.
        return None if self.withdrawn else self._work(connection)

    def settle(self, answer: _Answer) -> None:
        self._answer = answer
        self.done.set()

    def answer(self) -> T:
        value, error = self._answer
        if error is not None:
            raise error
        return cast("T", value)


class Writer:
    """A connection's owner. `run` is its task, `write` is how the others reach it."""

    def __init__(self, connection: sqlite3.Connection, upkeep: Work[float], limits: SqliteLimits) -> None:
        self._connection = connection
        self._upkeep = upkeep
        self._limits = limits
        self._upkeep_at = trio.current_time()
        # Ordered, and an operation stays in it until it is settled: what could not be tried for a lock is simply
        # still there, and what its caller gave up is simply gone.
        self._waiting: dict[_Operation[Any], None] = {}
        self._news = trio.lowlevel.ParkingLot()
        self._threads = trio.CapacityLimiter(1)
        self._closing = False
        # The callers' last writes come when everything round them is being cancelled, so only `close` ends the task.
        self._scope = trio.CancelScope(shield=True)

    async def write(self, work: Work[T]) -> T:
        """Run an operation in the next transaction, and return or raise what it did, once that is committed.

        Raises:
            StoreUnavailableError: if the file can't be written; the operation has changed nothing, unless the disk
                failed in the commit itself.

        Cancellation: an operation whose transaction has not begun is withdrawn. Another is completed, and whatever
        comes of it is dropped.
        """
        if self._closing:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailableError("the journal is closed")
        operation = _Operation(work)
        self._waiting[operation] = None
        self._news.unpark_all()
        try:
            await operation.done.wait()
        finally:
            operation.withdrawn = True
            self._waiting.pop(operation, None)
        return operation.answer()

    def hasten_upkeep(self) -> None:
        """Have the upkeep called after this commit. For operations."""
        self._upkeep_at = float("-inf")

    def close(self) -> None:
        """Take no more operations; `run` ends after those that wait, or `close_s`."""
        self._closing = True
        self._scope.deadline = trio.current_time() + self._limits.close_s
        self._news.unpark_all()

    async def run(self) -> None:
        """Write until closed. A cancellation from outside does not reach it."""
        try:
            with self._scope:
                while self._waiting or not self._closing:
                    if not self._waiting:
                        with trio.move_on_at(self._upkeep_at):
                            await self._news.park()
                    if self._waiting:
                        await self._commit()
                    if self._upkeep_at <= trio.current_time() and not self._closing:
                        await self._keep_up()
        finally:
            self._closing = True
            for operation in list(self._waiting):
                self._settle(operation, (None, StoreUnavailableError("the journal was closed")))

    async def _commit(self) -> None:
        operations = list(islice(self._waiting, self._limits.commit_operations))
        try:
            answers = await self._transact([operation.run for operation in operations])
        except sqlite3.Error as exc:
            locked = is_locked(exc)
            if not locked:
                logger.warning("the journal can't be written: %s", exc)
            tried_since = trio.current_time() - self._limits.lock_s
            for operation in operations:
                if not locked or operation.since <= tried_since:
                    error = StoreUnavailableError(f"the journal can't be written: {exc}")
                    error.__cause__ = exc
                    self._settle(operation, (None, error))
        else:
            for operation, answer in zip(operations, answers, strict=True):
                self._settle(operation, answer)

    async def _keep_up(self) -> None:
        delay_s = self._limits.trim_s
        try:
            ((value, error),) = await self._transact([self._upkeep])
            if error is not None:
                raise error
            delay_s = value
        except sqlite3.Error as exc:
            # It costs nobody anything yet. If the file can't be written at all, the callers are told.
            logger.info("the journal's upkeep must wait: %s", exc)
        self._upkeep_at = trio.current_time() + delay_s

    def _settle(self, operation: _Operation[Any], answer: _Answer) -> None:
        self._waiting.pop(operation, None)
        operation.settle(answer)

    async def _transact(self, works: Sequence[Work[Any]]) -> list[_Answer]:
        return await trio.to_thread.run_sync(transact, self._connection, works, limiter=self._threads)


def transact(connection: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[_Answer]:
    """Run operations in one transaction, and return what each returned or raised. In a thread.

    An operation may be run twice, and only the second counts: all that it does is done to the file.

    Raises:
        sqlite3.Error: if the file failed; then nothing is changed, unless it failed in the commit itself.
    """
    if connection.in_transaction:
        connection.execute("ROLLBACK")  # the one after a failure failed as well
    connection.execute("BEGIN IMMEDIATE")
    try:
        try:
            answers: list[_Answer] = [(work(connection), None) for work in works]
        except Exception as exc:
            if _is_of_the_file(exc):
                raise
            # Savepoints would take a fifth of the time of every commit; so they are for those that need them.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            answers = [_attempt(connection, work) for work in works]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return answers


def _attempt(connection: sqlite3.Connection, work: Work[Any]) -> _Answer:
    answer: _Answer
    connection.execute("SAVEPOINT operation")
    try:
        answer = work(connection), None
    except Exception as exc:
        if _is_of_the_file(exc):
            raise
        connection.execute("ROLLBACK TO operation")
        answer = None, exc
    connection.execute("RELEASE operation")
    return answer


def _is_of_the_file(exc: Exception) -> bool:
    """Say whether it is the file or the disk that failed, not the operation. SQLite may have rolled all back then."""
    return isinstance(exc, sqlite3.OperationalError) or type(exc) is sqlite3.DatabaseError


def is_locked(exc: sqlite3.Error) -> bool:
    """Say whether another process has the file, so that trying again helps."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

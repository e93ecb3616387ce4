"""Each guarantee of `penstock.journal.store`, for the stores that need no server; and histories of them."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.journal import store as journal
from penstock.journal.sqlite import SqliteStore
from penstock.journal.store import Store, check_journal
from penstock.limits import Limits, SqliteLimits
from penstock.testing.store_calls import OpenStore
from penstock.testing.store_suite import StoreSuite
from store_histories import STEPS, Step, run_program

EAGER = Limits(sqlite=SqliteLimits(log_rows=3, trim_s=0.002, trim_entries=3))
"""Packs and trims all the time, in the smallest slices."""
SOON = Limits(sqlite=SqliteLimits(trim_s=0.002))


class TestMemory(StoreSuite):
    outlives_its_process = False

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """`memory:`."""
        return partial(journal.open_store, "memory:")


class TestSqlite(StoreSuite):
    @pytest.fixture(params=["full", "normal", "eager"])
    def open_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
        """`sqlite:`, in both durabilities."""
        durability = "normal" if request.param == "normal" else "full"
        url = f"sqlite:{tmp_path}/chat.db?durability={durability}"
        return partial(journal.open_store, url, limits=EAGER if request.param == "eager" else SOON)


@pytest.mark.parametrize(
    "url",
    [
        "", "memory", "memory:x", "sqlite:", "sqlite", "chat.db", "sqlite::memory:", "sqlite:///chat.db", "redi://x",
        "sqlite:chat.db?durability=none", "sqlite:chat.db?", "sqlite:?durability=full", "sqlite:chat.db?x=1",
    ],
)  # fmt: skip
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="journal"):
        check_journal(url)


async def crash(folder: str, store: Store, life: int) -> OpenStore:
    """Copy the files as they are now, which is what a killed process leaves, and return what opens the copy."""
    assert isinstance(store, SqliteStore)
    path = f"{folder}/life-{life}.db"

    def copy(db: sqlite3.Connection) -> None:
        # The writer does it, as a checkpoint between the two copies would tear them.
        ((_, _, source),) = db.execute("PRAGMA database_list")
        shutil.copy(source, path)
        shutil.copy(source + "-wal", f"{path}-wal")

    await store._writer.write(copy)
    return partial(journal.open_store, f"sqlite:{path}", limits=EAGER)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(STEPS, min_size=10, max_size=40))
def test_histories_in_memory_are_those_of_plain_lists(program: list[Step]) -> None:
    trio.run(partial(run_program, partial(journal.open_store, "memory:"), program, lasting=False))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(STEPS, min_size=10, max_size=40))
def test_histories_in_a_file_are_those_of_plain_lists(program: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opener = partial(journal.open_store, f"sqlite:{folder}/chat.db", limits=EAGER)
        trio.run(partial(run_program, opener, program, crash=partial(crash, folder)))

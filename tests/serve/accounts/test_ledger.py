"""The ledger: counts are committed before they are told, nothing is doubled, the dead's rows are settled once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chogori.errors import DatabaseError
from chogori.serve.accounts.caller import ANYBODY, Caller
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.accounts.ledger import UsageLedger
from chogori.serve.accounts.ledger_writer import LedgerWriter
from chogori.serve.accounts.prices import PriceTable
from tests.serve.accounts.rows import check_books, rows_of

PRICES = PriceTable.parse(
    """
    [models.nano]
    input_per_mtok = 3
    cached_input_per_mtok = 0.5
    output_per_mtok = 7
    cache_creation_per_mtok = 11
    cache_storage_per_mtok_minute = 0.25
    cache_call = 0.0015
    """,
    origin="test",
)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@asynccontextmanager
async def running(database: Database) -> AsyncGenerator[UsageLedger]:
    ledger = UsageLedger(database, PRICES)
    await asyncio.to_thread(ledger.start)
    try:
        yield ledger
    finally:
        await asyncio.to_thread(ledger.stop)


def new_caller(database: Database) -> Caller:
    return KeyStore(database, b"s" * 32).create("Ada", scopes=["chat"]).record.caller


@in_loop
async def test_a_count_is_committed_when_progress_returns(database: Database) -> None:
    caller = new_caller(database)
    async with running(database) as ledger:
        usage = await ledger.open(caller, api="openai_chat", model="nano", request_id="r1")
        assert [row["outcome"] for row in rows_of(database)] == [None]
        for num_tokens in range(1, 6):
            await usage.progress(prompt_tokens=100, cached_tokens=40, completion_tokens=num_tokens)
            assert check_books(database)[0]["completion_tokens"] == num_tokens
        await usage.finish(prompt_tokens=100, cached_tokens=40, completion_tokens=6)
        (row,) = check_books(database)
    assert (row["request_id"], row["api"], row["model"]) == ("r1", "openai_chat", "nano")
    assert (row["outcome"], row["key_id"], row["priced_as"]) == ("finished", caller.key_id, "nano")
    assert row["cost"] == 60 * 3_000_000 + 40 * 500_000 + 6 * 7_000_000


@in_loop
async def test_a_charge_is_made_once_by_its_ref(database: Database) -> None:
    caller = new_caller(database)
    async with running(database) as ledger:
        for _ in range(2):
            await asyncio.gather(
                *(
                    ledger.charge(caller, kind="cache_storage", model="nano", quantity=1000, ref=f"c:minute:{n}")
                    for n in (0, 0, 1, 1)
                )
            )
        await ledger.charge(caller, kind="cache_call", model="nano", quantity=1, ref="c:call", request_id="r1")
        await ledger.charge_owner("", kind="cache_creation", model="nano", quantity=10, ref="c:new")
    rows = check_books(database)
    assert sorted((row["kind"], row["cost"]) for row in rows) == [
        ("cache_call", 1_500_000_000),
        ("cache_creation", 110_000_000),
        ("cache_storage", 250_000_000),
        ("cache_storage", 250_000_000),
    ]


@in_loop
async def test_two_servers_never_make_one_charge_twice(database: Database, url: str) -> None:
    caller = new_caller(database)
    elsewhere = Database.open(url)
    async with running(database) as one, running(elsewhere) as two:
        await asyncio.gather(
            *(
                ledger.charge(caller, kind="cache_storage", model="nano", quantity=1, ref=f"minute:{n}")
                for n in range(50)
                for ledger in (one, two)
            )
        )
    elsewhere.close()
    assert len(check_books(database)) == 50


@in_loop
async def test_many_streams_share_commits_and_each_has_its_own_count(database: Database) -> None:
    callers = [new_caller(database) for _ in range(3)]
    commits = 0
    transaction = Database.transaction

    def counted(connection: object) -> contextlib.AbstractContextManager[object]:
        nonlocal commits
        commits += 1
        return transaction(connection)  # pyright: ignore[reportArgumentType]

    database.transaction = counted  # pyright: ignore[reportAttributeAccessIssue]

    async def stream(ledger: UsageLedger, i: int) -> tuple[str, int, str]:
        dice = random.Random(i)
        usage = await ledger.open(callers[i % 3], api="a", model="nano", request_id=f"r{i}")
        num_tokens = dice.randrange(1, 20)
        for n in range(1, num_tokens + 1):
            await usage.progress(prompt_tokens=i, cached_tokens=i // 2, completion_tokens=n)
        outcome = dice.choice(["finished", "cancelled", "failed"])
        await usage.close(outcome)  # pyright: ignore[reportArgumentType]
        return f"r{i}", num_tokens, outcome

    async with running(database) as ledger:
        expected = await asyncio.gather(*(stream(ledger, i) for i in range(300)))
    rows = check_books(database)
    assert sorted((row["request_id"], row["completion_tokens"], row["outcome"]) for row in rows) == sorted(expected)
    assert commits < 300, "streams wait for each other's commits, not for one of their own"


@in_loop
async def test_a_stream_that_is_cancelled_while_it_waits_is_closed_with_what_it_asked_for(database: Database) -> None:
    caller = new_caller(database)
    async with running(database) as ledger:
        opening = asyncio.create_task(ledger.open(caller, api="a", model="nano", request_id="opening"))
        usage = await ledger.open(caller, api="a", model="nano", request_id="counting")
        await asyncio.sleep(0)
        counting = asyncio.create_task(usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=1))
        leaving = asyncio.create_task(ledger.open(caller, api="a", model="nano", request_id="leaving"))
        await asyncio.sleep(0)
        counting.cancel()
        leaving.cancel()
        await asyncio.gather(counting, leaving, return_exceptions=True)
        usage.abandon("cancelled")
        (await opening).abandon("failed")
    outcomes = {row["request_id"]: (row["outcome"], row["completion_tokens"]) for row in check_books(database)}
    assert outcomes == {"opening": ("failed", 0), "counting": ("cancelled", 1), "leaving": ("cancelled", 0)}


@in_loop
async def test_a_model_without_prices_costs_nothing_and_says_so(database: Database) -> None:
    async with running(database) as ledger:
        usage = await ledger.open(ANYBODY, api="a", model="unknown", request_id="r")
        await usage.finish(prompt_tokens=5, cached_tokens=0, completion_tokens=5)
    (row,) = check_books(database)
    assert (row["cost"], row["priced_as"], row["key_id"]) == (0, None, None)


@in_loop
async def test_a_living_server_s_rows_are_its_own(database: Database, url: str) -> None:
    elsewhere = Database.open(url)
    async with running(database) as ledger:
        usage = await ledger.open(ANYBODY, api="a", model="nano", request_id="r")
        await usage.progress(prompt_tokens=1, cached_tokens=0, completion_tokens=1)
        async with running(elsewhere):
            assert rows_of(database)[0]["outcome"] is None
        await usage.progress(prompt_tokens=1, cached_tokens=0, completion_tokens=2)
        await usage.close("finished")
    elsewhere.close()
    assert rows_of(database)[0]["outcome"] == "finished"


def _die_while_open(url: str, point: str) -> None:
    """A server that dies in the middle of its work: killed at a point around a commit of the second count."""

    async def work() -> None:
        database = Database.open(url)
        ledger = UsageLedger(database, PRICES)
        ledger.start()
        caller = KeyStore(database, b"s" * 32).create("Ada", scopes=["chat"]).record.caller
        usage = await ledger.open(caller, api="a", model="nano", request_id="r")
        await usage.progress(prompt_tokens=10, cached_tokens=4, completion_tokens=1)
        transaction = Database.transaction

        @contextlib.contextmanager
        def dying(connection: object):
            if point == "before":
                os._exit(9)
            with transaction(connection) as same:  # pyright: ignore[reportArgumentType]
                yield same
                if point == "between":
                    os._exit(9)
            os._exit(9)

        database.transaction = dying
        await usage.progress(prompt_tokens=10, cached_tokens=4, completion_tokens=2)

    asyncio.run(work())


@pytest.mark.parametrize(("point", "completion_tokens"), [("before", 1), ("between", 1), ("after", 2)])
@in_loop
async def test_whenever_a_server_dies_its_rows_are_settled_once(
    database: Database, url: str, point: str, completion_tokens: int
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_while_open, args=(url, point))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    async with running(database):
        pass
    (row,) = check_books(database)
    assert row["outcome"] == "interrupted"
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, completion_tokens)
    async with running(database):
        pass
    assert check_books(database) == [row]
    if database.file is not None:
        assert not list(database.file.parent.glob("*-server-*")), "no sign of life is left of the dead"


@in_loop
async def test_a_row_that_was_settled_elsewhere_serves_nothing_more(database: Database) -> None:
    """A server that was cut off from the database, so that another took it for dead."""
    async with running(database) as ledger:
        usage = await ledger.open(ANYBODY, api="a", model="nano", request_id="r")
        with database.begin() as connection:
            connection.exec_driver_sql("UPDATE usage SET outcome = 'interrupted'")
        with pytest.raises(DatabaseError, match="another server closed this request's row"):
            await usage.progress(prompt_tokens=1, cached_tokens=0, completion_tokens=1)
    assert rows_of(database)[0]["completion_tokens"] == 0


@in_loop
async def test_while_the_database_fails_nothing_is_served_and_ends_are_written_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chogori.serve.accounts.ledger_writer.RETRY_AFTER_S", 0.01)
    fails = False
    connected: Callable[[LedgerWriter], object] = LedgerWriter._connected

    def failing(writer: LedgerWriter) -> object:
        if fails:
            raise DatabaseError("it is locked")
        return connected(writer)

    monkeypatch.setattr(LedgerWriter, "_connected", failing)
    caller = new_caller(database)
    async with running(database) as ledger:
        usage = await ledger.open(caller, api="a", model="nano", request_id="r")
        await usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=1)
        fails = True
        with pytest.raises(DatabaseError, match="it is locked"):
            await usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=2)
        usage.abandon("failed")
        with pytest.raises(DatabaseError, match="it is locked"):
            await ledger.open(caller, api="a", model="nano", request_id="refused")
        fails = False
        for _ in range(500):
            if rows_of(database)[0]["outcome"]:
                break
            await asyncio.sleep(0.01)
        later = await ledger.open(caller, api="a", model="nano", request_id="later")
        await later.close("finished")
    outcomes = {row["request_id"]: (row["outcome"], row["completion_tokens"]) for row in check_books(database)}
    assert outcomes == {"r": ("failed", 2), "later": ("finished", 0)}


@in_loop
async def test_a_commit_whose_answer_is_lost_is_not_counted_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count stands, the server believes that it does not, and writes on from there."""
    monkeypatch.setattr("chogori.serve.accounts.ledger_writer.RETRY_AFTER_S", 0.01)
    transaction = Database.transaction
    is_lost = False

    @contextlib.contextmanager
    def losing(connection: object) -> Generator[object]:
        nonlocal is_lost
        with transaction(connection) as same:  # pyright: ignore[reportArgumentType]
            yield same
        if is_lost:
            is_lost = False
            raise DatabaseError("the connection was lost")

    caller = new_caller(database)
    async with running(database) as ledger:
        usage = await ledger.open(caller, api="a", model="nano", request_id="r")
        await usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=1)
        database.transaction = losing  # pyright: ignore[reportAttributeAccessIssue]

        async def lose(work: Coroutine[Any, Any, object]) -> None:
            nonlocal is_lost
            # Connected again, so that it is the work's own commit of which nothing is heard.
            await ledger.charge(ANYBODY, kind="cache_call", model="nano", quantity=0, ref="connects")
            is_lost = True
            with pytest.raises(DatabaseError, match="the connection was lost"):
                await work

        for _ in range(2):
            await lose(usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=2))
        await usage.progress(prompt_tokens=5, cached_tokens=0, completion_tokens=3)
        await lose(usage.finish(prompt_tokens=5, cached_tokens=0, completion_tokens=4))
        await lose(ledger.open(caller, api="a", model="nano", request_id="lost"))
    rows = {row["request_id"]: (row["outcome"], row["completion_tokens"]) for row in check_books(database)}
    del rows[None]  # the charge
    assert rows == {"r": ("finished", 4), "lost": ("failed", 0)}

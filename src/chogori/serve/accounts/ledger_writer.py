"""The one thread that writes usage: what all streams have counted since its last commit goes into its next one.

So five hundred streams, each waiting until its own count stands, share one commit, and none runs ahead of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from chogori.errors import DatabaseError
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import api_key
from chogori.serve.accounts.lease import lease_of
from chogori.serve.accounts.usage_table import Outcome, usage

logger = logging.getLogger(__name__)

MAX_BATCH = 1000
SETTLE_EVERY_S = 30.0
"""How often rows of servers that died elsewhere are looked for."""
RETRY_AFTER_S = 1.0
"""How soon what a failing database did not take is tried again."""


@dataclass(kw_only=True, slots=True)
class RowOpened:
    """A request is about to be sent to its model."""

    row: Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class RowCounted:
    """What a request has consumed so far, and how it ended, where it did."""

    row_id: str
    key_id: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int
    """In 1e-12 USD."""
    outcome: Outcome | None = None


@dataclass(kw_only=True, slots=True)
class RowCharged:
    """A charge by itself; one whose `ref` stands already changes nothing."""

    row: Mapping[str, Any]


Entry = RowOpened | RowCounted | RowCharged


class SettledElsewhere(DatabaseError):
    """A row was closed by another server, which found this one without its sign of life."""


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    future: asyncio.Future[None] | None
    error: Exception | None = field(default=None)


class LedgerWriter:
    """Commits entries in the order in which they were submitted. `start` it, and `stop` it when nobody submits."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.process_id = uuid.uuid4().hex
        """What this server's rows are marked with."""
        self._database = database
        self._clock = clock
        self._lease = lease_of(database, self.process_id)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._opened = contextlib.ExitStack()
        self._retries: list[RowCounted] = []
        self._settled_at = 0.0
        self._costs: dict[str, int] = {}
        """What the open rows of this server were last committed to cost."""

    def start(self) -> None:
        """Take the lease, close what dead servers left open, and begin to write. Raises DatabaseError. Blocks."""
        self._settle(self._connected())
        self._lease.clear()
        self._thread = threading.Thread(target=self._run, name="usage ledger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what was submitted, and let the lease go. Blocks."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._disconnect()
        self._lease.release()

    def submit(self, entry: Entry) -> asyncio.Future[None]:
        """Queue an entry; the future is done when it is committed, or fails with DatabaseError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Waiting(entry, future))
        return future

    def submit_silently(self, entry: Entry) -> None:
        """Queue an entry that nobody waits for."""
        self._queue.put(_Waiting(entry, None))

    # ---- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch or self._retries:
                self._write(batch)
            elif self._clock() - self._settled_at >= SETTLE_EVERY_S and not is_last:
                self._settle_or_log()
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        batch: list[_Waiting] = []
        try:
            waiting = self._queue.get(timeout=RETRY_AFTER_S if self._retries else SETTLE_EVERY_S)
            while waiting is not None:
                batch.append(waiting)
                if len(batch) == MAX_BATCH:
                    return batch, False
                waiting = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _write(self, batch: list[_Waiting]) -> None:
        retries, self._retries = self._retries, []
        everything = [*(_Waiting(entry, None) for entry in retries), *batch]
        try:
            self._apply(everything)
        except Exception as error:
            self._disconnect()
            self._costs.clear()  # nobody knows whether a commit whose answer was lost was made
            failure = error if isinstance(error, DatabaseError) else DatabaseError(f"usage was not written: {error}")
            logger.error("usage was not written, requests are refused: %s", error, exc_info=_unexpected(error))
            for waiting in everything:
                waiting.error = failure
                self._retries += _to_retry(waiting.entry)
        _resolve(batch)

    def _apply(self, batch: list[_Waiting]) -> None:
        """One transaction that takes its rows to be as this server left them; where one is not, another that asks."""
        connection = self._connected()
        costs: dict[str, int] = {}
        try:
            with self._database.errors(), self._database.transaction(connection):
                _apply(connection, batch, self.process_id, self._clock(), self._costs, costs)
        except _ChangedElsewhere:
            costs = {}
            with self._database.errors(), self._database.transaction(connection):
                _apply(connection, batch, self.process_id, self._clock(), None, costs)
        self._costs |= costs
        for waiting in batch:
            if isinstance(waiting.entry, RowCounted) and (waiting.entry.outcome is not None or waiting.error):
                self._costs.pop(waiting.entry.row_id, None)

    def _connected(self) -> Connection:
        self._database.require_file()
        if self._connection is None:
            connection = self._opened.enter_context(self._database.connect())
            try:
                with self._database.errors(), self._database.transaction(connection):
                    self._lease.hold(connection)
            except BaseException:
                self._disconnect()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            # A session that goes back into the pool would keep its locks.
            with contextlib.suppress(Exception):
                self._connection.invalidate()
        self._connection = None
        with contextlib.suppress(Exception):
            self._opened.close()

    def _settle_or_log(self) -> None:
        try:
            self._settle(self._connected())
        except DatabaseError as error:
            self._disconnect()
            self._settled_at = self._clock()
            logger.error("rows of other servers could not be settled: %s", error)

    def _settle(self, connection: Connection) -> None:
        """Close the rows of servers that are dead: what they had committed is what their clients are charged."""
        self._settled_at = self._clock()
        is_open = usage.c.outcome.is_(None)
        with self._database.errors(), self._database.transaction(connection):
            found = connection.scalars(sql.select(usage.c.process_id).where(is_open).distinct()).all()
            for process_id in sorted(set(found) - {self.process_id}):
                with self._lease.inherit(connection, process_id) as is_dead:
                    if is_dead:
                        ends = usage.update().where(is_open, usage.c.process_id == process_id)
                        connection.execute(ends.values(outcome="interrupted", closed_at=self._settled_at))


class _ChangedElsewhere(Exception):
    """A row of this server is not as this server left it."""


def _apply(
    connection: Connection,
    batch: Iterable[_Waiting],
    process_id: str,
    now: float,
    known_costs: Mapping[str, int] | None,
    costs: dict[str, int],
) -> None:
    """Write a batch, and into `costs` what its rows cost then.

    `known_costs` is what they cost before, None to ask the database. Raises _ChangedElsewhere where they are not so.
    """
    opened: list[dict[str, Any]] = []
    charged: list[RowCharged] = []
    counted: dict[str, list[_Waiting]] = {}
    is_final = False
    for waiting in batch:
        match waiting.entry:
            case RowOpened(row=row):
                opened.append({**row, "process_id": process_id})
                costs[row["id"]] = row["cost"]
            case RowCharged():
                charged.append(waiting.entry)
                is_final = True
            case RowCounted(row_id=row_id, outcome=outcome):
                counted.setdefault(row_id, []).append(waiting)
                is_final = is_final or outcome is not None
    if connection.dialect.name == "postgresql" and not is_final:
        # As on SQLite: the death of this process loses nothing, a power cut may lose the last counts of what runs.
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
    if opened:
        connection.execute(usage.insert(), opened)
    spent: dict[str, int] = {}
    if counted:
        _count(connection, counted, spent, now, known_costs, costs)
    for charge in charged:
        _charge(connection, charge, spent, process_id)
    # In one order, so that two servers never wait for each other.
    amounts = [{"key": key_id, "amount": amount} for key_id, amount in sorted(spent.items()) if amount]
    if amounts:
        connection.execute(_SPEND, amounts)


# Built once: SQLAlchemy takes as long to build a statement as to run it.
_SPEND = (
    api_key.update().where(api_key.c.id == sql.bindparam("key")).values(spent=api_key.c.spent + sql.bindparam("amount"))
)
_STATE = (
    sql.select(usage.c.id, usage.c.cost, usage.c.outcome)
    .where(usage.c.id.in_(sql.bindparam("ids", expanding=True)))
    .with_for_update()
)
_COUNT = (
    usage.update()
    .where(usage.c.id == sql.bindparam("row_id"), usage.c.outcome.is_(None))
    .values(
        prompt_tokens=sql.bindparam("prompts"),
        cached_tokens=sql.bindparam("cached"),
        completion_tokens=sql.bindparam("completions"),
        cost=sql.bindparam("total"),
        outcome=sql.bindparam("ended"),
        closed_at=sql.bindparam("ended_at"),
    )
)


def _count(
    connection: Connection,
    counted: Mapping[str, list[_Waiting]],
    spent: dict[str, int],
    now: float,
    known_costs: Mapping[str, int] | None,
    costs: dict[str, int],
) -> None:
    """Write counts. What a key has spent moves by the difference to the row, so writing a count again adds nothing."""
    before = {**(known_costs if known_costs is not None else _costs_of_open_rows(connection, list(counted))), **costs}
    updates: list[dict[str, Any]] = []
    for row_id, waitings in counted.items():
        if row_id not in before:
            if known_costs is not None:
                raise _ChangedElsewhere
            for waiting in waitings:
                waiting.error = SettledElsewhere("another server closed this request's row; nothing more is served")
            continue
        last = waitings[-1].entry
        assert isinstance(last, RowCounted)
        updates.append(
            {
                "row_id": row_id,
                "prompts": last.prompt_tokens,
                "cached": last.cached_tokens,
                "completions": last.completion_tokens,
                "total": last.cost,
                "ended": last.outcome,
                "ended_at": None if last.outcome is None else now,
            }
        )
        costs[row_id] = last.cost
        if last.key_id is not None:
            spent[last.key_id] = spent.get(last.key_id, 0) + last.cost - before[row_id]
    if updates and connection.execute(_COUNT, updates).rowcount != len(updates):
        raise _ChangedElsewhere


def _costs_of_open_rows(connection: Connection, row_ids: Sequence[str]) -> dict[str, int]:
    rows = connection.execute(_STATE, {"ids": row_ids})
    return {row.id: row.cost for row in rows if row.outcome is None}


def _charge(connection: Connection, charge: RowCharged, spent: dict[str, int], process_id: str) -> None:
    row: dict[str, Any] = {**charge.row, "process_id": process_id}
    if connection.scalar(sql.select(usage.c.id).where(usage.c.ref == row["ref"])) is not None:
        return
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert  # lazily: of the one dialect in use

        # Another server may make the same charge at this moment.
        made = insert(usage).values(row).on_conflict_do_nothing(index_elements=["ref"]).returning(usage.c.id)
        if connection.scalar(made) is None:
            return
    else:
        connection.execute(usage.insert().values(row))
    if row["key_id"] is not None:
        spent[row["key_id"]] = spent.get(row["key_id"], 0) + row["cost"]


def _to_retry(entry: Entry) -> list[RowCounted]:
    """What must be written later although nobody waits any more: ends, and the end of what was perhaps begun."""
    match entry:
        case RowCounted(outcome=outcome):
            return [] if outcome is None else [entry]
        case RowOpened(row=row):
            return [
                RowCounted(
                    row_id=row["id"],
                    key_id=row["key_id"],
                    prompt_tokens=0,
                    cached_tokens=0,
                    completion_tokens=0,
                    cost=0,
                    outcome="failed",
                )
            ]
        case RowCharged():
            return []


def _unexpected(error: Exception) -> Exception | None:
    return None if isinstance(error, DatabaseError) else error


def _resolve(batch: Iterable[_Waiting]) -> None:
    """Wake who waits: one call for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
    for waiting in batch:
        if waiting.future is not None:
            by_loop.setdefault(waiting.future.get_loop(), []).append(waiting)
    for loop, waitings in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits in it
            loop.call_soon_threadsafe(_wake, waitings)


def _wake(waitings: Iterable[_Waiting]) -> None:
    for waiting in waitings:
        future = waiting.future
        if future is None or future.done():
            continue
        if waiting.error is None:
            future.set_result(None)
        else:
            future.set_exception(waiting.error)

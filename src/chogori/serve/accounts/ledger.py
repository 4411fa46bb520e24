"""What every request consumes, written down before its client has it.

A row is opened before a request is sent to its model, counts on with every event, and is closed with its outcome. A
delta leaves only when the count that includes it is committed; so whatever is killed, a client never received more than
its row says, and at most the one event that was on its way is counted and was not received.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

from chogori.serve.accounts.caller import Caller
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.ledger_writer import LedgerWriter, RowCharged, RowCounted, RowOpened
from chogori.serve.accounts.prices import Price, PriceTable
from chogori.serve.accounts.usage_table import DAY_S, ChargeKind, Outcome, cost_of


class UsageLedger:
    """The rows of one server. `start` and `stop` block: they are called from a thread."""

    def __init__(self, database: Database, prices: PriceTable, *, clock: Callable[[], float] = time.time) -> None:
        self._prices = prices
        self._clock = clock
        self._writer = LedgerWriter(database, clock=clock)

    def start(self) -> None:
        """Close the rows that dead servers left open, and begin to write. Raises DatabaseError."""
        self._writer.start()

    def stop(self) -> None:
        """Write what is still to be written."""
        self._writer.stop()

    async def open(self, caller: Caller, *, api: str, model: str, request_id: str) -> OpenUsage:
        """Write down that a request will be sent to its model. Raises DatabaseError: then it must not be sent."""
        price = self._prices.of(model)
        row = self._row("request", caller.owner, model, request_id, price)
        row |= {
            "api": api,
            "input_price": price.input,
            "cached_input_price": price.cached_input,
            "output_price": price.output,
        }
        opened = OpenUsage(self._writer, row)
        try:
            await self._writer.submit(RowOpened(row=row))
        except asyncio.CancelledError:
            opened.abandon("cancelled")
            raise
        return opened

    async def charge(
        self,
        caller: Caller,
        *,
        kind: ChargeKind,
        model: str,
        quantity: int,
        ref: str,
        request_id: str | None = None,
    ) -> None:
        """Write one priced row: `quantity` tokens created, or kept for a minute, or calls of a cache.

        The same `ref` is charged once, whatever is killed or repeated. Raises DatabaseError.
        """
        await self.charge_owner(caller.owner, kind=kind, model=model, quantity=quantity, ref=ref, request_id=request_id)

    async def charge_owner(
        self, owner: str, *, kind: ChargeKind, model: str, quantity: int, ref: str, request_id: str | None = None
    ) -> None:
        """`charge`, where only `Caller.owner` is known: no request is under way."""
        price = self._prices.of(model)
        unit_prices: Mapping[ChargeKind, int] = {
            "cache_creation": price.cache_creation,
            "cache_storage": price.cache_storage,
            "cache_call": price.cache_call,
        }
        row = self._row(kind, owner, model, request_id, price)
        row |= {
            "ref": ref,
            "quantity": quantity,
            "unit_price": unit_prices[kind],
            "closed_at": row["opened_at"],
            "outcome": "finished",
        }
        row["cost"] = cost_of(row)
        await self._writer.submit(RowCharged(row=row))

    def _row(
        self, kind: ChargeKind | Literal["request"], owner: str, model: str, request_id: str | None, price: Price
    ) -> dict[str, Any]:
        now = self._clock()
        return {
            "id": uuid.uuid4().hex,
            "kind": kind,
            "request_id": request_id,
            "key_id": owner or None,
            "model": model,
            "opened_at": now,
            "day": int(now // DAY_S),
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
            "quantity": 0,
            "priced_as": price.priced_as,
            "input_price": 0,
            "cached_input_price": 0,
            "output_price": 0,
            "unit_price": 0,
            "cost": 0,
        }


class OpenUsage:
    """The row of a request that runs."""

    def __init__(self, writer: LedgerWriter, row: dict[str, Any]) -> None:
        self._writer = writer
        self._row = row
        self._is_closed = False

    async def progress(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Set the counts, and return when they are committed. Raises DatabaseError: then nothing more may leave."""
        self._set(prompt_tokens, cached_tokens, completion_tokens)
        await self._writer.submit(self._counted(None))

    async def finish(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Set the final counts and close the row as finished, in one commit. Raises DatabaseError."""
        self._set(prompt_tokens, cached_tokens, completion_tokens)
        await self.close("finished")

    def note(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Set the counts without waiting; they are committed before any later ones."""
        self._set(prompt_tokens, cached_tokens, completion_tokens)
        self._writer.submit_silently(self._counted(None))

    async def close(self, outcome: Outcome) -> None:
        """Close the row with the counts as they are. Raises DatabaseError; it is written later then."""
        self._is_closed = True
        await self._writer.submit(self._counted(outcome))

    def abandon(self, outcome: Outcome) -> None:
        """`close`, where nobody can wait for it; does nothing to a row that is closed."""
        if not self._is_closed:
            self._is_closed = True
            self._writer.submit_silently(self._counted(outcome))

    def _set(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        self._row |= {
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "completion_tokens": completion_tokens,
        }
        self._row["cost"] = cost_of(self._row)

    def _counted(self, outcome: Outcome | None) -> RowCounted:
        row = self._row
        return RowCounted(
            row_id=row["id"],
            key_id=row["key_id"],
            prompt_tokens=row["prompt_tokens"],
            cached_tokens=row["cached_tokens"],
            completion_tokens=row["completion_tokens"],
            cost=row["cost"],
            outcome=outcome,
        )

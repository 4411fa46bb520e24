"""What caches cost, in the ledger: charged to whoever owns them, also when nobody asks."""

from __future__ import annotations

from typing import Protocol

from chogori.serve.accounts.caller import Caller
from chogori.serve.accounts.ledger import UsageLedger
from chogori.serve.accounts.usage_table import ChargeKind


class CacheLedger(Protocol):
    """Where what a cache costs is written down."""

    async def charge_owner(
        self, owner: str, *, kind: ChargeKind, model: str, quantity: int, ref: str, request_id: str | None = None
    ) -> None:
        """Write one charge; a second one of the same `ref` changes nothing."""
        ...


class OwnersLedger:
    """The server's ledger, by the owners of caches."""

    def __init__(self, ledger: UsageLedger) -> None:
        self._ledger = ledger

    async def charge_owner(
        self, owner: str, *, kind: ChargeKind, model: str, quantity: int, ref: str, request_id: str | None = None
    ) -> None:
        """See `CacheLedger`. Raises DatabaseError; the charge is to be made again then."""
        # What a key stores is charged whatever it may still ask: no scope or limit of it matters here.
        caller = Caller(key_id=owner or None, name=owner or "open", scopes=frozenset())
        await self._ledger.charge(caller, kind=kind, model=model, quantity=quantity, ref=ref, request_id=request_id)

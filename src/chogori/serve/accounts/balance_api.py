"""`GET /v1/users/me/balance`, as Moonshot has it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from chogori.serve.accounts.caller import caller_of
from chogori.serve.accounts.prices import PICOUSD

router = APIRouter(tags=["account"])


class Balance(BaseModel):
    """Amounts in USD; null without limit."""

    available_balance: float | None
    """What is left; negative where the last answers cost more than there was."""
    voucher_balance: float = 0.0
    """Always 0: there are no vouchers here."""
    cash_balance: float | None


class BalanceAnswer(BaseModel):
    """The caller's balance."""

    code: int = 0
    data: Balance
    scode: str = "0x0"
    status: bool = True


@router.get("/v1/users/me/balance")
async def read_balance(request: Request) -> BalanceAnswer:
    """What is left of the key's credit; null for a key without limit, and on an open server."""
    caller = caller_of(request)
    left = None if caller.credit_picousd is None else (caller.credit_picousd - caller.spent_picousd) / PICOUSD
    return BalanceAnswer(data=Balance(available_balance=left, cash_balance=left))

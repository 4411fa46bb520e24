"""Bounds of numbers as their readers tell them apart, which is in double precision.

A grammar compares digits, most readers of JSON compare doubles: to them 0.99999999999999999999 is 1, and not below it.
So a bound that excludes its number becomes the next one of 15 digits, included. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

DIGITS = 15
"""So many digits every double keeps apart; llguidance mistakes bounds of 17 (0.9999999999999999 is 1 to it)."""
SMALLEST = Decimal("1e-60")
"""Numbers nearer to zero are not told apart from it: the grammar's expressions nest once for each leading zero, and
llguidance refuses them somewhere between 60 and 100."""
WIDEST = 2**63 - 2**10
"""The largest double among 64-bit integers. llguidance has no expression for wider bounds, which rule out nothing that
is written; so they are narrowed to this."""

_UPWARD = Context(prec=DIGITS, rounding=ROUND_CEILING)


def as_read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` of a schema with bounds that are included. What is no number stays, for others to refuse."""
    out = dict(fields)
    kinds = fields.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    is_integer = "integer" in kinds and "number" not in kinds
    for bound, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        given = [fields[key] for key in (bound, exclusive) if key in fields]
        if not given or not all(map(_is_number, given)):
            continue
        lowest = [_from(_exactly(sign * fields[bound]), is_integer=is_integer)] if bound in fields else []
        if exclusive in fields:
            lowest.append(_beyond(_exactly(sign * out.pop(exclusive)), is_integer=is_integer))
        found = sign * max(max(lowest), Decimal(-WIDEST))
        out[bound] = int(found) if found == found.to_integral_value() else float(found)
    return out


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _exactly(bound: float) -> Decimal:
    # As it is written: the double of 0.1 is a little more.
    return Decimal(bound) if isinstance(bound, int) else Decimal(repr(bound))


def _from(bound: Decimal, *, is_integer: bool) -> Decimal:
    """The lowest number that is not below `bound`, of those that can be told apart."""
    if is_integer:
        return _integer_from(math.ceil(bound))
    lowest = _UPWARD.plus(bound)
    if -SMALLEST < lowest < SMALLEST:
        lowest = SMALLEST if lowest > 0 else Decimal(0)
    return lowest


def _beyond(bound: Decimal, *, is_integer: bool) -> Decimal:
    """The lowest number above `bound`, of those that can be told apart."""
    if is_integer:
        return _integer_from(math.floor(bound) + 1)
    lowest = _from(bound, is_integer=False)
    return lowest if lowest > bound else _from(_UPWARD.next_plus(lowest), is_integer=False)


def _integer_from(bound: int) -> Decimal:
    """The lowest integer that is not below `bound` and a double, as llguidance reads it."""
    if abs(bound) <= 2**53 or abs(bound) >= WIDEST:
        return Decimal(bound)
    lowest = float(bound)
    return Decimal(lowest if lowest >= bound else math.nextafter(lowest, math.inf))

"""Large numbers, bytes and durations in the few characters that a person reads."""

from __future__ import annotations

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_OPERATIONS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_DURATIONS = ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"))


def count_in_words(number: float) -> str:
    """1_026_408_232_448 is "1.03 T", in the short scale that model sizes use."""
    return _scaled(number, _COUNTS, "")


def operations_in_words(number: float) -> str:
    """Floating-point operations, or operations per second: 2.5e12 is "2.5 T"."""
    return _scaled(number, _OPERATIONS, "")


def bytes_in_words(number: float) -> str:
    """Powers of ten, as disks and memory plans count: 1.5e9 is "1.5 GB"."""
    return _scaled(number, _BYTES, "bytes")


def duration_in_words(seconds: float) -> str:
    """90 is "1.5 minutes"."""
    return _scaled(seconds, _DURATIONS, "seconds")


def _scaled(number: float, scales: tuple[tuple[float, str], ...], plain: str) -> str:
    for size, unit in scales:
        if number >= size:
            return f"{_three_digits(number / size)} {unit}"
    return f"{_three_digits(number)} {plain}".strip()


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"

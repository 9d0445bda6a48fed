"""Ids of rows: short, unique, and in the order in which one process made them."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that is mistaken for something else
_RANDOM_BITS = 62
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """`job_01k…`: 48 bits of milliseconds, then chance; within a process every id is above the one before it.

    The time in it is this machine's, so nothing but ties may be decided by it.
    """
    global _last
    with _lock:
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        _last = max(fresh, _last + 1)
        number = _last
    digits = []
    for _ in range((48 + _RANDOM_BITS) // 5):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"

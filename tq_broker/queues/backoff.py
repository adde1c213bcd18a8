"""Backoff: how long to wait before the next try."""

from __future__ import annotations

import random

MIN_S, MAX_S = 0.1, 5.0


def backoff_s(attempt: int) -> float:
    """Seconds before the next try, after ``attempt`` failed ones: doubling up to `MAX_S`, and
    jittered so that a restarted broker does not meet all of its clients at once."""
    ceiling = min(MAX_S, MIN_S * 2.0 ** min(attempt, 16))
    return random.uniform(ceiling / 2, ceiling)

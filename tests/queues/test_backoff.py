from __future__ import annotations

from tq_broker.queues.backoff import MAX_S, MIN_S, backoff_s


def test_waits_double_up_to_a_limit_and_are_jittered() -> None:
    for attempt in range(2000):
        ceiling = min(MAX_S, MIN_S * 2.0 ** min(attempt, 30))
        assert ceiling / 2 <= backoff_s(attempt) <= ceiling
    assert len({backoff_s(3) for _ in range(10)}) > 1

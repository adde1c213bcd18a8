"""The pure limiter: its bound holds for every window of every schedule, and none is wasted."""

from __future__ import annotations

import heapq
import itertools

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.reserve import Reserve

EPS = 1e-6


def test_a_concurrency_lets_out_what_is_in_the_game_and_keeps_the_rest() -> None:
    reserve: Reserve[str] = Reserve(2, 4, None, 0.0)
    for rank in (3, 1, 0, 2):
        reserve.put(rank, f"p{rank}", 0.0)
    assert reserve.take(0.0) == ["p0", "p1"]
    assert reserve.take(9.0) == []
    assert reserve.next_due() is None
    reserve.resize(3, None, 9.0)
    assert reserve.take(9.0) == ["p2"]
    assert len(reserve) == 1
    assert 3 in reserve
    assert reserve.empty() == ["p3"]


def test_a_rate_lets_one_out_per_interval_and_a_late_one_delays_no_other() -> None:
    reserve: Reserve[int] = Reserve(3, 3, 10.0, 1.0)
    for rank in range(3):
        reserve.put(rank, rank, 0.0, was_here=True)
    assert reserve.take(0.99) == []
    assert reserve.take(1.05) == [0]
    assert reserve.next_due() == 1.1
    assert reserve.take(1.2 + EPS) == [1, 2], "the grid goes on"
    assert reserve.next_due() is None


def test_the_time_of_a_full_bucket_stands_still() -> None:
    reserve: Reserve[int] = Reserve(1, 1, 10.0, 0.0)
    reserve.put(0, 0, 0.0, was_here=True)
    assert reserve.take(0.0) == [0]
    reserve.put(0, 0, 5.0)
    assert reserve.take(5.05) == []
    assert reserve.take(5.1) == [0]


def test_what_a_dead_bank_held_keeps_its_time() -> None:
    reserve: Reserve[int] = Reserve(1, 1, 0.2, 7.0)
    reserve.put(0, 0, 6.0, was_here=True)
    assert reserve.next_due() == 7.0


def test_nothing_goes_out_beyond_what_the_ledger_says() -> None:
    reserve: Reserve[int] = Reserve(5, 5, 10.0, 0.0)
    for rank in range(5):
        reserve.put(rank, rank, 0.0, was_here=True)
    assert reserve.count_due(0.25) == 3
    assert reserve.take(0.25, until=0.2) == [0, 1]
    assert reserve.take(0.25) == [2]


def test_a_new_rate_makes_nobody_wait_for_the_old_one_nor_catches_up() -> None:
    reserve: Reserve[int] = Reserve(4, 4, 0.01, 100.0)
    for rank in range(4):
        reserve.put(rank, rank, 0.0, was_here=True)
    reserve.resize(4, 10.0, 1.0)
    assert reserve.next_due() == 1.1
    reserve.due = -50.0
    reserve.resize(4, 1.0, 2.0)
    assert reserve.count_due(2.0) == 1


def test_a_limit_that_shrinks_lets_none_out_until_enough_are_back() -> None:
    reserve: Reserve[int] = Reserve(3, 3, None, 0.0)
    for rank in range(3):
        reserve.put(rank, rank, 0.0)
    assert reserve.take(0.0) == [0, 1, 2]
    reserve.resize(1, None, 0.0)
    reserve.put(0, 0, 1.0)
    reserve.put(1, 1, 1.0)
    assert reserve.take(1.0) == [], "the third is still in use"
    reserve.put(2, 2, 2.0)
    assert reserve.take(2.0) == [0]


def test_uses_that_come_back_after_a_long_sleep_are_not_all_made_up_for_at_once() -> None:
    reserve: Reserve[int] = Reserve(3, 3, 10.0, 0.0)
    for rank in range(3):
        reserve.put(rank, rank, 0.0, was_here=True)
    assert reserve.take(0.1) == [0, 1]
    for rank in (0, 1):
        reserve.put(rank, rank, 60.0)
    assert reserve.take(60.0) == [0], "one place was empty while nobody looked"
    assert reserve.take(60.1) == [1]


def test_what_was_not_used_of_a_permit_comes_back() -> None:
    reserve: Reserve[int] = Reserve(2, 2, 10.0, 0.0)
    for rank in range(2):
        reserve.put(rank, rank, 0.0, was_here=True)
    assert reserve.take(0.1) == [0, 1]
    reserve.put(0, 0, 5.0)
    reserve.refund(0.5, 5.0)
    assert reserve.next_due() == 5.05
    reserve.refund(1.0, 5.0)
    assert reserve.next_due() == 5.0, "but no more than there is room for"


def begins(
    rate: float,
    burst: int,
    tasks: list[float],
    lateness: list[float],
    seconds: float,
    naps: list[float] | None = None,
) -> list[float]:
    """When tasks begin that come at ``tasks``, if permits take ``lateness`` on their ways, and the
    one who hands them out sleeps for ``naps`` after each look."""
    reserve: Reserve[int] = Reserve(burst, burst, rate, 0.0)
    for rank in range(burst):
        reserve.put(rank, rank, 0.0, was_here=True)
    waiting = sorted(tasks)
    here: list[tuple[float, int]] = []
    back: list[tuple[float, int]] = []
    late = itertools.cycle(lateness)
    nap = itertools.cycle(naps or [0.0])
    found: list[float] = []
    now = awake_at = 0.0
    while now <= seconds:
        if now >= awake_at:
            while back and back[0][0] <= now:
                _, rank = heapq.heappop(back)
                reserve.put(rank, rank, now)
            for rank in reserve.take(now):
                heapq.heappush(here, (now + next(late), rank))
            awake_at = now + next(nap)
        while here and waiting and max(here[0][0], waiting[0]) <= now:
            _, rank = heapq.heappop(here)
            waiting.pop(0)
            found.append(now)
            heapq.heappush(back, (now + next(late), rank))
        events = [at for at, _ in (*here[:1], *back[:1]) if at > now]
        events += [task for task in waiting[:1] if task > now]
        due = reserve.next_due()
        events += [at for at in (due, awake_at) if at is not None and at > now]
        if not events:
            break
        now = min(events)
    return found


schedules = st.tuples(
    st.sampled_from([0.2, 1.0, 10.0, 333.0]),
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9)), min_size=1, max_size=9),
    st.lists(st.floats(0, 0.3), min_size=1, max_size=9),
    st.lists(st.floats(0.02, 2.0), min_size=1, max_size=5),
)


@given(schedules)
def test_no_window_sees_more_than_the_rate_and_the_burst(
    schedule: tuple[float, int, list[tuple[float, int]], list[float], list[float]],
) -> None:
    rate, burst, spikes, lateness, naps = schedule
    tasks = [at for at, count in spikes for _ in range(count)]
    found = begins(rate, burst, tasks, lateness, 6.0, naps)
    for first, start in enumerate(found):
        for last in range(first, len(found)):
            allowed = rate * (found[last] - start) + burst
            assert last - first + 1 <= allowed + EPS


@given(
    st.sampled_from([0.2, 1.0, 10.0, 100.0]),
    st.lists(st.floats(0, 0.9), min_size=1, max_size=9),
)
def test_a_backlog_is_served_at_exactly_the_rate_however_late_permits_are(
    rate: float, shares: list[float]
) -> None:
    # Half of what a bucket of four gives back in: so late that one of less would run dry.
    lateness = [share / rate for share in shares]
    seconds = 100 / rate
    found = begins(rate, 4, [0.0] * 200, lateness, seconds)
    assert abs(len(found) - rate * seconds) <= 2

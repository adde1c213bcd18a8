from __future__ import annotations

from tq_broker.clock import epoch_ms
from tq_broker.model.composition import Way
from tq_broker.model.limits import Side
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker import begins
from tq_broker.worker.begins import BeginCounts


def test_each_side_and_priority_is_counted_for_itself() -> None:
    clock = ManualClock()
    counts = BeginCounts(clock)
    clock.advance(10)
    since_ms = epoch_ms(clock) - 1500
    counts.begun("a", Side.ACTIVITY, since_ms=since_ms)
    counts.begun("a", Side.ACTIVITY, since_ms=since_ms + 1000, way=Way.PRIVATE, priority=2)
    counts.begun("a", Side.WORKFLOW)
    whole, second, workflow = counts.told()
    assert (whole.total, whole.shared, whole.priority, whole.waited_ms) == (2, 1, None, 500)
    assert (second.total, second.shared, second.priority) == (1, 0, 2)
    assert (workflow.side, workflow.total, workflow.waited_ms) == (Side.WORKFLOW, 1, None)
    assert whole.per_second == 0.2


def test_a_clock_that_is_ahead_makes_no_negative_wait() -> None:
    clock = ManualClock()
    counts = BeginCounts(clock)
    counts.begun("a", Side.ACTIVITY, since_ms=epoch_ms(clock) + 5000)
    assert counts.told()[0].waited_ms == 0


def test_names_of_others_cannot_fill_the_memory() -> None:
    counts = BeginCounts(ManualClock())
    for number in range(begins.PARTS_MAX + 5):
        counts.begun(f"q{number}", Side.ACTIVITY)
    counts.begun("q0", Side.ACTIVITY)
    told = counts.told()
    assert len(told) == begins.PARTS_MAX
    assert told[0].total == 2


def test_the_quickest_keys_are_told_and_memory_does_not_grow_with_them() -> None:
    clock = ManualClock()
    counts = BeginCounts(clock)
    for number in range(2_000):
        counts.begun("a", Side.ACTIVITY, key=f"tenant-{number}")
        if number % 10 == 0:
            counts.begun("a", Side.ACTIVITY, key="busy")
        clock.advance(0.01)
    whole, *keys = counts.told()
    assert (whole.key, whole.total) == (None, 2_200)
    assert len(keys) == begins.KEYS_TOLD
    assert (keys[0].key, keys[0].total) == ("busy", 200)
    assert len(counts._keys["a", Side.ACTIVITY]) == begins.KEYS_MAX
    clock.advance(60)
    assert [one.key for one in counts.told()] == [None], "nothing has begun lately"


def test_the_keys_of_so_many_task_queues_are_counted() -> None:
    counts = BeginCounts(ManualClock())
    for number in range(begins.KEYED_MAX + 5):
        counts.begun(f"q{number}", Side.ACTIVITY, key="k")
    assert len(counts._keys) == begins.KEYED_MAX
    assert sum(one.key == "k" for one in counts.told()) == begins.KEYED_MAX


def test_the_ways_are_told_apart() -> None:
    counts = BeginCounts(ManualClock())
    for way in (Way.SHARED, Way.SHARED, Way.LIMITED, None):
        counts.begun("a", Side.ACTIVITY, way=way)
    (told,) = counts.told()
    assert (told.total, told.shared, told.ways) == (4, 2, {"shared": 2, "limited": 1})

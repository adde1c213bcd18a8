from __future__ import annotations

from tq_broker.clock import epoch_ms
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
    counts.begun("a", Side.ACTIVITY, since_ms=since_ms + 1000, shared=False, priority=2)
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

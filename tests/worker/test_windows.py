"""Prefetch windows, folded over random loads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tq_broker.worker.windows import CONSUMERS_MAX, Close, Grow, Windows


class Load:
    """A broker with a backlog per queue, a worker that runs what it is given, and its windows.

    What a real poller does with the changes is done here with plain numbers.
    """

    def __init__(self, slots: int, queues: int) -> None:
        self.slots = slots
        self.windows = Windows(slots)
        self.backlog: dict[str, int] = {}
        self.held: dict[str, int] = {}  # through open consumers
        self.draining: dict[str, int] = {}  # through closed ones
        self.occupied = 0
        self.last_capacity = slots
        self.paused: set[str] = set()
        for _ in range(queues):
            self.add()

    def add(self) -> str:
        queue = f"q{len(self.backlog)}"
        self.windows.add(queue)
        self.backlog[queue] = self.held[queue] = self.draining[queue] = 0
        return queue

    def deliver(self, queue: str, most: int = 10_000) -> int:
        """The broker hands over what the window of ``queue`` lets through."""
        count = min(self.backlog[queue], self.windows[queue].size - self.held[queue], most)
        if count > 0:
            self.backlog[queue] -= count
            self.held[queue] += count
            self.windows.taken(queue, count, drained=False)
        return max(count, 0)

    def end(self, queue: str) -> bool:
        """One task of ``queue`` ends, the oldest first."""
        for held, drained in ((self.draining, True), (self.held, False)):
            if held[queue]:
                held[queue] -= 1
                self.windows.released(queue, drained=drained)
                return True
        return False

    def plan(self) -> list[Grow | Close]:
        changes = self.windows.plan(self.occupied)
        self._make(changes)
        self.last_capacity = max(0, self.slots - self.occupied)
        return changes

    def pause(self, queue: str, paused: bool) -> None:
        if paused:
            self.paused.add(queue)
        else:
            self.paused.discard(queue)
        self._make(self.windows.pause(queue, paused))

    def _make(self, changes: list[Grow | Close]) -> None:
        for change in changes:
            if isinstance(change, Close):
                self.draining[change.queue] += self.held[change.queue]
                self.held[change.queue] = 0
            else:
                assert change.by > 0
                assert change.queue not in self.paused

    @property
    def in_hand(self) -> int:
        return sum(self.held.values()) + sum(self.draining.values())

    def size(self, queue: str) -> int:
        return self.windows[queue].size


class AnyLoad(RuleBasedStateMachine):
    """Random tasks, ends, occupied slots, further queues and plans."""

    @initialize(slots=st.integers(1, 12), queues=st.integers(0, 6))
    def begin(self, slots: int, queues: int) -> None:
        self.load = Load(slots, queues)
        self.was_planned = False

    def pick(self, number: int) -> str:
        return list(self.load.backlog)[number % len(self.load.backlog)]

    @precondition(lambda self: len(self.load.backlog) < 10)
    @rule()
    def add(self) -> None:
        self.load.add()
        self.was_planned = False

    @precondition(lambda self: self.load.backlog)
    @rule(number=st.integers(0, 9), count=st.integers(1, 8))
    def publish(self, number: int, count: int) -> None:
        self.load.backlog[self.pick(number)] += count

    @precondition(lambda self: self.load.backlog)
    @rule(number=st.integers(0, 9), most=st.integers(1, 8))
    def deliver(self, number: int, most: int) -> None:
        self.load.deliver(self.pick(number), most)

    @precondition(lambda self: self.load.backlog)
    @rule(number=st.integers(0, 9))
    def end(self, number: int) -> None:
        self.load.end(self.pick(number))

    @precondition(lambda self: self.load.backlog)
    @rule(number=st.integers(0, 9))
    def lease(self, number: int) -> None:
        """A running task leaves its window; it goes on running."""
        if self.load.end(self.pick(number)):
            self.load.occupied += 1
            self.was_planned = False

    @rule(slots=st.integers(0, 12))
    def resize(self, slots: int) -> None:
        """A tuner has got more slots, or given some back."""
        self.load.slots = self.load.windows.capacity = slots
        self.was_planned = False

    @precondition(lambda self: self.load.occupied)
    @rule()
    def leased_ends(self) -> None:
        self.load.occupied -= 1

    @precondition(lambda self: self.load.backlog)
    @rule(number=st.integers(0, 9), paused=st.booleans())
    def pause(self, number: int, paused: bool) -> None:
        self.load.pause(self.pick(number), paused)
        self.was_planned = False

    @invariant()
    def what_is_paused_has_no_window(self) -> None:
        assert not any(self.load.size(queue) for queue in self.load.paused)

    @rule()
    def plan(self) -> None:
        self.load.plan()
        self.was_planned = True

    @invariant()
    def the_windows_count_what_is_in_hand(self) -> None:
        for queue in self.load.backlog:
            window = self.load.windows[queue]
            assert window.in_hand == self.load.held[queue]
            assert window.draining == self.load.draining[queue]
            assert 0 <= window.in_hand <= window.size
            assert (window.consumers > 0) == (window.size > 0)

    @invariant()
    def a_plan_never_hands_out_more_than_there_is(self) -> None:
        load = self.load
        if not self.was_planned or not load.backlog:
            return
        capacity = load.last_capacity
        windows = [load.windows[queue] for queue in load.backlog if queue not in load.paused]
        if len(windows) > capacity:
            assert all(window.size <= 1 for window in windows)
            return
        # Nothing can be done about what was taken before the capacity shrank; and a queue may have
        # one slot too many rather than none.
        idle = sum(window.size == 1 and not window.in_hand for window in windows)
        assert load.windows.used() <= max(capacity, load.in_hand) + idle

    @rule()
    def rest(self) -> None:
        """Plans come to rest when nothing happens; then nobody waits beside an idle slot."""
        load = self.load
        for _ in range(8):
            # A plan without a change may be followed by one with: until then the window of a queue
            # whose tasks have just ended is spared for its peak, which each plan forgets.
            if not (load.plan() or load.plan()):
                break
        assert not load.plan(), "the windows never come to rest"
        self.was_planned = True
        free = load.slots - load.occupied - load.in_hand
        for queue, backlog in load.backlog.items():
            if backlog and free > 0 and queue not in load.paused:
                assert load.size(queue) > 0, "idle slots, and nobody takes the backlog"


AnyLoad.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestAnyLoad = AnyLoad.TestCase


def test_a_window_is_spared_for_one_look_after_its_tasks_have_ended() -> None:
    """Found by `AnyLoad`: one plan changed nothing, and the next one did."""
    load = Load(3, 2)
    load.backlog["q1"] = 1
    load.plan()
    load.backlog["q0"] = 1
    load.deliver("q0")
    load.plan()
    assert (load.size("q0"), load.size("q1")) == (2, 1)
    load.end("q0")
    load.deliver("q1")
    assert load.plan() == []
    assert load.plan() == [Close("q0"), Grow("q0", 1), Grow("q1", 1)]
    assert load.plan() == []


def test_a_single_queue_gets_one_consumer_of_full_size() -> None:
    load = Load(100, 1)
    assert load.plan() == [Grow("q0", 100)]
    assert load.plan() == []


def test_queues_that_arrive_together_share_the_slots() -> None:
    load = Load(100, 3)
    load.plan()
    assert sum(load.size(q) for q in load.backlog) == 100
    assert {load.size(q) for q in load.backlog} <= {33, 34}


def test_no_queue_no_change() -> None:
    assert Windows(5).plan(0) == []


def test_a_queue_is_known_from_when_it_is_added() -> None:
    windows = Windows(5)
    assert "a" not in windows
    windows.add("a")
    windows.add("a")
    assert "a" in windows
    assert windows.queues() == ("a",)


@given(slots=st.integers(1, 200), queues=st.integers(1, 8), hungry=st.integers(0, 7))
def test_a_hungry_queue_alone_gets_what_the_others_do_not_use(
    slots: int, queues: int, hungry: int
) -> None:
    if queues > slots:
        slots += queues
    load = Load(slots, queues)
    hungry %= queues
    busy = f"q{hungry}"
    load.backlog[busy] = 10_000
    for _ in range(20):
        load.plan()
        load.deliver(busy)
    # Each idle queue keeps one.
    assert load.held[busy] + load.draining[busy] == slots - (queues - 1)


def test_the_slots_of_a_paused_queue_go_to_the_others_until_it_is_resumed() -> None:
    load = Load(10, 2)
    load.plan()
    load.backlog.update(q0=100, q1=100)
    load.deliver("q0")
    load.pause("q0", True)
    assert load.windows["q0"].draining == 5
    while load.end("q0"):
        load.plan()
        load.deliver("q1")
    assert load.held["q1"] + load.draining["q1"] == 10
    load.pause("q0", False)
    load.plan()
    load.end("q1")
    load.plan()
    assert load.size("q0") > 0


@given(slots=st.integers(2, 60), first=st.integers(0, 60))
def test_a_queue_that_comes_later_is_served_whatever_the_first_holds(
    slots: int, first: int
) -> None:
    """Found: a window of 2, or one that was half used, left nothing to a newcomer for ever."""
    first = min(first, slots - 1)
    load = Load(slots, 1)
    load.backlog["q0"] = first
    load.plan()
    load.deliver("q0")
    load.plan()
    late = load.add()
    for _ in range(3):
        load.plan()
    assert load.size(late) > 0


def test_windows_that_shared_are_narrowed_when_queues_outnumber_the_slots() -> None:
    """Found: the first queue kept its wide window beside those of the newcomers."""
    load = Load(2, 1)
    load.plan()
    for _ in range(2):
        load.add()
    load.plan()
    assert [load.size(q) for q in load.backlog] == [1, 1, 1]


def test_occupied_slots_are_taken_from_idle_windows() -> None:
    """Found: windows that were more than half used kept their size, and too much was taken."""
    load = Load(10, 1)
    load.plan()
    load.backlog["q0"] = 6
    load.deliver("q0")
    load.occupied = 3
    load.plan()
    load.plan()
    assert load.windows.used() <= 7


def test_of_more_queues_than_slots_only_full_ones_are_closed_while_busy() -> None:
    load = Load(2, 3)
    load.plan()
    assert [load.size(q) for q in load.backlog] == [1, 1, 1]
    load.backlog.update(q0=1, q2=1)
    load.deliver("q0")
    assert load.plan() == []
    load.deliver("q2")
    assert load.plan() == [Close("q0"), Close("q2")]
    assert load.plan() == []
    load.backlog["q1"] = 2
    load.deliver("q1")
    assert load.plan() == [Close("q1")]
    load.end("q1")
    assert load.plan() == []
    load.end("q2")
    # There was no slot for a task of this one; then the others, those first that were not served.
    assert load.plan() == [Grow("q1", 1)]
    assert load.plan() == [Grow("q0", 1), Grow("q2", 1)]


@given(slots=st.integers(1, 4), queues=st.integers(2, 8), data=st.data())
def test_of_more_queues_than_slots_none_starves_whatever_comes_first(
    slots: int, queues: int, data: st.DataObject
) -> None:
    """Found: the first of two task queues had the only slot for as long as it had a backlog."""
    load = Load(slots, queues)
    load.backlog = dict.fromkeys(load.backlog, 10_000)
    # As the broker may have it: some queues are always quicker than others.
    quick_first = data.draw(st.permutations(list(load.backlog)))
    running: list[str] = []
    begun = dict.fromkeys(load.backlog, 0)
    for _ in range(20 * queues):
        load.plan()
        for queue in quick_first:
            if load.deliver(queue) and len(running) < slots:
                running.append(queue)
                begun[queue] += 1
        load.plan()
        for queue in load.backlog:  # what found no slot is given back
            while load.held[queue] + load.draining[queue] > running.count(queue):
                load.end(queue)
                load.backlog[queue] += 1
        if running:
            load.end(running.pop(0))
    assert min(begun.values()) >= sum(begun.values()) // queues // 2


def test_while_every_slot_is_occupied_each_takes_one_at_most() -> None:
    load = Load(2, 2)
    load.plan()
    load.occupied = 2
    assert load.plan() == []
    load.backlog.update(q0=2, q1=2)
    assert [load.deliver("q0"), load.deliver("q1")] == [1, 1]
    assert load.plan() == [Close("q0"), Close("q1")]
    load.end("q0")
    load.end("q1")
    load.plan()
    assert load.windows.used() == 0
    load.occupied = 0
    load.plan()
    assert load.windows.used() == 2


def test_two_busy_queues_come_to_equal_shares() -> None:
    load = Load(10, 1)
    load.backlog["q0"] = 10_000
    load.plan()
    load.deliver("q0")
    late = load.add()
    load.backlog[late] = 10_000
    for _ in range(60):
        load.plan()
        for queue in ("q0", late):
            load.deliver(queue)
            load.end(queue)
            load.deliver(queue)
    assert abs(load.held["q0"] + load.draining["q0"] - 5) <= 1
    assert abs(load.held[late] + load.draining[late] - 5) <= 1


@given(queues=st.integers(1, 4), most=st.integers(8, 64), ended=st.integers(1, 64))
def test_a_fast_consumer_never_waits_for_tasks_while_slots_are_added(
    queues: int, most: int, ended: int
) -> None:
    """After each look every slot has a task, whatever ends between two looks."""
    load = Load(1, queues)
    busy = "q0"
    load.backlog[busy] = 100_000
    for look in range(40):
        load.slots = load.windows.capacity = min(most, 2**look)
        for _ in range(3):
            load.plan()
            load.deliver(busy)
        # Each idle queue keeps one.
        assert load.in_hand >= load.slots - (queues - 1)
        assert load.in_hand <= max(load.slots, 1)
        for _ in range(min(ended, load.in_hand)):
            load.end(busy)
            load.deliver(busy)


@given(slots=st.integers(2, 64), running=st.integers(0, 4))
def test_a_slow_consumer_holds_no_more_than_it_runs(slots: int, running: int) -> None:
    """When slots are given back, so are the windows."""
    load = Load(slots, 1)
    load.plan()
    load.backlog["q0"] = running = min(running, slots)
    load.deliver("q0")
    load.slots = load.windows.capacity = min(slots, max(1, 2 * running))
    for _ in range(3):
        load.plan()
    assert load.windows.used() <= max(load.slots, running + 1)
    load.backlog["q0"] = 1000
    for _ in range(3):
        load.deliver("q0")
        assert load.in_hand <= load.slots
        load.plan()
    assert load.in_hand == load.slots


def test_a_full_window_shrinks_with_the_slots_while_its_tasks_end() -> None:
    """Found: it was filled again whenever one of its tasks ended, and so never shrank."""
    load = Load(20, 1)
    load.plan()
    load.backlog["q0"] = 1000
    load.deliver("q0")
    load.slots = load.windows.capacity = 5
    for _ in range(100):
        load.plan()
        load.deliver("q0")
        if load.in_hand <= 5:
            break
        load.end("q0")
    assert load.in_hand == 5
    for _ in range(10):
        load.end("q0")
        load.plan()
        load.deliver("q0")
        assert load.in_hand == 5


def test_a_window_that_grew_in_many_steps_is_made_one_again() -> None:
    load = Load(40, 1)
    load.occupied = 40
    load.backlog["q0"] = 10_000
    most = 0
    for _ in range(60):
        load.plan()
        load.deliver("q0")
        load.occupied = max(0, load.occupied - 1)
        load.end("q0")
        most = max(most, load.windows["q0"].consumers)
    assert most == CONSUMERS_MAX + 1


@pytest.mark.parametrize("drained", [False, True])
def test_what_is_released_is_counted_where_it_was_taken(drained: bool) -> None:
    windows = Windows(4)
    windows.add("a")
    windows.plan(0)
    windows.taken("a", 2, drained=drained)
    windows.released("a", drained=drained)
    window = windows["a"]
    assert (window.in_hand, window.draining) == ((0, 1) if drained else (1, 0))


def test_a_barred_queue_has_no_window_but_what_is_in_hand_counts() -> None:
    windows = Windows(4)
    for name in ("a", "b"):
        windows.add(name)
    windows.plan(0)
    windows.taken("a", 2, drained=False)
    assert windows.bar("a") == [Close("a")]
    assert windows["a"].draining == 2
    assert all(change.queue == "b" for change in windows.plan(0))
    assert windows.used() <= 4
    windows.released("a", drained=True)
    assert windows["a"].draining == 1
    windows.unbar("a")
    assert Grow("a", 1) in windows.plan(0) or windows["a"].size > 0
    assert windows.bar("never served") == []

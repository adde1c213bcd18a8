"""The anteroom: over random schedules no limit is broken, and nobody who may go in waits."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.limits import UNLIMITED, Limits
from tq_broker.model.parts import ALL, EACH_KEY, Part, PartKind, PartTable
from tq_broker.worker.anteroom import Anteroom

EPS = 1e-6

limits = st.builds(
    Limits,
    rate=st.none() | st.floats(0.5, 20.0),
    concurrency=st.none() | st.integers(1, 3),
)
tables = st.builds(
    PartTable,
    st.fixed_dictionaries(
        {},
        optional={
            ALL: limits,
            EACH_KEY: limits,
            Part(PartKind.TYPE, "A"): limits,
            Part(PartKind.KEY, "x"): limits,
        },
    ),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from("AB"), st.sampled_from(["", "x", "y"])),
        st.tuples(st.just("wait"), st.floats(0.0, 2.0), st.none()),
        st.tuples(
            st.sampled_from(["begin", "end", "unused", "tidy"]), st.integers(0, 9), st.none()
        ),
    ),
    max_size=80,
)


class Play:
    """A room with those who were let in, as an usher would see them."""

    def __init__(self, table: PartTable) -> None:
        self.table = table
        self.now = 0.0
        self.room: Anteroom[tuple[int, str, str]] = Anteroom(table, 0.0)
        self.arrived = 0
        self.waiting: list[tuple[int, str, str]] = []
        self.admitted: list[str] = []
        self.begun: list[str] = []
        self.parts: dict[str, tuple[Part, ...]] = {}
        self.begins: dict[Part, list[float]] = {}

    def do(self, step: tuple[object, ...]) -> None:
        match step:
            case ("arrive", str(type_), str(key)):
                self.arrived += 1
                self.waiting.append((self.arrived, type_, key))
                self.room.arrive(self.waiting[-1], type_, key)
            case ("wait", float(seconds), _):
                self.now += seconds
            case ("begin", int(which), _) if self.admitted:
                self.begin(self.admitted.pop(which % len(self.admitted)))
            case ("end", int(which), _) if self.begun:
                self.room.ended(self.begun.pop(which % len(self.begun)), self.now)
            case ("unused", int(which), _) if self.admitted:
                self.room.unused(self.admitted.pop(which % len(self.admitted)), self.now)
            case ("tidy", _, _):
                self.room.tidy(self.now)
        self.admit()

    def begin(self, pass_id: str) -> None:
        self.room.begun(pass_id, self.now)
        self.begun.append(pass_id)
        for part in self.parts[pass_id]:
            self.begins.setdefault(part, []).append(self.now)

    def admit(self) -> None:
        for admission in self.room.admit(self.now):
            number, type_, key = admission.item
            same = [n for n, t, k in self.waiting if (t, k) == (type_, key)]
            assert number == same[0], "a line keeps its order"
            self.waiting.remove(admission.item)
            pass_id = str(number)
            self.parts[pass_id] = admission.parts
            self.room.book(pass_id, admission.parts)
            self.admitted.append(pass_id)

    def check(self) -> None:
        assert len(self.room) == len(self.waiting)
        for _, type_, key in self.waiting:
            buckets = [self.room._bucket(part, self.now) for part in self.table.parts(type_, key)]
            assert not all(one.has_room(self.now) for one in buckets), "it may go in, and waits"
        assert self.room.out == len(self.admitted) + len(self.begun)
        out = Counter(part for one in (*self.admitted, *self.begun) for part in self.parts[one])
        for part, count in out.items():
            concurrency = self.table.of(part).concurrency
            assert concurrency is None or count <= concurrency
        for part, begins in self.begins.items():
            limit = self.table.of(part)
            if limit.rate is None:
                continue
            for first, start in enumerate(begins):
                for last in range(first, len(begins)):
                    bound = limit.rate * (begins[last] - start) + limit.burst_size
                    assert last - first + 1 <= bound + EPS


@given(tables, steps)
def test_no_schedule_breaks_a_limit_and_all_go_in_at_last(
    table: PartTable, schedule: list[tuple[object, ...]]
) -> None:
    play = Play(table)
    for step in schedule:
        play.do(step)
        play.check()
    rounds = 0
    while play.waiting or play.admitted or play.begun:
        for pass_id in list(play.admitted):
            play.admitted.remove(pass_id)
            play.begin(pass_id)
        while play.begun:
            play.room.ended(play.begun.pop(), play.now)
        play.admit()
        if play.waiting and not play.admitted:
            at = play.room.next_at()
            assert at is not None, "somebody waits for nothing"
            play.now = max(play.now, at)
            play.admit()
        play.check()
        rounds += 1
        assert rounds < 1_000
    play.now += 1_000.0
    play.room.tidy(play.now)
    assert play.room.buckets == 0, "memory does not grow with the keys seen"


def test_nobody_goes_in_before_it_is_known_what_runs_already() -> None:
    table, key = PartTable({EACH_KEY: Limits(concurrency=2)}), Part(PartKind.KEY, "a")
    room: Anteroom[str] = Anteroom(table, 0.0)
    room.change(table, {}, 0.0, {EACH_KEY: 1.5})
    room.arrive("a1", "T", "a")
    room.arrive("a2", "T", "a")
    room.arrive("others", "T", "")
    assert [one.item for one in room.admit(0.0)] == ["others"]
    room.restore("ran", (key,), 1.0)
    room.begun("ran", 1.0)
    assert room.next_at() == 1.5
    assert [one.item for one in room.admit(1.5)] == ["a1"]


def test_lines_take_turns() -> None:
    room: Anteroom[str] = Anteroom(PartTable({ALL: Limits(concurrency=1)}), 0.0)
    for item in ("a1", "a2", "b1", "b2"):
        room.arrive(item, "T", item[0])
    order = []
    for number in range(4):
        (admission,) = room.admit(0.0)
        order.append(admission.item)
        room.book(str(number), admission.parts)
        room.ended(str(number), 0.0)
    assert order == ["a1", "b1", "a2", "b2"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), max_size=12))
def test_the_best_priority_goes_first_whatever_its_type_and_key(
    arrivals: list[tuple[str, int]],
) -> None:
    room: Anteroom[tuple[int, int]] = Anteroom(PartTable({ALL: Limits(concurrency=1)}), 0.0)
    room.arrive((0, 0), "T", "a", 3)
    (first,) = room.admit(0.0)
    for number, (key, priority) in enumerate(arrivals):
        room.arrive((priority, number), "T", key, priority)
        assert room.admit(0.0) == []
    order, before = [], first
    for number in range(len(arrivals)):
        room.book(str(number), before.parts)
        room.ended(str(number), 0.0)
        (before,) = room.admit(0.0)
        order.append(before.item)
    assert [priority for priority, _ in order] == sorted(priority for _, priority in arrivals)
    for key in "ab":
        mine = [item for item in order if arrivals[item[1]][0] == key]
        assert mine == sorted(mine), "a line keeps its order"


def test_room_that_the_first_in_turn_cannot_use_is_for_the_next() -> None:
    keys, types = Part(PartKind.KEY, "x"), Part(PartKind.TYPE, "T")
    table = PartTable({types: Limits(concurrency=2), keys: Limits(concurrency=1)})
    room: Anteroom[str] = Anteroom(table, 0.0)
    for item in ("x1", "z1"):
        room.arrive(item, "T", item[0])
    for admission in room.admit(0.0):
        room.book(admission.item, admission.parts)
    for item in ("x2", "y1"):
        room.arrive(item, "T", item[0])
    assert room.admit(0.0) == []
    room.ended("z1", 0.0)
    assert [one.item for one in room.admit(0.0)] == ["y1"]


def test_what_somebody_else_let_in_counts_until_it_is_heard_of() -> None:
    table = PartTable({EACH_KEY: Limits(concurrency=1)})
    room: Anteroom[str] = Anteroom(table, 0.0)
    room.restore("old", table.parts("T", "x"), 0.0)
    room.arrive("new", "T", "x")
    assert room.admit(0.0) == []
    room.begun("old", 1.0)
    room.begun("old", 1.0)
    room.unused("old", 1.0)  # too late for that: it has begun
    assert [one.item for one in room.admit(1.0)] == ["new"]
    room.ended("old", 2.0)
    assert room.out == 0


def test_other_limits_let_those_in_whom_they_allow() -> None:
    room: Anteroom[str] = Anteroom(PartTable({EACH_KEY: Limits(rate=0.001)}), 0.0)
    for _ in range(3):
        room.arrive("item", "T", "x")
    assert room.admit(1.0) == []
    room.change(PartTable({EACH_KEY: UNLIMITED}), {}, 1.0)
    assert len(room.admit(1.0)) == 3


def test_a_key_may_be_held() -> None:
    room: Anteroom[str] = Anteroom(PartTable(), 0.0)
    room.change(PartTable(), {"x": 5.0}, 0.0)
    room.arrive("x", "T", "x")
    room.arrive("y", "T", "y")
    assert [one.item for one in room.admit(0.0)] == ["y"]
    assert room.next_at() == 5.0
    assert [one.item for one in room.admit(5.0)] == ["x"]


def test_the_last_of_the_longest_line_are_spilled_but_never_a_whole_line() -> None:
    room: Anteroom[str] = Anteroom(PartTable({EACH_KEY: Limits(concurrency=1)}), 0.0)
    assert room.spill(5) == []
    for item in ("a1", "a2", "a3", "b1"):
        room.arrive(item, "T", item[0])
    assert room.spill(1) == ["a3"]
    assert room.spill(9) == ["a2"]
    assert room.spill(9) == []
    assert room.clear() == ["a1", "b1"]
    assert len(room) == 0


def test_the_longest_lines_are_told_with_who_is_first() -> None:
    room: Anteroom[str] = Anteroom(PartTable({EACH_KEY: Limits(rate=0.001)}), 0.0)
    assert room.longest(5) == []
    for item in ("a1", "b1", "b2", "c1", "c2", "c3"):
        room.arrive(item, "T", item[0], 3)
    assert room.longest(2) == [(("T", "c", 3), 3, "c1"), (("T", "b", 3), 2, "b1")]
    assert sorted(room.all()) == ["a1", "b1", "b2", "c1", "c2", "c3"]
    room.clear()
    assert room.all() == []


def test_fairness_keys_take_turns_at_a_limit() -> None:
    room: Anteroom[str] = Anteroom(PartTable({Part(PartKind.TYPE, "A"): Limits(concurrency=1)}), 0)
    for share in ("flood", "flood", "flood", "few"):
        room.arrive(share, "A", "", 3, share)
    room.arrive("first", "A", "", 1, "flood")
    begun = []
    while len(room):
        (admission,) = room.admit(0.0)
        begun.append(admission.item)
        room.book(f"{len(begun)}", admission.parts)
        room.ended(f"{len(begun)}", 0.0)
    assert begun[0] == "first"
    assert "few" in begun[1:3]
    assert room.clear() == []

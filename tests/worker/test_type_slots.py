from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.passage import Passage
from tq_broker.worker.type_slots import WIDTH_MAX, TypePassage, TypeSlots


def test_types_that_are_not_named_have_no_bound() -> None:
    slots = TypeSlots({"heavy": 1})
    for _ in range(100):
        assert slots.has_room("light")
        slots.began("light")
    assert not slots.is_limited("light")
    assert slots.is_limited("heavy")
    assert slots
    assert not TypeSlots({})


@given(
    limit=st.integers(1, 5),
    moves=st.lists(st.booleans(), max_size=60),
)
def test_never_more_of_a_type_than_its_bound(limit: int, moves: list[bool]) -> None:
    slots, running = TypeSlots({"heavy": limit}), 0
    for begins in moves:
        assert slots.has_room("heavy") == (running < limit)
        if begins and slots.has_room("heavy"):
            slots.began("heavy")
            running += 1
        elif running:
            slots.ended("heavy")
            running -= 1


def test_few_are_taken_after_one_was_refused_and_more_with_each_that_begins() -> None:
    slots = TypeSlots({"heavy": 1})
    assert slots.within(100) == 100
    slots.refused()
    assert (slots.within(100), slots.within(0)) == (1, 0)
    widths = []
    for _ in range(20):
        slots.began("light")
        widths.append(slots.within(WIDTH_MAX))
    assert widths[:4] == [2, 4, 8, 16]
    assert widths[-1] == WIDTH_MAX
    slots.refused()
    assert slots.within(100) == 1


class Told(Passage):
    def __init__(self) -> None:
        self.told: list[str] = []

    def begun(self) -> None:
        self.told.append("begun")

    def ended(self) -> None:
        self.told.append("ended")

    def unused(self) -> None:
        self.told.append("unused")


def test_a_passage_of_a_type_ends_once_and_tells_the_other() -> None:
    inner, ends = Told(), list[str]()
    passage = TypePassage(inner, lambda: ends.append("end"))
    passage.begun()
    assert ends == []
    passage.ended()
    passage.ended()
    passage.unused()
    assert ends == ["end"]
    assert inner.told == ["begun", "ended", "ended", "unused"]
    unused = TypePassage(inner, lambda: ends.append("unused"))
    unused.unused()
    assert ends == ["end", "unused"]

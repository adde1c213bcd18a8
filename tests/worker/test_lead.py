from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.lead import LEAD_MAX, Lead


def deal(lead: Lead, priority: int = 3) -> int:
    """Deal as many as there is room for."""
    count = 0
    while lead.room(priority):
        lead.dealt(priority)
        count += 1
    return count


def test_as_many_are_dealt_as_were_taken() -> None:
    lead = Lead(10)
    assert deal(lead) == 10
    lead.seen(4, 0)
    assert deal(lead) == 6


def test_what_is_under_way_counts() -> None:
    lead = Lead(10)
    deal(lead)
    lead.seen(3, 7)
    assert deal(lead) == 0


def test_a_better_priority_has_room_of_its_own() -> None:
    lead = Lead(10)
    assert deal(lead, 5) == 10
    assert deal(lead, 1) == 10
    assert lead.room(3) == 0
    # What was taken was the best
    lead.seen(12, 0)
    assert lead.room(1) == 8
    assert lead.room(5) == 0


def test_it_grows_when_nothing_was_left_and_shrinks_when_much_is() -> None:
    lead = Lead(4)
    for _ in range(3):
        deal(lead)
        lead.seen(0, 0)
    assert lead.size == 32
    deal(lead)
    lead.seen(8, 0)
    assert lead.size == 32
    for _ in range(50):
        deal(lead)
        lead.seen(lead.size, 0)
    assert lead.size == 4


def test_it_grows_when_what_is_best_was_all_taken() -> None:
    lead = Lead(4)
    deal(lead, 5)
    deal(lead, 1)
    lead.seen(4, 0)
    assert lead.size == 8


def test_it_does_not_grow_because_nothing_waited() -> None:
    lead = Lead(4)
    lead.dealt(3)
    lead.seen(0, 0)
    assert lead.size == 4


def test_what_others_have_put_there_counts_too() -> None:
    lead = Lead(10)
    lead.seen(8, 0)
    assert (lead.ahead, deal(lead)) == (8, 2)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 100))))
def test_it_is_never_more_than_its_bound(steps: list[tuple[int, int]]) -> None:
    lead, ready = Lead(3), 0
    for priority, taken in steps:
        ready += deal(lead, priority)
        assert ready <= 5 * LEAD_MAX
        ready = max(0, ready - taken)
        lead.seen(ready, 0)
        assert lead.ahead == ready
        assert 3 <= lead.size <= LEAD_MAX

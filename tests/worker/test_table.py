"""The table of attempts: who is open, who runs, and whose delivery is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import attempt_of
from tq_broker import activity
from tq_broker.worker import table as table_module
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.intake import Known
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.table import Held, Table, key_of


@activity.defn
def work() -> None:
    pass


@dataclass
class Delivery:
    """Counts its acknowledgements."""

    acks: int = 0

    def ack(self) -> None:
        self.acks += 1


@dataclass
class Window:
    released_count: int = 0

    def released(self) -> None:
        self.released_count += 1

    waits = False

    def admit(self, resume: Any = None) -> Passage | None:
        return FREE


class Outer(Passage):
    inner: Passage | None = None

    def within(self, inner: Passage) -> Passage:
        self.inner = inner
        return self


def held(**fields: Any) -> tuple[Attempt, Any, Any]:
    attempt = attempt_of(work, **fields)
    attempt.delivery, attempt.window = Delivery(), Window()  # type: ignore[assignment]
    return attempt, attempt.delivery, attempt.window


def test_an_attempt_is_open_until_it_ends_and_runs_until_its_code_stops() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    assert (table.open(), table.running()) == ([attempt], 1)
    assert table.end(attempt)
    assert (table.open(), table.running()) == ([], 1)
    table.stopped(attempt)
    assert table.running() == 0
    assert not attempt.code_running


def test_an_attempt_ends_once() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    assert table.end(attempt)
    assert not table.end(attempt)
    assert not table.awaits(attempt)


def test_an_awaited_attempt_stays_open() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    assert table.awaits(attempt)
    table.stopped(attempt)
    assert (table.open(), table.running()) == ([attempt], 0)
    assert table.end(attempt)


def test_an_attempt_is_known_as_open_until_its_end_is_told() -> None:
    """Found: it was known as ended at once, so a copy that came again was acknowledged while
    the outcome was still on its way: had this process died then, the outcome was lost.
    """
    table = Table()
    attempt, _, _ = held()
    assert table.known(attempt.task) is Known.NO
    table.add(attempt)
    assert table.known(attempt.task) is Known.OPEN
    table.end(attempt)
    assert table.known(attempt.task) is Known.OPEN
    table.release(attempt)
    assert table.known(attempt.task) is Known.ENDED


@pytest.mark.parametrize("other", [{"attempt": 2}, {"task_queue": "x"}, {"start_token": "2"}])
def test_another_attempt_queue_or_start_of_the_id_is_another(other: dict[str, Any]) -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    task = msgspec.structs.replace(attempt.task, **other)
    assert table.known(task) is Known.NO
    table.end(attempt)
    table.release(attempt)
    assert table.known(task) is Known.NO


def test_two_attempts_of_one_activity_are_both_watched() -> None:
    """Found: the second took the place of the first, which nobody watched any more."""
    table = Table()
    first, second = held(attempt=1)[0], held(attempt=2)[0]
    table.add(first)
    table.add(second)
    assert table.open() == table.with_id("a-1") == [first, second]
    table.end(first)
    assert table.open() == [second]


def test_the_same_attempt_twice_is_held_by_the_last() -> None:
    table = Table()
    first, second = held()[0], held()[0]
    table.add(first)
    table.add(second)
    table.end(first)
    table.release(first)
    assert table.known(second.task) is Known.OPEN
    assert table.open() == [second]


def test_releasing_gives_delivery_and_window_once() -> None:
    table = Table()
    attempt, delivery, window = held()
    table.add(attempt)
    table.end(attempt)
    table.release(attempt).let_go()
    assert (delivery.acks, window.released_count) == (1, 1)
    table.release(attempt).let_go()
    assert window.released_count == 1


def test_exchanging_hands_back_the_one_before() -> None:
    table = Table()
    attempt, first, window = held()
    table.add(attempt)
    attempt.leasing = True
    lease = Delivery()
    before = table.exchange(attempt.task, lease, None, 77.0)  # type: ignore[arg-type]
    assert before == Held(first, window)
    assert attempt.delivery is lease
    assert (attempt.windowless, attempt.leasing, attempt.held_since) == (True, False, 77.0)
    table.end(attempt)
    assert table.release(attempt) == Held(lease, None)


def test_a_window_counts_again_what_comes_through_it() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    table.exchange(attempt.task, Delivery(), None, 1.0)  # type: ignore[arg-type]
    again, window = Delivery(), Window()
    before = table.exchange(attempt.task, again, window, 2.0)  # type: ignore[arg-type]
    assert before is not None
    assert before.window is None
    assert table.release(attempt) == Held(again, window)


def test_what_is_released_is_not_exchanged() -> None:
    """Found: a lease that came in this moment was held for ever, and counted as lost later."""
    table = Table()
    attempt, _, _ = held()
    assert table.exchange(attempt.task, Delivery(), None, 1.0) is None  # type: ignore[arg-type]
    table.add(attempt)
    table.end(attempt)
    table.release(attempt)
    assert table.exchange(attempt.task, Delivery(), None, 1.0) is None  # type: ignore[arg-type]


def test_occupied_slots_are_those_of_code_that_no_window_counts() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    assert table.occupied() == 0
    table.end(attempt)
    table.release(attempt)
    assert table.occupied() == 1
    table.stopped(attempt)
    assert table.occupied() == 0


def test_open_attempts_are_counted_by_task_queue() -> None:
    table = Table()
    for number, queue in enumerate("aab"):
        table.add(held(activity_id=str(number), task_queue=queue)[0])
    assert table.in_hand() == {"a": 2, "b": 1}


def test_only_the_latest_ends_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "ENDED_MAX", 2)
    table = Table()
    tasks = [held(activity_id=str(number))[0].task for number in range(3)]
    for task in tasks:
        table.note_ended(task)
    assert [table.known(task) for task in tasks] == [Known.NO, Known.ENDED, Known.ENDED]


def test_the_key_tells_starts_apart() -> None:
    task = held(start_token="s")[0].task
    assert key_of(task) == ("work", "a-1", 1, "s")


def test_what_has_ended_goes_by_no_limit_any_more() -> None:
    table = Table()
    attempt, _, _ = held()
    table.add(attempt)
    usher = Outer()
    assert table.limit(attempt, usher)
    assert (attempt.passage, usher.inner) == (usher, FREE)
    table.end(attempt)
    assert not table.limit(attempt, Outer())
    assert attempt.passage is usher

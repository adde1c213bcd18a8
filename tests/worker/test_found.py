from __future__ import annotations

from tq_broker.common import Requires, Route
from tq_broker.model.control import Hold, RecentTask
from tq_broker.model.rule_table import Facts
from tq_broker.model.rules import TaskKind
from tq_broker.model.tasks import ActivityTask, load_requires, load_route
from tq_broker.worker import found

FACTS = Facts(kind=TaskKind.ACTIVITY, type="t", task_queue="q", id="a")


def test_what_it_says_itself_is_told_as_it_travels() -> None:
    task = ActivityTask(
        activity_id="a",
        activity_type="t",
        task_queue="q",
        body=b"",
        attempt=3,
        route=Route.host("h"),
        requires=Requires({"gpu"}),
    )
    told = found.in_hand(task)
    assert (told.hold, told.attempt, told.facts.id) == (Hold.IN_HAND, 3, "a")
    assert told.route is not None
    assert load_route(told.route) == Route.host("h")
    assert told.requires is not None
    assert load_requires(told.requires).names == ("gpu",)
    assert found.held_back(task).hold is Hold.HELD_BACK


def test_of_what_was_taken_the_last_counts() -> None:
    assert found.taken([]) == []
    (last,) = found.taken([RecentTask(1, FACTS), RecentTask(2, FACTS)])
    assert (last.hold, last.at_ms, last.attempt) == (Hold.TAKEN, 2, 0)

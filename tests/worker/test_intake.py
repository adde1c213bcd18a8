"""Intake: what becomes of a delivery, in every situation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import TimeoutType
from tq_broker.model.failure import FailureKind
from tq_broker.model.tasks import ActivityTask, WorkflowOrigin
from tq_broker.worker.intake import (
    Action,
    Decision,
    Known,
    Situation,
    decide,
    lost,
    not_registered,
    timeout,
)

NOW_MS = 1_000_000
PLAIN = Situation(
    now_ms=NOW_MS,
    redelivered=False,
    known=Known.NO,
    cancelled=False,
    serves=True,
    registered=("t",),
    answerable=True,
    closing=False,
    free_slots=1,
)


def task(**fields: Any) -> ActivityTask:
    return ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b"", **fields)


def decided(given_task: ActivityTask | None = None, **changes: Any) -> Decision:
    return decide(given_task or task(), msgspec.structs.replace(PLAIN, **changes))


LATE = task(scheduled_ms=1, schedule_to_close_ms=1)
WITH_ID = task(id_retention_ms=1000)

ORIGIN = WorkflowOrigin("w", "r", "W", "a", 5)
OF_WORKFLOW = task(id_retention_ms=1000, workflow=ORIGIN)
AT_MOST_ONCE = task(workflow=msgspec.structs.replace(ORIGIN, claim=True))

# Every row holds with all that is in the rows below it, too: the order of the questions.
ORDER: list[tuple[str, dict[str, Any], Action]] = [
    ("forged", {"answerable": False}, Action.PARK),
    ("in hand", {"known": Known.OPEN}, Action.ADOPT),
    ("ended here", {"known": Known.ENDED}, Action.DROP),
    ("cancelled", {"cancelled": True}, Action.END),
    ("late", {"task": LATE}, Action.END),
    ("redelivered", {"redelivered": True}, Action.LOST),
    ("closing", {"closing": True}, Action.GIVE_BACK),
    ("a rule", {"moved": True}, Action.DIVERT),
    ("not served", {"serves": False}, Action.END),
    ("no slot", {"free_slots": 0}, Action.HOLD),
    ("with an id", {"task": WITH_ID}, Action.CLAIM),
    ("of a workflow", {"task": OF_WORKFLOW}, Action.RUN),
    ("at most once", {"task": AT_MOST_ONCE}, Action.ASK),
]


@pytest.mark.parametrize(
    ("changes", "action"), [row[1:] for row in ORDER], ids=[r[0] for r in ORDER]
)
def test_each_situation_has_its_answer(changes: dict[str, Any], action: Action) -> None:
    changes = dict(changes)
    assert decided(changes.pop("task", None), **changes).action is action


@pytest.mark.parametrize("row", range(len(ORDER)), ids=[r[0] for r in ORDER])
def test_questions_are_asked_in_their_order(row: int) -> None:
    changes: dict[str, Any] = {}
    for _, more, _ in reversed(ORDER[row:]):
        changes |= more
    assert decided(changes.pop("task", None), **changes).action is ORDER[row][2]


def test_a_plain_task_is_run() -> None:
    assert decided() == Decision(Action.RUN)


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("fields", [{}, {"id_retention_ms": 1000, "start_token": "s"}])
def test_a_copy_of_what_is_in_hand_takes_its_place_however_it_comes(
    redelivered: bool, fields: dict[str, Any]
) -> None:
    """Found: a task that was routed anew after a broken connection was dropped, while the
    delivery in hand was lost: nothing but this process knew of it any more.
    """
    answer = decided(task(**fields), known=Known.OPEN, redelivered=redelivered)
    assert answer.action is Action.ADOPT


@pytest.mark.parametrize("known", [Known.OPEN, Known.ENDED])
def test_a_start_without_a_token_may_be_a_second_one_which_its_claim_tells(known: Known) -> None:
    assert decided(task(id_retention_ms=1000), known=known).action is Action.CLAIM


situations = st.builds(
    Situation,
    now_ms=st.integers(0, 100),
    redelivered=st.booleans(),
    known=st.sampled_from(Known),
    cancelled=st.booleans(),
    serves=st.booleans(),
    registered=st.just(("t",)),
    answerable=st.booleans(),
    closing=st.booleans(),
    free_slots=st.integers(-2, 2),
    moved=st.booleans(),
)
times = st.integers(0, 100)
task_values = st.builds(
    task,
    scheduled_ms=times,
    attempt_scheduled_ms=times,
    schedule_to_close_ms=times,
    schedule_to_start_ms=times,
    id_retention_ms=st.sampled_from([0, 1000]),
    attempt=st.integers(1, 3),
)


@given(task_values, situations)
def test_only_a_fresh_wanted_task_with_a_slot_is_ever_begun(
    one: ActivityTask, at: Situation
) -> None:
    answer = decide(one, at)
    if answer.action in (Action.RUN, Action.CLAIM, Action.HOLD):
        assert not at.redelivered
        assert not at.closing
        assert not at.cancelled
        assert not at.moved
        assert at.serves
        assert at.answerable
        assert at.known is Known.NO or one.id_retention_ms
        assert timeout(one, at.now_ms) is None
    if answer.action in (Action.RUN, Action.CLAIM):
        assert at.free_slots > 0
        assert (answer.action is Action.CLAIM) == bool(one.id_retention_ms)


@given(task_values, situations)
def test_every_answer_has_what_it_needs(one: ActivityTask, at: Situation) -> None:
    answer = decide(one, at)
    assert (answer.failure is not None) == (answer.action is Action.END)
    if answer.action is Action.PARK:
        assert answer.reason


@given(task_values, situations)
def test_nothing_in_hand_is_lost_nor_reported_again(one: ActivityTask, at: Situation) -> None:
    if at.known is not Known.NO and (at.redelivered or not one.id_retention_ms):
        assert decide(one, at).action in (Action.ADOPT, Action.DROP, Action.PARK)


@pytest.mark.parametrize(
    ("fields", "now_ms", "expected"),
    [
        ({}, 10**15, None),
        ({"scheduled_ms": 100}, 10**15, None),
        ({"schedule_to_close_ms": 5}, 10**15, None),
        ({"scheduled_ms": 100, "schedule_to_close_ms": 50}, 149, None),
        ({"scheduled_ms": 100, "schedule_to_close_ms": 50}, 150, TimeoutType.SCHEDULE_TO_CLOSE),
        ({"scheduled_ms": 100, "schedule_to_start_ms": 50}, 149, None),
        ({"scheduled_ms": 100, "schedule_to_start_ms": 50}, 150, TimeoutType.SCHEDULE_TO_START),
        (
            {"scheduled_ms": 100, "attempt_scheduled_ms": 300, "schedule_to_start_ms": 50},
            349,
            None,
        ),
        (
            {"scheduled_ms": 100, "attempt_scheduled_ms": 300, "schedule_to_start_ms": 50},
            350,
            TimeoutType.SCHEDULE_TO_START,
        ),
        (
            {"scheduled_ms": 100, "schedule_to_start_ms": 50, "schedule_to_close_ms": 50},
            150,
            TimeoutType.SCHEDULE_TO_CLOSE,
        ),
    ],
)
def test_timeouts_in_the_queue(
    fields: dict[str, int], now_ms: int, expected: TimeoutType | None
) -> None:
    assert timeout(task(**fields), now_ms) is expected


def test_failures_say_what_happened() -> None:
    cancelled = decided(cancelled=True).failure
    assert cancelled is not None
    assert cancelled.kind is FailureKind.CANCELED
    unknown = not_registered(task(), ("b", "a"))
    assert "a, b" in unknown.message
    assert unknown.type == "NotFoundError"
    assert "none" in not_registered(task(), ()).message
    assert lost().type == "WorkerLost"
    assert not unknown.non_retryable
    assert not lost().non_retryable

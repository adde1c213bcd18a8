"""Where activities of one affinity go: the first anywhere, the others where it ran."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.history.stage import KEY, Stage, an_activity
from tq_broker.common import DURATION_MAX, OnGone, Route
from tq_broker.exceptions import RetryState
from tq_broker.history import activities, bonds
from tq_broker.history.effects import CancelActivity, DispatchActivity
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model.failure import (
    TARGET_GONE,
    WORKER_LOST,
    Failure,
    FailureKind,
    application,
    from_exception,
)
from tq_broker.model.tasks import Status, WireRetryPolicy
from tq_broker.model.workflow_tasks import ClaimStart

FIRST, SECOND, THIRD = 5, 6, 7
"""The scheduled events of a run's first activities."""

GONE = application("nobody there", TARGET_GONE, non_retryable=True)
LOST = application("the worker is gone", WORKER_LOST)
OH = application("oh", "Oh")
SLOW = WireRetryPolicy(initial_ms=30_000)


def follower(activity_id: str, on_lost: str = "fail", kind: str = "host", **more: Any) -> Any:
    affinity = f'{{"kind":"{kind}","on-lost":"{on_lost}"}}'
    return an_activity(activity_id, **({"affinity": affinity, "retry_policy": SLOW} | more))


def on_stage(*wanted: c.ScheduleActivity) -> Stage:
    stage = Stage()
    stage.answer(*wanted)
    return stage


def sent(stage: Stage) -> dict[int, Route | None]:
    """What the last step has put on queues, and its routes."""
    found = {}
    for effect in stage.attempts():
        scheduled = stage.history[effect.scheduled_event_id - 1]
        assert isinstance(scheduled, e.ActivityTaskScheduled)
        task, _ = activities.task(stage.run, scheduled, effect)
        found[effect.scheduled_event_id] = task.route
    return found


def known(on_lost: str = "fail", **more: Any) -> Stage:
    """One has completed on host h, and another was sent there."""
    stage = on_stage(follower("1"))
    stage.outcome(FIRST)
    stage.answer(follower("2", on_lost, **more))
    return stage


def second(stage: Stage) -> int:
    [event_id] = stage.run.activities
    return event_id


# --- following -----------------------------------------------------------------------------------


def test_the_first_goes_anywhere_and_others_wait_until_it_has_started() -> None:
    stage = on_stage(follower("1"), follower("2"), follower("3"), an_activity("4"))
    assert sent(stage) == {FIRST: None, FIRST + 3: None}
    stage.outcome(FIRST, Status.STARTED, host="h1")
    assert sent(stage) == {SECOND: Route.host("h1"), THIRD: Route.host("h1")}


def test_what_ends_before_a_notice_of_it_has_shown_the_way() -> None:
    stage = on_stage(follower("1"), follower("2"))
    stage.outcome(FIRST, host="h1")
    assert sent(stage) == {SECOND: Route.host("h1")}


def test_a_claim_shows_the_way() -> None:
    stage = on_stage(
        follower("1", kind="process", retry_policy=WireRetryPolicy(attempts=1)),
        follower("2", kind="process"),
    )
    stage.tell(
        ClaimStart(
            run=KEY,
            scheduled_event_id=FIRST,
            attempt=1,
            request_id="r",
            identity="me",
            host="h1",
            worker_id="w1",
        )
    )
    assert sent(stage) == {SECOND: Route.process("w1")}


def test_groups_and_kinds_are_apart() -> None:
    of_group = an_activity("3", affinity='{"kind":"host","group":"g"}')
    stage = on_stage(follower("1"), follower("2", kind="process"), of_group)
    assert sent(stage) == {FIRST: None, SECOND: None, THIRD: None}


@pytest.mark.parametrize("ending", ["failed", "cancelled", "timed out"])
def test_when_the_first_ends_without_a_start_the_next_goes_in_its_place(ending: str) -> None:
    stage = on_stage(follower("1", schedule_to_start_ms=50), follower("2"), follower("3"))
    if ending == "failed":
        failure = application("no", "No", non_retryable=True)
        stage.outcome(FIRST, Status.FAILED, failure=failure)
    elif ending == "timed out":
        stage.wait(50)
    else:
        stage.tell_signal()
        stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST))
    assert sent(stage) == {SECOND: None}
    stage.outcome(SECOND, Status.STARTED, host="h2")
    assert sent(stage) == {THIRD: Route.host("h2")}


def test_one_that_waits_can_be_cancelled_and_is_no_business_of_workers() -> None:
    stage = on_stage(follower("1"), follower("2"))
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=SECOND, wait=True))
    assert SECOND not in stage.run.activities
    assert not any(isinstance(effect, CancelActivity) for effect in stage.last.effects)


def test_the_wait_for_another_counts_as_a_wait_for_a_start() -> None:
    stage = on_stage(follower("1"), follower("2", schedule_to_start_ms=70))
    stage.wait(70)
    assert stage.the(e.ActivityTaskTimedOut).scheduled_event_id == SECOND


def test_who_goes_in_the_place_of_another_has_its_own_time_for_a_start() -> None:
    stage = on_stage(follower("1", schedule_to_start_ms=50), follower("2", schedule_to_start_ms=50))
    stage.wait(50)
    assert sent(stage) == {SECOND: None}
    assert list(stage.run.activities) == [SECOND]


def test_the_first_is_tried_again_anywhere_while_nobody_has_followed_it() -> None:
    stage = on_stage(follower("1"))
    stage.outcome(FIRST, Status.STARTED, host="h1")
    stage.outcome(FIRST, Status.FAILED, failure=OH, host="h1")
    stage.wake()
    assert sent(stage) == {FIRST: None}


def test_the_first_is_tried_again_where_others_have_followed_it() -> None:
    stage = on_stage(follower("1"), follower("2"))
    stage.outcome(FIRST, Status.STARTED, host="h1")
    stage.outcome(FIRST, Status.FAILED, failure=OH, host="h1")
    stage.wake()
    assert sent(stage) == {FIRST: Route.host("h1")}


# --- losing --------------------------------------------------------------------------------------


def test_a_lost_host_ends_the_activity_at_once() -> None:
    stage = known()
    stage.outcome(second(stage), Status.FAILED, failure=GONE)
    failed = stage.the(e.ActivityTaskFailed)
    assert (failed.failure.type, failed.failure.message) == ("AffinityLost", "nobody there")
    assert failed.retry_state == RetryState.NON_RETRYABLE_FAILURE


def test_an_attempt_that_was_lost_with_its_worker_is_looked_after_at_once() -> None:
    """Not after the first interval of its retry policy; but only once in a row."""
    stage = known()
    event_id = second(stage)
    stage.outcome(event_id, Status.STARTED)
    stage.outcome(event_id, Status.FAILED, failure=LOST)
    assert sent(stage) == {event_id: Route.host("h")}
    stage.outcome(event_id, Status.FAILED, attempt=2, failure=LOST)
    assert sent(stage) == {}
    assert stage.run.next_ms() == stage.now_ms + 60_000


def test_it_can_start_anew_and_others_follow_it() -> None:
    stage = known("restart_affinity")
    event_id = second(stage)
    stage.tell_signal()
    stage.answer(follower("3"))
    stage.outcome(event_id, Status.FAILED, failure=GONE)
    assert sent(stage) == {event_id: None}
    other_id = max(stage.run.activities)
    stage.outcome(other_id, Status.FAILED, failure=GONE)
    assert sent(stage) == {}, "it waits for the one that looks for another host"
    stage.outcome(event_id, Status.STARTED, attempt=2, host="h2")
    assert sent(stage) == {other_id: Route.host("h2")}


def test_it_can_wait_and_its_timeouts_bound_that() -> None:
    stage = known("wait", schedule_to_start_ms=500)
    assert sent(stage) == {second(stage): Route.host("h", on_gone=OnGone.WAIT, wait=DURATION_MAX)}
    stage.wait(500)
    assert stage.the(e.ActivityTaskTimedOut).failure.timeout_type == 2


@pytest.mark.parametrize("on_lost", ["fail", "wait"])
def test_a_host_where_nothing_has_completed_is_no_loss(on_lost: str) -> None:
    stage = on_stage(follower("1", on_lost), follower("2", on_lost))
    stage.outcome(FIRST, Status.STARTED, host="h1")
    assert sent(stage) == {SECOND: Route.host("h1")}
    stage.outcome(SECOND, Status.FAILED, failure=GONE)
    assert sent(stage) == {SECOND: None}
    stage.outcome(FIRST, Status.FAILED, failure=LOST, host="h3")
    assert sent(stage) == {}
    stage.outcome(SECOND, Status.STARTED, attempt=2, host="h2")
    assert sent(stage) == {FIRST: Route.host("h2")}


def test_an_attempt_that_never_began_does_not_count() -> None:
    stage = known("restart_affinity", retry_policy=WireRetryPolicy(attempts=1))
    event_id = second(stage)
    # Whoever found it in the queue of a dead worker does not know that nobody had leave to begin.
    stage.outcome(event_id, Status.FAILED, failure=LOST)
    assert sent(stage) == {event_id: Route.host("h")}
    stage.outcome(event_id, Status.FAILED, attempt=2, failure=GONE)
    assert sent(stage) == {event_id: None}
    stage.outcome(event_id, Status.FAILED, attempt=3, failure=OH)
    assert stage.the(e.ActivityTaskFailed).failure == OH


def test_an_attempt_that_never_began_is_none_of_those_that_are_allowed() -> None:
    stage = known("restart_affinity", retry_policy=WireRetryPolicy(attempts=2))
    event_id = second(stage)
    stage.outcome(event_id, Status.FAILED, failure=GONE)
    stage.outcome(event_id, Status.FAILED, attempt=2, failure=OH)
    assert stage.run.activities[event_id].waits


def test_the_first_is_tried_again_where_another_has_completed() -> None:
    stage = on_stage(follower("1"), follower("2"))
    stage.outcome(FIRST, Status.STARTED, host="h1")
    stage.outcome(SECOND, host="h1")
    stage.outcome(FIRST, Status.FAILED, failure=OH, host="h1")
    stage.wake()
    assert sent(stage) == {FIRST: Route.host("h1")}


def looking_anew() -> tuple[Stage, int, int]:
    """Two were sent to h; one has found nobody there, and looks for another host."""
    stage = known("restart_affinity")
    finder_id = second(stage)
    stage.tell_signal()
    stage.answer(follower("3"))
    stage.outcome(finder_id, Status.FAILED, failure=GONE)
    return stage, finder_id, max(stage.run.activities)


def test_only_who_looks_for_another_host_says_which() -> None:
    stage, finder_id, other_id = looking_anew()
    stage.outcome(other_id, Status.STARTED)
    stage.tell_signal()
    stage.answer(follower("4"))
    assert sent(stage) == {}
    stage.outcome(finder_id, Status.STARTED, attempt=2, host="h2")
    assert sent(stage) == {max(stage.run.activities): Route.host("h2")}


def test_when_nobody_looks_any_more_where_others_are_is_good_enough() -> None:
    stage, finder_id, other_id = looking_anew()
    failure = application("no", "No", non_retryable=True)
    stage.outcome(finder_id, Status.FAILED, attempt=2, failure=failure)
    stage.outcome(other_id)
    stage.answer(follower("4"))
    assert sent(stage) == {second(stage): Route.host("h")}


@pytest.mark.parametrize(
    "failure",
    [
        from_exception(type("TargetGone", (Exception,), {})("mine")),
        Failure(kind=FailureKind.APPLICATION, message="x", type=TARGET_GONE, sealed=b"\0z\0x"),
    ],
)
def test_what_code_raises_is_no_news_of_a_host(failure: Failure) -> None:
    stage = known("restart_affinity")
    stage.outcome(second(stage), Status.FAILED, failure=failure)
    assert sent(stage) == {}
    assert stage.run.activities[second(stage)].waits


def test_a_cancelled_activity_does_not_look_for_another_host() -> None:
    stage = known("restart_affinity")
    event_id = second(stage)
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=event_id, wait=True))
    stage.outcome(event_id, Status.FAILED, failure=GONE)
    assert stage.the(e.ActivityTaskFailed).retry_state == RetryState.CANCEL_REQUESTED


def test_an_activity_of_an_older_release_has_no_affinity() -> None:
    stage = on_stage(an_activity())
    scheduled = stage.the(e.ActivityTaskScheduled)
    assert bonds.route(stage.run, scheduled) is None


# --- from run to run ------------------------------------------------------------------------------

OF_RUN = '{"kind":"host"}'
WITHIN_H = {"affinity": OF_RUN, "affinity_target": "h", "affinity_firm": True}


def begun_at(**more: Any) -> dict[str, Any]:
    """How a start ends up in the first event, as far as it is about an affinity."""
    started = Stage(**more).history[0]
    assert isinstance(started, e.WorkflowExecutionStarted)
    return {name: getattr(started, name) for name in WITHIN_H}


def a_child(**more: Any) -> c.StartChildWorkflow:
    return c.StartChildWorkflow(
        workflow_id="c", workflow_type="C", task_queue="q", **({"affinity": OF_RUN} | more)
    )


def handed_to_child(stage: Stage, **more: Any) -> tuple[str, bool]:
    stage.answer(a_child(**more))
    [start] = stage.sent()
    assert isinstance(start, r.StartWorkflow)
    initiated = stage.the(e.StartChildWorkflowExecutionInitiated)
    for name in WITHIN_H:
        assert getattr(initiated, name) == getattr(start, name), "the history tells it"
    return start.affinity_target, start.affinity_firm


def test_a_start_is_kept_in_the_history() -> None:
    assert begun_at(**WITHIN_H) == WITHIN_H


def test_a_child_begins_with_what_its_parent_knows_now() -> None:
    stage = on_stage(follower("1"))
    stage.tell_signal()
    assert handed_to_child(stage) == ("", False)
    stage.outcome(FIRST, Status.STARTED, host="h1")
    stage.tell_signal()
    assert handed_to_child(stage) == ("h1", False)
    stage.outcome(FIRST, host="h1")
    assert handed_to_child(stage) == ("h1", True)


@pytest.mark.parametrize("own", [None, '{"kind":"host","group":"g"}', '{"kind":"process"}'])
def test_a_child_of_another_affinity_does_not(own: str | None) -> None:
    stage = on_stage(follower("1"))
    stage.outcome(FIRST, host="h1")
    assert handed_to_child(stage, affinity=own) == ("", False)


def test_the_activities_of_a_child_follow_those_of_its_parent() -> None:
    stage = Stage(**WITHIN_H)
    stage.answer(follower("1"), follower("2"))
    assert sent(stage) == dict.fromkeys((FIRST, SECOND), Route.host("h"))
    stage.outcome(FIRST, Status.FAILED, failure=GONE)
    assert stage.the(e.ActivityTaskFailed).failure.type == "AffinityLost"


def test_what_its_parent_has_only_begun_there_is_no_loss() -> None:
    stage = Stage(**(WITHIN_H | {"affinity_firm": False}))
    stage.answer(follower("1"))
    assert sent(stage) == {FIRST: Route.host("h")}
    stage.outcome(FIRST, Status.FAILED, failure=GONE)
    assert sent(stage) == {FIRST: None}


def test_a_grandchild_begins_with_what_the_child_was_given() -> None:
    assert handed_to_child(Stage(**WITHIN_H)) == ("h", True)


def next_start(stage: Stage) -> dict[str, Any]:
    following = stage.last.next_run
    assert following is not None
    started = following.step.events[0]
    assert isinstance(started, e.WorkflowExecutionStarted)
    told = bonds.handed_on(following.run, OF_RUN)
    assert told == {name: getattr(started, name) for name in told}, "it follows what it is told"
    return {name: getattr(started, name) for name in WITHIN_H}


def test_a_continuation_goes_on_where_its_run_was() -> None:
    stage = Stage(affinity=OF_RUN)
    stage.answer(follower("1"))
    stage.outcome(FIRST)
    stage.answer(c.ContinueAsNew())
    assert next_start(stage) == WITHIN_H
    elsewhere = Stage(**WITHIN_H)
    elsewhere.answer(c.ContinueAsNew(task_queue="others"))
    assert next_start(elsewhere) == {**WITHIN_H, "affinity_target": "", "affinity_firm": False}


@pytest.mark.parametrize("of", [{"retry_policy": SLOW}, {"cron_schedule": "@every 60s"}])
def test_a_new_attempt_and_the_next_by_a_schedule_begin_anew(of: dict[str, Any]) -> None:
    stage = Stage(**WITHIN_H, **of)
    if "cron_schedule" in of:
        stage.wake()
    stage.answer(c.FailWorkflow(failure=OH))
    assert next_start(stage) == {**WITHIN_H, "affinity_target": "", "affinity_firm": False}


# --- always --------------------------------------------------------------------------------------


class Bonded(RuleBasedStateMachine):
    """Whatever workers say in whatever order, nobody waits for nobody, and the way is one."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.count = 0
        self.out: dict[int, DispatchActivity] = {}

    def _note(self) -> None:
        for effect in self.stage.attempts():
            if effect.if_missing:
                continue  # it goes where it was
            activity = self.stage.run.activities[effect.scheduled_event_id]
            bond = self.stage.run.bonds["host:"]
            assert activity.target == bond.target, "nobody is sent where the others are not"
            self.out[effect.scheduled_event_id] = effect
        self.out = {at: what for at, what in self.out.items() if at in self.stage.run.activities}

    @rule(on_lost=st.sampled_from(["fail", "restart_affinity", "wait"]))
    def schedule(self, on_lost: str) -> None:
        if self.stage.run.task is None:
            self.stage.tell_signal()
        self.count += 1
        self.stage.answer(follower(str(self.count), on_lost))
        self._note()

    @rule(
        chance=st.integers(0, 9),
        host=st.sampled_from(["h1", "h2"]),
        said=st.sampled_from(
            [
                (Status.STARTED, None),
                (Status.COMPLETED, None),
                (Status.FAILED, GONE),
                (Status.FAILED, LOST),
                (Status.FAILED, OH),
            ]
        ),
    )
    def tell(self, chance: int, host: str, said: tuple[Status, Failure | None]) -> None:
        if not self.out:
            return
        event_id, effect = sorted(self.out.items())[chance % len(self.out)]
        activity = self.stage.run.activities[event_id]
        status, failure = said
        if failure is GONE and not activity.target:
            return  # only who was sent somewhere can find nobody there
        self.stage.outcome(
            event_id,
            status,
            attempt=effect.attempt,
            failure=failure,
            host=activity.target or host,
        )
        self._note()

    @rule()
    def wake(self) -> None:
        if self.stage.run.next_ms() is not None:
            self.stage.wake()
            self._note()

    @rule(chance=st.integers(0, 9))
    def cancel(self, chance: int) -> None:
        pending = sorted(self.stage.run.activities)
        if not pending:
            return
        if self.stage.run.task is None:
            self.stage.tell_signal()
        event_id = pending[chance % len(pending)]
        if not self.stage.run.activities[event_id].cancel_event_id:
            self.stage.answer(c.RequestCancelActivity(scheduled_event_id=event_id))
            self._note()

    @invariant()
    def nobody_waits_for_nobody(self) -> None:
        pending = self.stage.run.activities
        held = [activity for activity in pending.values() if activity.held]
        if held:
            finder = pending[self.stage.run.bonds["host:"].finder]
            assert not finder.held
        for event_id, activity in pending.items():
            assert activity.held or activity.waits or event_id in self.out


TestBonded = Bonded.TestCase
TestBonded.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

"""The router: which queue a task takes, what becomes of it when nobody lives there, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import OnGone, Route
from tq_broker.model.names import Names
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.routing import (
    WAIT_STEP_MS,
    Destination,
    Fail,
    LookAgain,
    destination,
    when_gone,
)

NAMES = Names("n")
WAIT = timedelta(seconds=10)


def task(route: Route | None = None, **fields: Any) -> ActivityTask:
    return ActivityTask(
        activity_id="a", activity_type="t", task_queue="q", body=b"", route=route, **fields
    )


def test_without_a_route_a_task_takes_its_task_queue() -> None:
    to = destination(NAMES, task())
    assert str(to.queue) == "tq.n.activity.q"
    assert not to.private
    assert to.why == "task queue 'q'"


@pytest.mark.parametrize(
    ("route", "name"),
    [(Route.host("h"), "tq.n.host.h.q"), (Route.process("w"), "tq.n.process.w.q")],
)
def test_a_route_takes_the_private_queue_of_its_target(route: Route, name: str) -> None:
    to = destination(NAMES, task(route))
    assert str(to.queue) == name
    assert to.private
    assert repr(route.target) in to.why


def test_by_default_a_task_fails_when_its_target_is_gone() -> None:
    answer = when_gone(NAMES, task(Route.host("h")), 0)
    assert answer == Fail("no living worker serves task queue 'q' on host 'h'")


def test_falling_back_takes_the_task_queue() -> None:
    answer = when_gone(NAMES, task(Route.process("w", on_gone=OnGone.FALL_BACK)), 0)
    assert isinstance(answer, Destination)
    assert answer.queue == NAMES.activity("q")
    assert not answer.private
    assert "process 'w'" in answer.why


@given(st.integers(0, 20_000))
def test_waiting_looks_again_until_the_wait_is_over(passed_ms: int) -> None:
    waits = task(Route.host("h", on_gone=OnGone.WAIT, wait=WAIT), scheduled_ms=5_000)
    answer = when_gone(NAMES, waits, 5_000 + passed_ms)
    if passed_ms < 10_000:
        assert isinstance(answer, LookAgain)
        assert 0 < answer.delay_ms <= WAIT_STEP_MS
        assert passed_ms + answer.delay_ms <= 10_000, "the last look is when the wait is over"
    else:
        assert isinstance(answer, Fail)
        assert "did not within" in answer.why


def test_only_a_routed_task_can_lose_its_target() -> None:
    with pytest.raises(AssertionError):
        when_gone(NAMES, task(), 0)

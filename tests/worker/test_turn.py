"""Values between replay and runner."""

from __future__ import annotations

from tq_broker.common import RetryPolicy
from tq_broker.worker.turn import LocalActivity, LocalActivityDone, Turn


def test_a_turn_is_complete_unless_it_says_otherwise() -> None:
    turn = Turn(commands=[], local_activities=[], canceled_local=[])
    assert turn.complete
    assert not turn.closed
    assert turn.failure is None


def test_local_activities_are_made_once() -> None:
    task = LocalActivity(
        seq=1,
        activity_id="local-1",
        activity_type="a",
        arguments=b"[]",
        scheduled_ms=0,
        retry_policy=RetryPolicy(),
    )
    assert (task.attempt, task.local_retry_threshold_ms) == (1, 60_000)
    assert LocalActivityDone(seq=1).result == b"null"

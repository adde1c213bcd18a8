"""Which attempts are overdue."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tq_broker.exceptions import TimeoutType
from tq_broker.worker.watch import overdue

START_TO_CLOSE, HEARTBEAT = TimeoutType.START_TO_CLOSE, TimeoutType.HEARTBEAT


@dataclass
class Attempt:
    close_at: float | None = None
    heartbeat_at: float | None = None
    close_type: TimeoutType = START_TO_CLOSE


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (Attempt(), None),
        (Attempt(close_at=10.1), None),
        (Attempt(close_at=10.0), START_TO_CLOSE),
        (Attempt(close_at=9.0), START_TO_CLOSE),
        (
            Attempt(close_at=9.0, close_type=TimeoutType.SCHEDULE_TO_CLOSE),
            TimeoutType.SCHEDULE_TO_CLOSE,
        ),
        (Attempt(heartbeat_at=10.1), None),
        (Attempt(heartbeat_at=10.0), HEARTBEAT),
        (Attempt(close_at=11.0, heartbeat_at=9.0), HEARTBEAT),
        (Attempt(close_at=9.0, heartbeat_at=11.0), START_TO_CLOSE),
        (Attempt(close_at=9.0, heartbeat_at=9.0), START_TO_CLOSE),
        (Attempt(close_at=0.0), START_TO_CLOSE),
    ],
)
def test_a_deadline_at_or_before_now_is_over(
    attempt: Attempt, expected: TimeoutType | None
) -> None:
    assert overdue([attempt], 10.0) == ([] if expected is None else [(attempt, expected)])


def test_all_that_are_overdue_are_found_in_order() -> None:
    attempts = [Attempt(close_at=1.0), Attempt(), Attempt(heartbeat_at=1.0)]
    found = overdue(iter(attempts), 5.0)
    assert found == [(attempts[0], START_TO_CLOSE), (attempts[2], HEARTBEAT)]

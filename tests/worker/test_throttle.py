"""How often heartbeat details are passed on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tq_broker.worker.throttle import Throttle


@dataclass
class Attempt:
    heartbeat_ms: int = 0
    details: list[Any] | None = None
    saved: list[Any] | None = None
    saved_at: float = float("-inf")


@pytest.mark.parametrize(
    ("default_s", "longest_s", "heartbeat_ms", "pause_s"),
    [
        (30, 60, 0, 30),
        (30, 60, 10_000, 8),
        (30, 60, 600_000, 60),
        (3, 60, 0, 3),
        (30, 2, 10_000, 2),
    ],
)
def test_the_pause_between_two(
    default_s: float, longest_s: float, heartbeat_ms: int, pause_s: float
) -> None:
    throttle = Throttle(timedelta(seconds=default_s), timedelta(seconds=longest_s))
    attempt = Attempt(heartbeat_ms, details=[2], saved=[1], saved_at=100)
    assert not throttle.is_due(attempt, 100 + pause_s - 0.01)
    assert throttle.is_due(attempt, 100 + pause_s)


def test_the_first_is_passed_on_at_once_and_only_what_is_new() -> None:
    throttle = Throttle(timedelta(seconds=30), timedelta(seconds=60))
    attempt = Attempt()
    assert not throttle.is_due(attempt, 0)
    attempt.details = []
    assert throttle.is_due(attempt, 0)
    attempt.saved, attempt.saved_at = attempt.details, 0
    assert not throttle.is_due(attempt, 1000)

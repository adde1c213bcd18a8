"""How a run begins."""

from __future__ import annotations

import uuid

import pytest

from tests.history.stage import Stage
from tq_broker.history import opening
from tq_broker.model.tasks import WireRetryPolicy


def test_the_id_of_the_run_that_follows_is_always_the_same() -> None:
    one = opening.next_run_id("run-1")
    assert one == opening.next_run_id("run-1")
    assert one != opening.next_run_id("run-2")
    assert opening.next_run_id(one) != one
    assert str(uuid.UUID(one)) == one


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, b"[]"),
        ({"retry_policy": WireRetryPolicy()}, b"[1]"),
        ({"cron_schedule": "* * * * *"}, b"[1]"),
    ],
)
def test_arguments_are_kept_for_another_run_only(changes: dict[str, object], kept: bytes) -> None:
    stage = Stage(input=b"[1]", memo={"m": b"1"}, **changes)
    assert stage.run.started.input == kept
    assert stage.history[0].input == b"[1]"
    assert stage.run.memo == {"m": b"1"}


def test_the_time_of_a_run_counts_from_when_it_may_begin() -> None:
    stage = Stage(start_delay_ms=1_000, run_timeout_ms=5_000, execution_timeout_ms=9_000)
    assert stage.run.run_deadline_ms == stage.now_ms + 6_000
    assert stage.run.started.execution_deadline_ms == stage.now_ms + 10_000

"""Values of calls: bounds are named."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tq_broker.common import ActivityOptions
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.calls import (
    UNSET,
    ActivityCall,
    ChildCall,
    Continuation,
    arguments,
    seconds,
)


def test_arguments_come_one_way_or_the_other() -> None:
    assert arguments(UNSET, None) == []
    assert arguments(None, None) == [None]
    assert arguments(UNSET, (1, 2)) == (1, 2)
    with pytest.raises(InvalidArgument, match="not both"):
        arguments(1, [2])
    with pytest.raises(InvalidArgument, match="sequence"):
        arguments(UNSET, "text")


def test_durations_are_timedeltas_or_seconds() -> None:
    assert seconds(timedelta(minutes=1)) == seconds(60) == 60.0
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="duration"):
            seconds(wrong)


def test_bounds_are_named() -> None:
    with pytest.raises(InvalidArgument, match="task_timeout"):
        ChildCall(workflow_type="W", args=[], id="x", task_timeout=timedelta(0))
    with pytest.raises(InvalidArgument, match="id"):
        ChildCall(workflow_type="W", args=[], id="")
    with pytest.raises(InvalidArgument, match="retry_policy"):
        ChildCall(workflow_type="W", args=[], id="x", retry_policy=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="run_timeout"):
        Continuation(workflow_type=None, args=[], run_timeout=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="activity_id"):
        ActivityCall(activity_type="a", args=[], options=ActivityOptions(), activity_id="")
